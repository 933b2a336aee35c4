"""Many slots on which trainings only take time: what is lost is what the loop takes between them."""

from __future__ import annotations

import datetime as dt
import threading
import time
from collections.abc import Callable
from pathlib import Path

from controller.components import Slot
from controller.core.errors import AgentExhausted
from controller.core.events import TrainingFinished, TrainingStarted
from controller.core.experiment import Experiment
from controller.core.values import Change, RunOutcome
from controller.ports import Attempt, Context
from controller.store.journal import read_records
from tests.loop.effort import Effort
from tests.support.fakes import FakeJudge, FakeTrainer, train_py


class Counting:
    """Proposes ever other programs, at once; so many in all."""

    name = "counting"
    asks_ahead = False

    def __init__(self, most: int) -> None:
        self._left = most
        self._lock = threading.Lock()

    def propose(self, context: Context) -> Change:
        with self._lock:
            if self._left == 0:
                raise AgentExhausted("enough")
            self._left -= 1
            return Change(train_py=train_py(3.5 + self._left, salt=self._left), description=f"{self._left}")

    def fix(self, context: Context, crashed: Experiment) -> None:
        return None

    def combine(self, context: Context, behind: Experiment) -> None:
        return None


class Taking(FakeTrainer):
    """Every training but the baseline's takes so many seconds."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self._seconds = seconds

    def train(self, attempt: Attempt, stop: threading.Event, tick: Callable[[float], None]) -> RunOutcome:
        time.sleep(0 if attempt.experiment == "0" else self._seconds)
        return super().train(attempt, stop, tick)


def on_slots(effort: Effort, slots: int, trainer: FakeTrainer | None = None) -> None:
    trainer = trainer or FakeTrainer()
    effort.trainer = trainer
    effort.components.slots = [Slot(trainer, FakeJudge(trainer)) for _ in range(slots)]
    effort.rule(slots=slots)


def share_in_use(home: Path, slots: int, rounds: int, seconds: float) -> float:
    """Of the time of all slots, from the first training to the end of the last: the share that trains."""
    effort = Effort(home, Counting(slots * rounds))
    on_slots(effort, slots, Taking(seconds))
    try:
        effort.loop().run()
    finally:
        effort.close()
    records = list(read_records(home))
    trained = [r for r in records if isinstance(r.data, TrainingStarted | TrainingFinished) and r.experiment]
    began, ended = (dt.datetime.fromisoformat(record.time) for record in (trained[0], trained[-1]))
    return rounds * seconds / (ended - began).total_seconds()
