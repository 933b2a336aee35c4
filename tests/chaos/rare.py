"""Efforts whose controller comes to places that are rare: on a noisy machine, and after a long history."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from controller.app.run import publisher
from controller.components import Components, Slot
from controller.core.decision import Bounds
from controller.core.events import SessionStarted
from controller.core.experiment import Experiment
from controller.core.rules import Limits, Rules
from controller.core.values import Change
from controller.loop import Loop
from controller.ports import Context
from controller.store.journal import Journal
from controller.store.repository import GitRepository
from controller.store.runs import Runs
from controller.store.snapshot import EVERY, standing
from controller.system.clock import SystemClock
from tests.chaos.effort import Effort
from tests.chaos.plan import LONG, NOISY, Kill
from tests.support.fakes import FakeJudge, FakeTrainer, RoomyHome, Silent

_WATCHED = {
    "GLOVEBOX_NOISE__ENABLED": "true",
    "GLOVEBOX_NOISE__CPU_SHARE": "1",
    "GLOVEBOX_NOISE__RETRY_SECONDS": "1",
    "GLOVEBOX_NOISE__MAX_RETRY_SECONDS": "1",
}
_BUDGET_SECONDS = 15.0
_TRAINING_SECONDS = 11.0
"""Long enough for the CPUs to be read at several moments of it."""

KILLS = {
    "noisy": [Kill("place", place) for place in NOISY],
    "long": [
        *(Kill("place", place) for place in LONG),
        Kill("moment", seconds=2.0),
        Kill("twice", "recovered"),
    ],
}
"""Of each of these efforts."""


@contextmanager
def rare(kind: str, folder: Path, data: Path, *, through_runner: bool = False) -> Iterator[Effort]:
    """`noisy` is on a machine that is watched; `long` has almost as many experiments as a snapshot needs."""
    if kind == "noisy":
        opened = Effort.open(
            folder,
            data,
            "replay",
            through_runner=through_runner,
            training_seconds=_TRAINING_SECONDS,
            budget_seconds=_BUDGET_SECONDS,
            patience_seconds=180.0,
            environment=_WATCHED,
        )
    else:
        opened = Effort.open(folder, data, "replay", through_runner=through_runner, patience_seconds=180.0)
    with opened as effort:
        if kind == "long":
            if effort.runner is not None:
                effort.runner.revive()
            effort.finish(more=1)
            grow(effort.home, EVERY - 2, effort.budget_seconds)
        yield effort


def grow(home: Path, experiments: int, budget_seconds: float) -> None:
    """Go on with an effort up to so many experiments: the loop as it is, in this process, no containers."""
    state, archive = standing(home)
    assert state.session is not None and state.tag is not None
    trainer, agent = FakeTrainer(), _Worse()
    journal = Journal(home, SystemClock(), archive.position)
    components = Components(
        journal=journal,
        repository=GitRepository(home / "repo", state.tag),
        agents=[agent],
        slots=[Slot(trainer, FakeJudge(trainer))],
        rules=Rules(
            agent=agent.name,
            limits=Limits(experiments),
            bounds=Bounds(max_gain=0.3, claim_tolerance=0.1),
        ),
        runs=Runs(home),
        clock=SystemClock(),
        observer=Silent(),
        stop=threading.Event(),
        publish=publisher(home, archive),
        check_inputs=lambda: None,
        surroundings=RoomyHome(),
    )
    loop = Loop(components, state, budget_seconds)
    provenance = state.session.provenance
    loop.effort.record(SessionStarted(agent="replay", budget_seconds=budget_seconds, provenance=provenance))
    loop.run()
    journal.close()


class _Worse:
    """An agent without good ideas."""

    name = "replay"
    asks_ahead = False

    def propose(self, context: Context) -> Change:
        number = len(context.history)
        other = f"ALPHA = {-0.1 - 0.001 * number}\nWIDTH = {99.0 + number}  # what the pretended judge reads"
        return Change(
            train_py=re.sub("^ALPHA = .*$", other, context.train_py, flags=re.MULTILINE),
            description=f"idea {number}",
            hypothesis="It may help.",
        )

    def fix(self, context: Context, crashed: Experiment) -> None:
        return None

    def combine(self, context: Context, behind: Experiment) -> None:
        return None
