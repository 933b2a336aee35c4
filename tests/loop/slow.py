"""An agent that takes its time and costs money, and a trainer that waits for it or not."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from controller.core.errors import AgentExhausted, Interrupted
from controller.core.events import AnyEvent, Record
from controller.core.experiment import Experiment
from controller.core.program.edits import rebase
from controller.core.rules import AbsenceConfig
from controller.core.state import ResearchState
from controller.core.values import Change, Edit, RehearsalResult, RunOutcome, Usage
from controller.ports import Attempt, Context, Request
from controller.store.journal import read_records
from tests.loop.effort import Effort, start
from tests.support.fakes import FakeTrainer, Silent

PRICE = 0.25
"""Dollars of each call."""
FIRST_LINE = '"""A train.py the fakes understand."""\n'

Step = Callable[[Context], Change]
PATIENCE = 20.0
"""Seconds after which a test that waits for something that never happens fails."""

QUICK = AbsenceConfig(retry_seconds=0.01, max_retry_seconds=0.02)


def insert(width: float, note: str = "", description: str = "an idea") -> Step:
    """A proposal that edits: the fakes go by the WIDTH that stands first."""

    def step(context: Context) -> Change:
        edits = (Edit(old=FIRST_LINE, new=f"{FIRST_LINE}\nWIDTH = {width}  # {note}\n"),)
        train_py = rebase(context.train_py, edits)
        return Change(train_py=train_py, description=description, idea="insert", edits=edits)

    return step


def swap(old: str, new: str) -> Step:
    """A proposal that edits what stands there."""

    def step(context: Context) -> Change:
        edits = (Edit(old=old, new=new),)
        return Change(train_py=rebase(context.train_py, edits), description="swapped", edits=edits)

    return step


def whole(text: str, description: str = "another text") -> Step:
    return lambda context: Change(train_py=text, description=description)


def fails(error: Exception) -> Step:
    def step(context: Context) -> Change:
        raise error

    return step


@dataclass
class Slow:
    """Plays its steps; each is one paid call. `fix` answers with `repair`, `combine` with `combined`."""

    steps: list[Step]
    repair: Step | None = None
    combined: Step | None = None
    name: str = "slow"
    asks_ahead: bool = True
    contexts: list[Context] = field(default_factory=list)
    threads: list[threading.Thread] = field(default_factory=list)

    def propose(self, context: Context) -> Change:
        self.contexts.append(context)
        self.threads.append(threading.current_thread())
        return self._paid(self.steps.pop(0), context)

    def fix(self, context: Context, crashed: Experiment) -> Change | None:
        return None if self.repair is None else self._paid(self.repair, context)

    def combine(self, context: Context, behind: Experiment) -> Change | None:
        return None if self.combined is None else self._paid(self.combined, context)

    def _paid(self, step: Step, context: Context) -> Change:
        call = context.services.sending(Request("explore", "m", {}, b"{}", 2 * PRICE))
        try:
            proposal = step(context)
        except Exception:
            context.services.failed(
                call, status=529, error="overloaded", usage=Usage(), seconds=0.0, cost_usd=0.0
            )
            raise
        usage = Usage(input_tokens=10, output_tokens=5)
        context.services.answered(
            call, reply=b"{}", stop_reason="tool_use", usage=usage, seconds=0.0, cost_usd=PRICE
        )
        return proposal


class FakeRehearsal:
    """`ports.Rehearsal` that goes by the text alone; by default every text fails that raises something."""

    def __init__(
        self, fails: Callable[[str], bool] = lambda train_py: "raise " in train_py, inconclusive: bool = False
    ) -> None:
        """`inconclusive`: it learns nothing, whatever the text."""
        self.rehearsed: list[str] = []
        self.threads: list[str] = []
        """Names of the threads that asked."""
        self._fails = fails
        self._inconclusive = inconclusive

    def rehearse(self, train_py: str, stop: threading.Event) -> RehearsalResult:
        if stop.is_set():
            raise Interrupted("asked to stop")
        self.rehearsed.append(train_py)
        self.threads.append(threading.current_thread().name)
        if self._inconclusive:
            return RehearsalResult(result="inconclusive", detail="no GPU", seconds=0.5)
        failed = self._fails(train_py)
        return RehearsalResult(
            result="failed" if failed else "passed", detail="it raises" if failed else "", seconds=0.5
        )


class Watch(Silent):
    """Lets a thread wait until the effort has come to some state."""

    def __init__(self) -> None:
        self.events: list[str] = []
        self._changed = threading.Condition()
        self._state = ResearchState()

    def recorded(self, record: Record, state: ResearchState) -> None:
        with self._changed:
            self.events.append(record.data.event)
            self._state = state
            self._changed.notify_all()

    def look_again(self) -> None:
        """Something changed that is no event."""
        with self._changed:
            self._changed.notify_all()

    def until(self, reached: Callable[[ResearchState], bool]) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: reached(self._state), PATIENCE)


class PatientTrainer(FakeTrainer):
    """Trains until something has happened, given the number of the experiment."""

    def __init__(self, during: Callable[[int], None], like: FakeTrainer | None = None) -> None:
        """`like`: a trainer that ran before on the same machine."""
        super().__init__()
        if like is not None:
            self.finished, self.workspaces, self.started = like.finished, like.workspaces, like.started
        self._during = during

    def train(self, attempt: Attempt, stop: threading.Event, tick: Callable[[float], None]) -> RunOutcome:
        outcome = super().train(attempt, stop, tick)
        self._during(int(attempt.experiment))
        return outcome


class Quick(Slow):
    """An understudy: it proposes at once, for nothing."""

    def __init__(self, *steps: Step) -> None:
        super().__init__([*steps], name="quick", asks_ahead=False)

    def propose(self, context: Context) -> Change:
        if not self.steps:
            raise AgentExhausted("the understudy has nothing more")
        return self.steps.pop(0)(context)


def exhausted() -> Step:
    return fails(AgentExhausted("no more ideas"))


def begin(efforts: list[Effort], home: Path, agent: Slow, during: Callable[[ResearchState], bool]) -> Watch:
    """An effort in which every training lasts until `during` is true of the state."""
    effort = start(efforts, home, agent)
    watch = Watch()
    effort.train_with(PatientTrainer(lambda number: watch.until(during)))
    effort.components.observer = watch
    effort.rule(absence=QUICK)
    return watch


def prepared(state: ResearchState) -> bool:
    return any(proposal.is_made for proposal in state.proposals.values())


def events(home: Path, *kinds: type[AnyEvent]) -> list[AnyEvent]:
    return [record.data for record in read_records(home) if isinstance(record.data, kinds)]
