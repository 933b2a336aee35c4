"""The log of operation: JSON lines, and never a reason for the work to stop."""

from __future__ import annotations

import io
import json
import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog

from controller.system import logs


@pytest.fixture(autouse=True)
def restore() -> Iterator[None]:
    yield
    structlog.reset_defaults()


def test_a_line_is_a_json_object() -> None:
    stream = io.StringIO()
    logs.configure(stream)
    structlog.get_logger().info("trained", experiment=3, description='a "quoted" → line\nand more')
    structlog.get_logger().debug("not of interest")
    (line,) = stream.getvalue().splitlines()
    said = json.loads(line)
    assert said["event"] == "trained" and said["experiment"] == 3 and said["level"] == "info"
    assert said["timestamp"].endswith("Z")


def test_a_level_keeps_the_rest_out() -> None:
    stream = io.StringIO()
    logs.configure(stream, logging.WARNING)
    structlog.get_logger().info("trained")
    structlog.get_logger().warning("infrastructure_fault")
    assert stream.getvalue().count("\n") == 1


def test_a_collector_that_goes_away_stops_nothing() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    stream = os.fdopen(writing, "w", buffering=1)
    logs.configure(stream)
    for number in range(1000):
        structlog.get_logger().info("trained", experiment=number)
    with pytest.raises(BrokenPipeError):
        stream.close()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_stops_nothing() -> None:
    stream = os.fdopen(os.open("/dev/full", os.O_WRONLY), "w", buffering=1)
    logs.configure(stream)
    structlog.get_logger().warning("infrastructure_fault")
    with pytest.raises(OSError, match="No space"):
        stream.close()


def test_run_logs_to_stdout_for_a_collector(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    assert logs.stream_of_run(tmp_path) is sys.stdout


def test_run_logs_to_a_file_beside_a_terminal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parent, child = os.openpty()
    with os.fdopen(child, "w") as terminal:
        monkeypatch.setattr(sys, "stdout", terminal)
        with logs.stream_of_run(tmp_path) as stream:
            assert Path(stream.name) == tmp_path / "glovebox.log"
    os.close(parent)
