"""A step of an effort that has come far costs what a step of a young one costs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from controller.journal import NAME
from controller.snapshot import SNAPSHOT
from tests.bench.steps import Long


@pytest.fixture
def young(tmp_path: Path) -> Iterator[Long]:
    effort = Long(tmp_path / "young", 50)
    yield effort
    effort.close()


@pytest.fixture
def old(tmp_path: Path) -> Iterator[Long]:
    effort = Long(tmp_path / "old", 5000)
    yield effort
    effort.close()


@pytest.mark.slow
def test_a_step_costs_the_same_after_a_hundred_times_as_many(young: Long, old: Long) -> None:
    """In CPU time, each at its best: other work can only add to it. A linear cost would be 100-fold."""
    costs = [(young.experiment(), old.experiment()) for _ in range(10)]
    assert min(late for _, late in costs) < 2 * min(early for early, _ in costs), costs
    with_snapshot = min(old.start() for _ in range(3))
    assert (old.home / NAME).is_file()
    (old.home / SNAPSHOT).unlink()
    assert with_snapshot < 0.1 * old.start()
