"""A controller whose containers are only pretended, in a process of its own that can really be killed.

Journal, git, ledger, runs/, snapshot and pruning are real. What an engine would know outlives the process in
a file next to the home.
"""

from __future__ import annotations

import itertools
import pickle
import threading
from collections.abc import Callable
from pathlib import Path

from controller import failpoints
from controller.core.errors import AgentAway, AgentError
from controller.core.experiment import Experiment
from controller.core.hardware.disturbance import NoiseConfig
from controller.core.values import Disturbance, Proposal, RehearsalResult, RunOutcome
from controller.ports import Attempt, Context, Wish
from controller.proposals.availability import AbsenceConfig
from controller.recovery import recover, sweep
from controller.store.journal import read_records
from controller.store.retention import Retention, RetentionConfig
from controller.store.snapshot import EVERY
from tests.loop.effort import Effort, Workspaces
from tests.loop.slow import Slow, Step, fails, insert, whole
from tests.support.fakes import LOAD, FakeMonitor, FakeTrainer, train_py

QUICK = AbsenceConfig(retry_seconds=0.001, max_retry_seconds=0.001)


class Machine(FakeTrainer):
    """Remembers in a file, as an engine remembers across the controllers that come and go."""

    def __init__(self, memory: Path) -> None:
        super().__init__()
        self._memory = memory
        if memory.exists():
            self.finished, self.workspaces, self.started = pickle.loads(memory.read_bytes())

    def train(self, attempt: Attempt, stop: threading.Event, tick: Callable[[float], None]) -> RunOutcome:
        try:
            return super().train(attempt, stop, tick)
        finally:
            self._remember()

    def discard(self, attempt: Attempt) -> None:
        super().discard(attempt)
        self._remember()

    def _remember(self) -> None:
        new = self._memory.with_suffix(".new")  # another thread may be killing us
        new.write_bytes(pickle.dumps((self.finished, self.workspaces, self.started)))
        new.rename(self._memory)


class Workshop:
    """A rehearsal that always goes well."""

    def rehearse(self, train_py: str, stop: threading.Event) -> RehearsalResult:
        return RehearsalResult(result="passed", seconds=0.0)


class Moody(Slow):
    """Asked ahead; takes the moods of a language model by turns, beginning at another one in each life."""

    def __init__(self, life: int) -> None:
        super().__init__([], repair=insert(90.0, "mended"))
        self._turns = itertools.count(life)

    def propose(self, context: Context) -> Proposal:
        turn, best = next(self._turns), context.frontier.val_bpb or 100.0
        number = len(context.history)
        moods: list[Step] = [
            insert(best * 0.99, description=f"better {turn}"),
            insert(200.0 + number, description="worse"),
            whole(train_py(best * 0.98, salt=number)),  # of no use once the frontier has moved
            insert(best * 0.5, "claims 1000.0"),
            whole(context.train_py),  # refused
            insert(90.0 + number, "crash NameError"),
            insert(best * 0.97, "broken"),
            insert(best * 0.96, "disturbed 1"),
            fails(AgentAway("The API is overloaded.", 0.0)),
            fails(AgentError("It talked and did nothing.")),
        ]
        self.steps = [moods[turn % len(moods)]]
        proposal = super().propose(context)
        context.desk.rehearse(proposal.train_py)
        return proposal

    def fix(self, context: Context, crashed: Experiment) -> Proposal | None:
        """Every second crash is beyond repair."""
        return super().fix(context, crashed) if crashed.number % 2 else None


class Restless(FakeMonitor):
    """Disturbed for two looks after a run and one before its repeat, then calm."""

    def look(self, stop: threading.Event) -> Disturbance | None:
        self.looks += 1
        return LOAD if self.looks % 4 else None


class Hesitant(Calm):
    """Somebody who pauses the effort and thinks better of it, again and again."""

    def __init__(self) -> None:
        super().__init__()
        self._turns = itertools.cycle([False, True])

    def wish(self) -> Wish:
        return Wish(paused=next(self._turns), by="somebody")


def live(home: Path, place: str | None, more: int, life: int) -> None:
    """Begin or go on for so many more experiments; die at `place` if one is given."""
    if place is not None:
        failpoints.arm(place)
    effort = Effort(home, Moody(life), baseline=train_py(100.0))
    machine = Machine(home.parent / "machine")
    effort.train_with(machine)
    effort.archive.stored = -EVERY  # so that every experiment makes a snapshot
    if place is not None and place.endswith(("paused", "resumed")):
        effort.world.surroundings = Hesitant()  # each pause takes a second
    effort.world.absence, effort.world.rehearsal = QUICK, Workshop()
    effort.world.slot, effort.world.noise = Restless(), NoiseConfig(retry_seconds=0.001)
    effort.world.prune = Retention(home, RetentionConfig(log_bytes=0, call_bytes=0)).prune
    loop = effort.loop(sum(record.data.event == "proposed" for record in read_records(home)) + more)
    sweep(home, effort.world, loop.state)
    recover(effort.world, Workspaces(machine), loop.state)
    loop.run()
    effort.close()
