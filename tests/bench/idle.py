"""How much of an effort's wall clock no T ran, from its journal."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable
from dataclasses import dataclass

from controller.core.events import (
    Decided,
    Proposed,
    Record,
    ScoringFinished,
    ScoringStarted,
    TrainingFinished,
    TrainingStarted,
)


@dataclass(frozen=True)
class Idle:
    """Seconds, from the first container of the first experiment to the end of the last one's."""

    experiments: int
    total: float
    training: float
    """Life of the T containers, by the engine's clock."""
    scoring: float
    waiting: float
    """From a verdict to the next proposal: what the agent let the machine wait for."""

    @property
    def share(self) -> float:
        """Of the wall clock in which no T ran and nothing was scored."""
        return (self.total - self.training - self.scoring) / self.total

    def __str__(self) -> str:
        other = self.total - self.training - self.scoring - self.waiting
        parts = {
            "T ran": self.training,
            "scoring": self.scoring,
            "waiting for a proposal": self.waiting,
            "containers and records": other,
        }
        shares = ", ".join(f"{name} {s:.1f} s ({s / self.total:.1%})" for name, s in parts.items())
        return (
            f"{self.experiments} experiments in {self.total:.1f} s: {shares}; neither T nor scoring: "
            f"{self.share:.1%}"
        )


def idle(records: Iterable[Record]) -> Idle:
    """Of the experiments whose training has ended. Raises ValueError if there are none."""
    first = last = verdict = scored = None
    training = scoring = waiting = 0.0
    behind = [0.0, 0.0]  # scoring and waiting after the last training, which lie outside the total so far
    experiments = 0
    for record in records:
        time = dt.datetime.fromisoformat(record.time)
        match record.data:
            case Proposed() if verdict is not None:
                behind[1] += (time - verdict).total_seconds()
            case TrainingStarted():
                first = first or time
            case TrainingFinished(outcome=outcome):
                last, experiments = time, experiments + 1
                training += outcome.seconds
                scoring, waiting, behind = scoring + behind[0], waiting + behind[1], [0.0, 0.0]
            case ScoringStarted():
                scored = time
            case ScoringFinished() if scored is not None:
                behind[0] += (time - scored).total_seconds()
            case Decided():
                verdict = time
    if first is None or last is None:
        raise ValueError("no experiment has been trained")
    return Idle(experiments, (last - first).total_seconds(), training, scoring, waiting)
