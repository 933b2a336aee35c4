"""A home with a real journal, real git, real ledger and runs/, and containers that are only pretended."""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from controller.app.run import publisher
from controller.components import Components, Slot
from controller.core.decision import Bounds
from controller.core.events import EffortStarted, SessionStarted
from controller.core.rules import Limits, Rules
from controller.core.state import ResearchState
from controller.core.values import Cause, Verdict
from controller.loop import Loop
from controller.ports import Agent
from controller.store.journal import Journal
from controller.store.repository import GitRepository
from controller.store.runs import Runs
from controller.store.snapshot import standing
from controller.system.clock import SystemClock
from tests.support.efforts import PROVENANCE
from tests.support.fakes import FakeJudge, FakeMonitor, FakeTrainer, RoomyHome, Silent, train_py

BASELINE = train_py(3.0)


class Workspaces:
    """The part of an engine that recovery uses, over the fake trainer's workspaces."""

    def __init__(self, trainer: FakeTrainer) -> None:
        self._trainer = trainer

    def leftovers(self, keep: Collection[str] = ()) -> tuple[list[str], list[str]]:
        return [], [f"{label} {number}" for label, number in self._trainer.workspaces if label not in keep]

    def remove(self, *, containers: Sequence[str] = (), volumes: Sequence[str] = ()) -> None:
        for name in volumes:
            label, number = name.split()
            self._trainer.workspaces.discard((label, int(number)))


class Effort:
    """One home and the process at work in it; `restart` is what a new process finds."""

    def __init__(self, home: Path, agent: Agent, baseline: str = BASELINE) -> None:
        self.home = home
        self.baseline = baseline
        self.trainer = FakeTrainer()
        self.agent = agent
        self.surroundings = RoomyHome()
        self.stop = threading.Event()
        self._journal: Journal | None = None
        self.begin()

    def begin(self) -> None:
        state, self.archive = standing(self.home)
        journal = Journal(self.home, SystemClock(), self.archive.position)
        self._journal = journal
        repository = GitRepository(self.home / "repo", "t")
        if not state.tag:
            files = {"train.py": self.baseline, "prepare.py": "", "program.md": "be good"}
            journal.append(EffortStarted(tag="t", base_commit=repository.begin("t", files)))
        self.components = Components(
            journal=journal,
            repository=repository,
            agents=[self.agent],
            slots=[Slot(self.trainer, FakeJudge(self.trainer))],
            rules=Rules(
                agent=self.agent.name,
                asks_ahead=self.agent.asks_ahead,
                bounds=Bounds(max_gain=0.3, claim_tolerance=0.1),
            ),
            runs=Runs(self.home),
            clock=SystemClock(),
            observer=Silent(),
            stop=self.stop,
            publish=publisher(self.home, self.archive),
            check_inputs=lambda: None,
            surroundings=self.surroundings,
        )

    @property
    def slot(self) -> Slot:
        """The first one."""
        return self.components.slots[0]

    def rule(self, **changes: Any) -> None:
        """Play by other rules from now on."""
        self.components.rules = replace(self.components.rules, **changes)

    def watch(self, monitor: FakeMonitor) -> None:
        """Look for noise on the first slot."""
        self.slot.monitor = monitor
        self.rule(is_watched=True)

    def stand_in(self, understudy: Agent) -> None:
        """Have somebody to propose while the agent is absent."""
        self.components.agents = [self.agent, understudy]
        self.rule(understudy=understudy.name)

    def loop(
        self, experiments: int | None = None, dollars: float | None = None, hours: float | None = None
    ) -> Loop:
        """A loop whose session has begun."""
        self.rule(limits=Limits(experiments, hours, dollars=dollars))
        loop = Loop(self.components, standing(self.home)[0], budget_seconds=20.0)
        loop.effort.record(SessionStarted(agent=self.agent.name, budget_seconds=20.0, provenance=PROVENANCE))
        return loop

    def train_with(self, trainer: FakeTrainer) -> None:
        self.trainer = self.slot.trainer = trainer
        self.slot.judge = FakeJudge(trainer)

    def begin_with(self, agent: Agent) -> None:
        """Ask another agent from now on."""
        self.agent = agent
        self.components.agents = [agent]
        self.rule(agent=agent.name, asks_ahead=agent.asks_ahead)

    def restart(self) -> None:
        assert self._journal is not None
        self._journal.close()
        self.stop = threading.Event()
        self.begin()

    def git_log(self) -> list[str]:
        command = [
            "git",
            "-c",
            "safe.directory=*",
            "-C",
            str(self.home / "repo"),
            "log",
            "--format=%s",
            "--reverse",
        ]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.split("\n")[:-1]

    def close(self) -> None:
        assert self._journal is not None
        self._journal.close()


def verdicts(state: ResearchState) -> list[tuple[Verdict | None, Cause | None]]:
    return [(experiment.verdict, experiment.cause) for experiment in state.experiments]


def start(efforts: list[Effort], home: Path, agent: Agent, baseline: str = BASELINE) -> Effort:
    """An effort that the fixture `efforts` closes."""
    efforts.append(Effort(home, agent, baseline))
    return efforts[-1]
