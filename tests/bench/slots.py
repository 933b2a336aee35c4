"""What several slots do in the time in which one does its part: real ones on CPUs, and sixteen pretended."""

from __future__ import annotations

import datetime as dt
import os
import re
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from controller import settings
from controller.agents.replay import Replay
from controller.app import run as effort
from controller.core.events import Decided, Record, TrainingStarted
from controller.settings import PROJECT
from controller.store.journal import read_records
from controller.store.lock import HomeLock
from tests.bench.measures import glovebox

_RATE = re.compile(r"^EMBEDDING_LR_CPU = \S+", re.MULTILINE)


@dataclass(frozen=True)
class Pace:
    """Experiments after the baseline."""

    experiments: int
    seconds: float
    """From the start of the first training to the last verdict."""

    @property
    def an_hour(self) -> float:
        return 3600 * self.experiments / self.seconds

    def __str__(self) -> str:
        return f"{self.experiments} in {self.seconds:.1f} s, {self.an_hour:.1f} an hour"


def pace(records: Iterable[Record]) -> Pace:
    """Raises ValueError if no experiment but the baseline was decided."""
    began: dt.datetime | None = None
    ended: list[dt.datetime] = []
    for record in records:
        time = dt.datetime.fromisoformat(record.time)
        if record.experiment and isinstance(record.data, TrainingStarted):
            began = began or time
        elif record.experiment and isinstance(record.data, Decided):
            ended.append(time)
    if began is None or not ended:
        raise ValueError("no experiment but the baseline was decided")
    return Pace(len(ended), (ended[-1] - began).total_seconds())


def side_by_side(folder: Path, rounds: int, budget: float) -> tuple[Pace, Pace]:
    """(one slot, all slots) of one CPU each, at the CPU scale: so many experiments a slot, none of them kept.

    Real preparation, training, scoring and records.
    """
    cpus = [str(number) for number in sorted(os.sched_getaffinity(0))]
    one, every = (folder / name for name in ("one", "every"))
    return _effort(one, cpus[:1], rounds, budget), _effort(every, cpus, rounds, budget)


def _effort(folder: Path, cpus: Sequence[str], rounds: int, budget: float) -> Pace:
    home, ideas = folder / "home", folder / "ideas"
    ideas.mkdir(parents=True)
    glovebox("prepare", "--home", home, "--scale", "cpu")
    text = (PROJECT / "harness" / "train.py").read_text(encoding="utf-8")
    experiments = rounds * len(cpus)
    for number in range(experiments):
        # So low a rate that nothing is kept: a confirmation would be more work for one slot than for another.
        rate = f"EMBEDDING_LR_CPU = {0.01 * (number + 1) / experiments:.6f}"
        (ideas / f"{number:02d}.py").write_text(_RATE.sub(rate, text), encoding="utf-8")
    with HomeLock(home):
        config = settings.load(
            home=home,
            tag="slots",
            device="cpu",
            slots=[{"cpus": cpu} for cpu in cpus],
            budget={"wall_seconds": budget},
            limits={"experiments": 1 + experiments},
        )
        effort.run(config, Replay(ideas), threading.Event())
    return pace(read_records(home))
