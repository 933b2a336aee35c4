"""An experiment of an effort that has come far costs what one of a young effort costs."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from controller.store.journal import NAME
from controller.store.repository import GitRepository
from controller.store.snapshot import SNAPSHOT
from tests.bench.steps import Long, cpu_seconds


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
def test_an_experiment_costs_the_same_after_a_hundred_times_as_many(young: Long, old: Long) -> None:
    """In CPU time, each at its best: other work can only add to it. A linear cost would be 100-fold."""
    costs = [(young.experiment(), old.experiment()) for _ in range(10)]
    assert min(late for _, late in costs) < 2 * min(early for early, _ in costs), costs
    with_snapshot = min(old.start() for _ in range(3))
    assert (old.home / NAME).is_file()
    (old.home / SNAPSHOT).unlink()
    assert with_snapshot < 0.1 * old.start()


@pytest.mark.slow
def test_a_commit_costs_the_same_after_ten_thousand_keeps(tmp_path: Path) -> None:
    young, old = (GitRepository(tmp_path / name) for name in ("young", "old"))
    for repository in (young, old):
        repository.begin("t", {"train.py": "A = 0\n"})
    _keep(tmp_path / "old", old.head(), 10_000)
    costs = [(_commit(young, 20_000 + n), _commit(old, 20_000 + n)) for n in range(5)]
    assert min(late for _, late in costs) < 2 * min(early for early, _ in costs), costs
    assert len(old.history()) == 1 + 10_000 + 5


def _commit(repository: GitRepository, number: int) -> float:
    """CPU seconds."""
    before = cpu_seconds()
    repository.commit(f"A = {number}\n", "better", {"Experiment": str(number)})
    return cpu_seconds() - before


def _keep(path: Path, base: str, number: int) -> None:
    """So many commits on top of `base`, as keeps leave them."""
    commits = []
    for n in range(number):
        message, text = f"better\n\nExperiment: {n}\n", f"A = {n}\n"
        parent = f"from {base}\n" if n == 0 else ""
        commits.append(
            f"commit refs/heads/autoresearch/t\ncommitter Glovebox <glovebox@localhost> {n} +0000\n"
            f"data {len(message)}\n{message}{parent}M 100644 inline train.py\ndata {len(text)}\n{text}\n"
        )
    stream = "".join(commits).encode()
    git = ["git", "-c", "safe.directory=*", "-C", str(path), "fast-import", "--quiet"]
    subprocess.run(git, input=stream, check=True, capture_output=True)
