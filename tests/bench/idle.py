"""How much of an effort's wall clock no T ran, from its journal; and a race of asking ahead against waiting.

The API takes 60 to 120 s for a proposal, a rehearsal 120 s at most and an experiment 300 s; here all of them
are scaled down alike.
"""

from __future__ import annotations

import datetime as dt
import os
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from pydantic import SecretStr

from controller import settings
from controller.agents.llm.conversation import Claude
from controller.app import run as effort
from controller.core.events import (
    ApiAnswered,
    ApiFailed,
    Decided,
    ExperimentOpened,
    ProposalMade,
    ProposalRehearsed,
    Record,
    ScoringFinished,
    ScoringStarted,
    TrainingFinished,
    TrainingStarted,
)
from controller.store.journal import read_records
from controller.store.lock import HomeLock
from controller.system import logs
from controller.system.clock import SystemClock
from tests.show.live import prepare
from tests.show.script import TRAIN, Script, thinking_time
from tests.support.messages_server import MessagesServer

BUDGET = 300.0
"""Seconds of an experiment in earnest."""
LEAST, MOST, REHEARSAL = 60 / BUDGET, 120 / BUDGET, 120 / BUDGET
"""Time of an answer, and of a rehearsal at most, as shares of the budget."""


@dataclass(frozen=True)
class Idle:
    """Seconds on one slot, from the first container of the first experiment to the end of the last one's."""

    experiments: int
    total: float
    training: float
    """Life of the T containers, by the engine's clock."""
    scoring: float
    waiting: float
    """From a verdict to the last thing the agent did before the next experiment was opened."""

    @property
    def share(self) -> float:
        """Of the wall clock without scoring, in which no T ran; long scoring would hide the rest."""
        unscored = self.total - self.scoring
        return (unscored - self.training) / unscored

    @property
    def other(self) -> float:
        """Containers, records, commits: what each experiment takes whatever the budget is."""
        return self.total - self.training - self.scoring - self.waiting

    def share_in_earnest(self, budget: float) -> float:
        """The share if each experiment had BUDGET instead of the `budget` seconds it had here.

        Waiting grows with the budget, since answers do; the rest does not.
        """
        unused = (self.waiting * BUDGET / budget + self.other) / self.experiments
        return unused / (BUDGET + unused)

    def __str__(self) -> str:
        parts = {
            "T ran": self.training,
            "scoring": self.scoring,
            "waiting for a proposal": self.waiting,
            "containers and records": self.other,
        }
        shares = ", ".join(f"{name} {s:.1f} s ({s / self.total:.1%})" for name, s in parts.items())
        return (
            f"{self.experiments} experiments in {self.total:.1f} s: {shares}; scoring set aside, "
            f"no T ran for {self.share:.1%}; containers and records take "
            f"{self.other / self.experiments:.2f} s for each experiment"
        )


def idle(records: Iterable[Record]) -> Idle:
    """Of the experiments whose training has ended. Raises ValueError if there are none."""
    first = last = verdict = scored = spoken = None
    training = scoring = waiting = 0.0
    behind = [0.0, 0.0]  # scoring and waiting after the last training, which lie outside the total so far
    experiments = 0
    for record in records:
        time = dt.datetime.fromisoformat(record.time)
        match record.data:
            case ApiAnswered() | ApiFailed() | ProposalRehearsed() | ProposalMade():
                spoken = time
            case ExperimentOpened() if verdict is not None and spoken is not None:
                behind[1] += max(0.0, (spoken - verdict).total_seconds())
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


class Patient(Claude):
    """The same agent, asked when the machine has nothing else to do."""

    asks_ahead = False


def race(folder: Path, experiments: int, budget: float) -> tuple[Idle, Idle]:
    """(asking ahead, one after the other): two efforts with the same answers after the same times."""
    return (
        _effort(folder / "ahead", Claude, experiments, budget),
        _effort(folder / "sequential", Patient, experiments, budget),
    )


def _effort(folder: Path, agent: type[Claude], experiments: int, budget: float) -> Idle:
    home = folder / "home"
    folder.mkdir()
    prepare(home)
    (folder / "train.py").write_text(TRAIN, encoding="utf-8")
    script = Script(thinking_time(LEAST * budget, MOST * budget), plain_only=True)
    with MessagesServer(script) as server, HomeLock(home), open(os.devnull, "w", encoding="utf-8") as nowhere:
        logs.configure(nowhere)
        config = settings.load(
            home=home,
            tag="race",
            device="cpu",
            train=folder / "train.py",
            budget={"wall_seconds": budget},
            limits={"experiments": experiments},
            claude={"base_url": server.url},
            noise={"enabled": False},  # a run that is repeated would be counted as waiting
            rehearsal={"seconds": REHEARSAL * budget},
            judge={"score_tokens": 2048, "holdout_score_tokens": 1024},
        )
        claude = agent(config.claude, SecretStr("sk-test"), SystemClock())
        effort.run(config, claude, threading.Event())
    return idle(read_records(home))
