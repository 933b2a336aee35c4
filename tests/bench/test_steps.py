"""A step of an effort that has come far costs what a step of a young one costs."""

from __future__ import annotations

import statistics
from pathlib import Path

import pytest

from controller.journal import NAME
from controller.snapshot import SNAPSHOT
from tests.bench.steps import Long


@pytest.mark.slow
def test_a_step_costs_the_same_after_a_hundred_times_as_many(tmp_path: Path) -> None:
    """Both are measured in turn, so that other work slows both; a linear cost would be 100-fold."""
    young, old = Long(tmp_path / "young", 50), Long(tmp_path / "old", 5000)
    times = [(young.experiment(), old.experiment()) for _ in range(15)]
    ratio = statistics.median(late for _, late in times) / statistics.median(early for early, _ in times)
    assert ratio < 2, times
    assert old.start() < 0.1 * _start_without_snapshot(old)
    young.close()
    old.close()


def _start_without_snapshot(effort: Long) -> float:
    assert (effort.home / NAME).is_file()
    (effort.home / SNAPSHOT).unlink()
    return effort.start()
