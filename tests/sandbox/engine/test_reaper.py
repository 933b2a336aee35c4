"""The third hand of the clock: alone, with nothing else of ours alive."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from controller.core.containers import builders, volumes
from controller.core.containers.names import ContainerNames
from controller.core.containers.spec import ContainerSpec
from controller.sandbox.engine.reaper import Reaper
from tests.support.bench import Bench, engine

pytestmark = pytest.mark.engine

PROJECT = Path(__file__).parents[3]


def overdue(bench: Bench, experiment: str, life: float, limit: float = 120.0) -> ContainerSpec:
    """Says that it lives for `life` seconds, while its PID 1 would let it live for `limit`."""
    place = ContainerNames(bench.home, experiment)
    holder = builders.holder(bench.config, place, 60.0)
    return replace(holder, command=("hold", "--limit", str(limit)), life_seconds=life, mounts=())


@contextmanager
def reaping(alive: Path) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(
        [sys.executable, "-m", "controller.sandbox.engine.reaper", str(alive)], cwd=PROJECT
    )
    try:
        until(alive.exists)
        yield process
    finally:
        process.terminate()
        process.wait(20)


def until(done: Callable[[], bool], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_what_outlives_its_deadline_is_ended_with_everybody_else_dead(bench: Bench, tmp_path: Path) -> None:
    with reaping(tmp_path / "alive"):
        longer, late = overdue(bench, "2", 60.0), overdue(bench, "1", 1.0)
        bench.sandbox.start(longer)
        started = bench.sandbox.start(late)
        until(lambda: not bench.sandbox.alive(late.name))
        assert time.monotonic() - started < 1.0 + 5.0
        until(lambda: bench.sandbox.leftovers() == ([longer.name], []))
        assert bench.sandbox.alive(longer.name)


def test_a_run_whose_holder_lives_is_left_to_whoever_comes_back(bench: Bench) -> None:
    place, reaper = ContainerNames(bench.home, "1"), Reaper()
    volume = volumes.workspace(bench.config, place, 60.0)
    holder = builders.holder(bench.config, place, 60.0)
    bench.sandbox.create_volume(replace(volume, life_seconds=-60.0))
    bench.sandbox.start(holder)
    run = replace(overdue(bench, "1", -60.0, 0.1), name=place.name("trainer"))
    bench.sandbox.start(run)
    until(lambda: not bench.sandbox.alive(run.name))
    reaper.sweep()
    assert sorted(bench.sandbox.leftovers()[0]) == sorted([holder.name, run.name])
    assert bench.sandbox.leftovers()[1] == [volume.name]
    bench.sandbox.kill(holder.name)
    until(lambda: not bench.sandbox.alive(holder.name))
    reaper.sweep()
    assert bench.sandbox.leftovers()[0] == [holder.name]  # not due yet


def test_what_has_no_deadline_of_ours_is_nobodys_business(bench: Bench) -> None:
    client = engine()
    name = f"not-glovebox-{os.getpid()}"
    try:
        client.create_container(bench.config.image, ["hold", "--limit", "60"], name=name, labels={"a": "b"})
        Reaper().sweep()
        assert client.inspect_container(name)["Config"]["Labels"]["a"] == "b"
    finally:
        client.remove_container(name, force=True)
        client.close()


def test_an_engine_that_is_away_is_waited_for(tmp_path: Path) -> None:
    alive = tmp_path / "alive"
    process = subprocess.Popen(
        [sys.executable, "-m", "controller.sandbox.engine.reaper", str(alive)],
        cwd=PROJECT,
        env={**os.environ, "DOCKER_HOST": f"unix://{tmp_path}/no.sock"},
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    assert "engine_fails" in process.stderr.readline()
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 0
    process.stderr.close()
    assert not alive.exists()
