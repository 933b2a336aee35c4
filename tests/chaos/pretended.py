"""A controller whose containers are only pretended, in a process of its own that can really be killed.

Journal, git, ledger, runs/, snapshot and pruning are real. What an engine would know outlives the process in
a file next to the home.
"""

from __future__ import annotations

import itertools
import os
import pickle
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from controller import failpoints
from controller.components import Slot
from controller.core.errors import AgentAway, AgentError, UserError
from controller.core.events import ExperimentOpened, Record, Verb
from controller.core.experiment import Experiment
from controller.core.hardware.disturbance import NoiseConfig
from controller.core.rules import AbsenceConfig, ReplicatesConfig, Wish
from controller.core.state import ResearchState
from controller.core.statistics.certificate import CertifyConfig
from controller.core.steering_request import SteeringRequest
from controller.core.values import Change, Disturbance, RehearsalResult, RunOutcome
from controller.ports import Attempt, Context
from controller.recovery import recover, sweep
from controller.store.requests import FOLDER, made, read, remove
from controller.store.retention import Retention, RetentionConfig
from controller.store.snapshot import EVERY, standing
from tests.loop.effort import Effort, Workspaces
from tests.loop.slow import Slow, Step, fails, insert, whole
from tests.support.fakes import LOAD, FakeJudge, FakeMonitor, FakeTrainer, RoomyHome, Silent, train_py

QUICK = AbsenceConfig(retry_seconds=0.001, max_retry_seconds=0.001)


class Machine(FakeTrainer):
    """Remembers in a file, as an engine remembers across the controllers that come and go; of all slots."""

    def __init__(self, memory: Path) -> None:
        super().__init__()
        self._memory, self._lock = memory, threading.Lock()
        if memory.exists():
            self.finished, self.workspaces, self.started = pickle.loads(memory.read_bytes())

    def train(self, attempt: Attempt, stop: threading.Event, tick: Callable[[float], None]) -> RunOutcome:
        with self._lock:
            try:
                return super().train(attempt, stop, tick)
            finally:
                self._remember()

    def discard(self, attempt: Attempt) -> None:
        with self._lock:
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


class Person:
    """Asks for this and that by turns; none of it half-written, as if in a process of its own."""

    def __init__(self, home: Path) -> None:
        self._home = home

    def ask(self, turn: int, context: Context) -> None:
        """Some of it cannot be granted."""
        finished, running = context.history[-1].number if context.history else 0, context.running
        best, keeps = context.frontier.val_bpb or 100.0, context.keeps
        back = [*keeps.provisional[-2:-1], keeps.certified, keeps.first]
        wishes: list[tuple[Verb, dict[str, Any]]] = [
            ("kill", {"target": running[-1].number if running else finished}),
            ("instruct", {"text": "Be brief."}),
            ("queue", {"train_py": train_py(best * 0.995, salt=turn), "text": "mine"}),
            ("kill", {"target": running[0].number if running else finished}),
            ("requeue", {"target": finished}),
            ("rollback", {"target": back[turn % len(back)]}),
            ("limit", {"limits": {"hours": 1000.0 + turn}}),
            ("hold", {"slot": 1}),
            ("rollback", {"target": keeps.first}),
            ("agent", {"agent": ("slow", "nobody")[turn % 2]}),
        ]
        verb, fields = wishes[turn % len(wishes)]
        self._submit(made(verb, "somebody", **fields))
        if verb == "hold":  # or what is left to do may be waiting for that slot for ever
            self._submit(made("release", "somebody", **fields))

    def _submit(self, request: SteeringRequest) -> None:
        outside = self._home.parent / request.id
        outside.write_text(request.model_dump_json(), encoding="utf-8")
        (self._home / FOLDER).mkdir(exist_ok=True)
        outside.rename(self._home / FOLDER / f"{request.id}.json")


class Visited(RoomyHome):
    """Surroundings that hear what persons ask for, as real ones do."""

    def __init__(self, home: Path) -> None:
        super().__init__()
        self._home = home

    def requests(self) -> tuple[SteeringRequest, ...]:
        return read(self._home)

    def answered(self, request: str) -> None:
        remove(self._home, request)


class Moody(Slow):
    """Asked ahead; takes the moods of a language model by turns, beginning at another one in each life."""

    def __init__(self, life: int, person: Person) -> None:
        super().__init__([], repair=insert(90.0, "mended"))
        self._person = person
        self._turns = itertools.count(life)

    def propose(self, context: Context) -> Change:
        turn, best = next(self._turns), context.frontier.val_bpb or 100.0
        number = len(context.history)
        if turn % 3 == 0:
            self._person.ask(turn // 3, context)
        moods: list[Step] = [
            insert(best * 0.99, description=f"better {turn}"),
            whole(train_py(best * 0.98, salt=number)),  # of no use once the frontier has moved
            insert(200.0 + number, description="worse"),
            whole(context.train_py),  # refused, unless the frontier has moved
            insert(best * 0.5, "claims 1000.0"),
            insert(90.0 + number, "crash NameError"),
            insert(best * 0.97, "broken"),
            insert(best * 0.96, "disturbed 1"),
            insert(best, "lucky", description=f"lucky {turn}"),
            fails(AgentAway("The API is overloaded.", 0.0)),
            fails(AgentError("It talked and did nothing.")),
        ]
        change = self._paid(moods[turn % len(moods)], context)
        context.services.rehearse(change.train_py)
        return change

    def fix(self, context: Context, crashed: Experiment) -> Change | None:
        """Every second crash is beyond repair."""
        return super().fix(context, crashed) if crashed.number % 2 else None


class Restless(FakeMonitor):
    """Disturbed for two looks after a run and one before its repeat, then calm."""

    def look(self, stop: threading.Event) -> Disturbance | None:
        self.looks += 1
        return LOAD if self.looks % 4 else None


class Hesitant(Visited):
    """Somebody who pauses the effort and thinks better of it, again and again."""

    def __init__(self, home: Path) -> None:
        super().__init__(home)
        self._turns = itertools.cycle([False, True])

    def wish(self) -> Wish:
        return Wish(paused=next(self._turns), by="somebody")


class Deadly(Silent):
    """Kills its process once an experiment was opened on the second slot."""

    def recorded(self, record: Record, state: ResearchState) -> None:
        if isinstance(record.data, ExperimentOpened) and record.data.slot == 1:
            os.kill(os.getpid(), signal.SIGKILL)
            signal.pause()


def _hired(agent: Moody, name: str) -> list[Moody]:
    if name != agent.name:
        raise UserError(f"There is no agent {name!r}.")
    return [agent]


SECOND_SLOT = "an experiment on the second slot"
"""A place of its own to die at: the next process may have no such slot."""


def live(home: Path, place: str | None, more: int, life: int, slots: int) -> None:
    """Begin or go on for so many more experiments; die at `place` if one is given."""
    if place not in (None, SECOND_SLOT):
        failpoints.arm(place)
    agent = Moody(life, Person(home))
    effort = Effort(home, agent, baseline=train_py(100.0))
    effort.components.surroundings = Visited(home)
    effort.components.hire = lambda name: _hired(agent, name)
    if place == SECOND_SLOT:
        effort.components.observer = Deadly()
    machine = Machine(home.parent / "machine")
    judges = [FakeJudge(machine, chance=0.001) for _ in range(slots)]
    effort.components.slots = [Slot(machine, judge, Restless()) for judge in judges]
    effort.archive.stored = -EVERY  # so that every experiment makes a snapshot
    if place is not None and place.endswith(("paused", "resumed")):
        effort.components.surroundings = Hesitant(home)  # each pause takes a second
    effort.components.rehearsal = Workshop()
    effort.components.prune = Retention(home, RetentionConfig(log_bytes=0, call_bytes=0)).prune
    noise = NoiseConfig(retry_seconds=0.001)
    effort.rule(
        slots=slots,
        absence=QUICK,
        is_watched=True,
        noise=noise,
        replicates=ReplicatesConfig(baseline=3, every=4),
        certify=CertifyConfig(share=1.0, keeps=2, pairs=4),
    )
    loop = effort.loop(standing(home)[0].candidates + more)
    sweep(home, effort.components, loop.state)
    recover(effort.components, Workspaces(machine), loop.state)
    loop.run()
    effort.close()
