"""What an effort does while nothing may begin: it waits, says so on record, and goes on by itself."""

from __future__ import annotations

import datetime as dt
import threading
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import pytest

from controller.app.service import retried, stay
from controller.core.errors import (
    AgentExhausted,
    InfrastructureError,
    Interrupted,
    NotReady,
    Unfit,
    UserError,
)
from controller.core.events import AnyEvent, Paused, Resumed, SessionStarted, SessionStopped, Voided
from controller.core.experiment import Experiment
from controller.core.rules import RetryConfig, Wish
from controller.core.state import fold
from controller.core.values import Change, Draw, Refusal, RunOutcome, Score, Verdict, Work
from controller.loop import Loop
from controller.ports import Attempt, Context
from controller.store import pause, requests
from controller.store.journal import Journal, read_records
from controller.store.pause import HomeSurroundings
from controller.store.snapshot import standing
from controller.store.verify import verify
from tests.loop.effort import Effort, start
from tests.support.efforts import PROVENANCE
from tests.support.fakes import FakeJudge, FakeTrainer, HandClock, Hasty, RoomyHome, Silent, train_py

CONFIG = RetryConfig(first_seconds=10, max_seconds=900)
FAULT = InfrastructureError("the engine \x1b[31mwent away.")


class Two:
    """Proposes twice."""

    name = "two"
    asks_ahead = False

    def propose(self, context: Context) -> Change:
        if len(context.history) == 3:
            raise AgentExhausted("enough")
        return Change(train_py=train_py(2.9 - 0.1 * len(context.history)), description="better")

    def fix(self, context: Context, crashed: Experiment) -> None:
        return None

    def combine(self, context: Context, behind: Experiment) -> None:
        return None


class Ill(FakeJudge):
    """Fails so many times before it works."""

    def __init__(self, trainer: FakeTrainer, faults: int) -> None:
        super().__init__(trainer)
        self.faults = faults

    def score(
        self,
        attempt: Attempt,
        seed: int,
        contends: Callable[[Score], bool],
        stop: threading.Event,
        draw: Draw | None = None,
        reference: Sequence[Work] = (),
    ) -> Score | Refusal:
        if self.faults > 0:
            self.faults -= 1
            raise FAULT
        return super().score(attempt, seed, contends, stop, draw, reference)


@pytest.fixture
def effort(tmp_path: Path, efforts: list[Effort]) -> Iterator[Effort]:
    """On a clock that every wait moves."""
    effort = start(efforts, tmp_path / "home", Two())
    clock = HandClock()
    effort.components.clock = clock
    effort.components.stop = Hasty(clock)
    effort.rule(retry=CONFIG)
    yield effort
    assert not (effort.home / "results.tsv").exists() or verify(effort.home) == []


def told(effort: Effort) -> list[AnyEvent]:
    """What the journal says of pauses and of attempts that came to nothing."""
    return [r.data for r in read_records(effort.home) if isinstance(r.data, Paused | Resumed | Voided)]


def during_waits(effort: Effort, act: Callable[[int], None]) -> list[int]:
    """Call `act` with the number of each wait, from 0."""
    waits: list[int] = []

    def meanwhile() -> None:
        waits.append(len(waits))
        act(waits[-1])

    assert isinstance(effort.components.clock, HandClock)
    effort.components.stop = Hasty(effort.components.clock, meanwhile)
    return waits


def test_a_machine_that_fails_for_long_is_waited_for(effort: Effort) -> None:
    effort.slot.judge = Ill(effort.trainer, faults=7)
    loop = effort.loop()
    assert "enough" in loop.run()
    assert [e.verdict for e in loop.state.experiments] == [Verdict.KEEP] * 3
    events = told(effort)
    assert [type(event) for event in events] == [Voided] * 3 + [Paused, Voided] * 4 + [Paused, Resumed]
    pauses = [event for event in events if isinstance(event, Paused)]
    assert all(event.why == "infrastructure" and event.until for event in pauses)
    assert pauses[0].reason == "3 infrastructure faults in a row; the last was: the engine went away."
    assert isinstance(events[-1], Resumed) and events[-1].seconds == 10 + 20 + 40 + 80 + 160
    assert loop.state.experiments[0].attempt == 8


def test_a_pause_begins_with_the_fault_however_long_the_run_took(effort: Effort) -> None:
    class Long(FakeTrainer):
        def train(self, attempt: Attempt, stop: threading.Event, tick: Callable[[float], None]) -> RunOutcome:
            clock = effort.components.clock
            assert isinstance(clock, HandClock)
            clock.sleep(300.0)
            if attempt.number <= 4:
                faults_at.append(clock.wall)
                raise FAULT
            return super().train(attempt, stop, tick)

    faults_at: list[dt.datetime] = []
    effort.train_with(Long())
    effort.loop(experiments=1).run()
    pauses = [dt.datetime.fromisoformat(e.until) for e in told(effort) if isinstance(e, Paused) and e.until]
    waits = [until - fault for until, fault in zip(pauses, faults_at[2:], strict=True)]
    assert [wait.total_seconds() for wait in waits] == pytest.approx([10, 20], abs=0.1)


def test_a_run_may_be_told_to_end_instead(effort: Effort) -> None:
    effort.rule(retry=RetryConfig(stop_after=3))
    effort.slot.judge = Ill(effort.trainer, faults=3)
    loop = effort.loop()
    with pytest.raises(NotReady, match=r"3 infrastructure faults .* `glovebox doctor`"):
        loop.run()
    assert [experiment.number for experiment in loop.state.open] == [0]
    assert not effort.trainer.workspaces


def test_a_limit_and_a_person_end_a_wait(effort: Effort) -> None:
    effort.slot.judge = Ill(effort.trainer, faults=1000)
    clock = effort.components.clock
    assert isinstance(clock, HandClock)
    loop = effort.loop(hours=2.0)
    assert "2 hours" in loop.run()
    assert 7200 <= clock.seconds < 7210
    effort.restart()
    effort.components.clock = HandClock()
    effort.slot.judge = Ill(effort.trainer, faults=1000)
    waits = during_waits(effort, lambda wait: effort.components.stop.set() if wait == 3 else None)
    with pytest.raises(Interrupted):
        effort.loop().run()
    assert len(waits) == 4


def test_hours_are_those_of_all_sessions_by_the_clock_that_never_steps(tmp_path: Path) -> None:
    clock = HandClock()
    journal = Journal(tmp_path, clock)
    for step in (3600.0, -7200.0):
        journal.append(SessionStarted(agent="a", budget_seconds=1, provenance=PROVENANCE))
        clock.sleep(1800)
        journal.append(SessionStopped(reason="a person"))
        clock.sleep(1800)  # nobody is at work
        clock.wall += dt.timedelta(seconds=step)
    journal.append(SessionStarted(agent="a", budget_seconds=1, provenance=PROVENANCE))
    state = fold(read_records(tmp_path))
    assert state.worked_seconds == state.earlier_seconds == 3600
    clock.wall -= dt.timedelta(hours=1)
    journal.append(SessionStopped(reason="a person"))
    assert fold(read_records(tmp_path)).worked_seconds == 3600
    journal.close()


@pytest.mark.parametrize(("hours", "reason"), [(1.0, "limit of 1 hours reached"), (1.5, None)])
def test_a_new_session_counts_on_from_the_hours_of_those_before(
    effort: Effort, hours: float, reason: str | None
) -> None:
    state = effort.loop(hours=hours).state
    state.earlier_seconds = 3600.0
    assert Loop(effort.components, state, 20.0).limit() == reason


def test_a_pause_lets_the_running_experiment_finish_and_survives_a_restart(effort: Effort) -> None:
    surroundings = HomeSurroundings(effort.home, min_free_bytes=0)
    effort.components.surroundings = surroundings

    class Asking(FakeTrainer):
        def train(self, attempt: Attempt, stop: threading.Event, tick: Callable[[float], None]) -> RunOutcome:
            if attempt.experiment == "1":
                pause.write(effort.home, paused=True, reason="lunch\x1b]0;x\x07 = 1")
            return super().train(attempt, stop, tick)

    effort.train_with(Asking())
    during_waits(effort, lambda wait: effort.components.stop.set() if wait == 4 else None)
    loop = effort.loop()
    with pytest.raises(Interrupted):
        loop.run()
    assert [e.verdict for e in loop.state.experiments] == [Verdict.KEEP] * 2
    assert loop.state.pause is not None
    assert loop.state.pause.event.reason == "lunch = 1" and "@" in loop.state.pause.event.by

    effort.restart()
    effort.components.surroundings, effort.components.clock = surroundings, HandClock()
    during_waits(effort, lambda wait: pause.write(effort.home, paused=False) if wait == 9 else None)
    assert standing(effort.home)[0].pause is not None
    loop = effort.loop()
    loop.run()
    assert len(loop.state.experiments) == 3 and loop.state.pause is None
    paused, resumed = told(effort)
    assert isinstance(paused, Paused) and isinstance(resumed, Resumed)
    assert (resumed.why, resumed.by, resumed.seconds) == ("person", paused.by, 10)


def test_an_experiment_that_is_to_be_repeated_waits_for_the_end_of_a_pause(effort: Effort) -> None:
    surroundings = effort.surroundings
    judge = effort.slot.judge = Ill(effort.trainer, faults=1)
    surroundings.wished = Wish(paused=True, by="me", reason="maintenance")
    waits = during_waits(effort, lambda wait: setattr(surroundings, "wished", Wish(paused=False, by="you")))
    effort.loop().run()
    assert judge.faults == 0 and len(waits) == 1
    assert told(effort)[:2] == [
        Paused(why="person", by="me", reason="maintenance"),
        Resumed(why="person", by="you", seconds=1.0),
    ]


def test_nothing_begins_while_the_disk_is_short(effort: Effort) -> None:
    surroundings = effort.surroundings
    surroundings.short = True
    waits = during_waits(effort, lambda wait: setattr(surroundings, "short", wait < 4))
    effort.loop().run()
    assert len(waits) == 5 and len(effort.trainer.started) == 3
    assert told(effort) == [
        Paused(why="disk", reason="The disk is full."),
        Resumed(why="disk", seconds=5.0),
    ]


class Watching(Silent):
    """Hears what a sign of life is made of."""

    def __init__(self) -> None:
        self.rounds = 0
        self.trained: list[tuple[int, float, float]] = []

    def training(self, experiment: int, elapsed: float, limit: float) -> None:
        self.trained.append((experiment, elapsed, limit))

    def alive(self) -> None:
        self.rounds += 1


def test_whoever_watches_hears_in_every_wait_and_of_every_training(effort: Effort) -> None:
    watching = effort.components.observer = Watching()
    surroundings, heard = effort.surroundings, [0]
    surroundings.short = True

    def meanwhile(wait: int) -> None:
        surroundings.short = wait < 4
        heard.append(watching.rounds)

    during_waits(effort, meanwhile)
    effort.loop().run()
    assert len(heard) == 6 and all(before < after for before, after in pairwise(heard))
    assert watching.trained == [(0, 0.0, 20.0), (1, 0.0, 20.0), (2, 0.0, 20.0)]


def test_a_run_under_which_the_disk_fills_is_stopped_and_repeated(effort: Effort) -> None:
    class Filling(RoomyHome):
        """The disk fills when the first experiment runs."""

        def shortage(self, share: float = 1.0) -> str | None:
            assert share in (1.0, 0.25), "a run that goes on may take up most of the room"
            self.short = self.short or (share < 1 and not waits)
            return super().shortage(share)

    surroundings = effort.components.surroundings = Filling()
    waits = during_waits(effort, lambda wait: setattr(surroundings, "short", False))
    loop = effort.loop()
    loop.run()
    assert [type(event) for event in told(effort)] == [Voided, Paused, Resumed]
    assert effort.trainer.started == [("0", 1), ("0", 2), ("1", 1), ("2", 1)]


def test_a_pause_that_cannot_be_written_down_is_kept_all_the_same(effort: Effort) -> None:
    surroundings = effort.surroundings
    surroundings.short = True
    loop = effort.loop()
    record = effort.components.journal.append

    class Full:
        """A journal on a disk as full as the surroundings say."""

        def __getattr__(self, name: str) -> object:
            return getattr(journal, name)

        def append(self, event: AnyEvent) -> object:
            if surroundings.short:
                raise InfrastructureError("The journal cannot be written: No space left on device.")
            return record(event)

    journal = effort.components.journal
    effort.components.journal = Full()  # type: ignore[assignment]
    waits = during_waits(effort, lambda wait: setattr(surroundings, "short", wait < 2))
    loop = type(loop)(effort.components, loop.state, 20.0)
    loop.run()
    assert len(waits) == 3 and told(effort) == [] and len(loop.state.experiments) == 3


def test_free_space_is_that_of_the_file_system(tmp_path: Path) -> None:
    assert HomeSurroundings(tmp_path, 1, Path("/nowhere")).shortage() is None
    for where in (HomeSurroundings(tmp_path, 2**60), HomeSurroundings(Path("/nowhere"), 2**60, tmp_path)):
        assert str(tmp_path) in str(where.shortage()) and str(where.shortage(0.25)).count("\n") == 0
    assert HomeSurroundings(tmp_path, 2**60).shortage(2.0**-60) is None


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b'{"paused": true}', b'{"paused": 1, "by": "", "reason": ""}', b"[" * 9999]
)
def test_a_wish_that_cannot_be_read_is_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / pause.NAME).parent.mkdir()
    (tmp_path / pause.NAME).write_bytes(content)
    assert not pause.read(tmp_path).paused


def test_a_wish_that_cannot_be_left_is_refused_in_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot be written: No such file or directory\."):
        pause.write(tmp_path / "nowhere", paused=True)
    pause.write(tmp_path / "nowhere", paused=False)


def test_an_effort_that_breaks_down_is_begun_anew() -> None:
    clock, seen = HandClock(), []
    ends: list[Exception | str] = [FAULT, NotReady("no engine"), FAULT, FAULT, "a limit"]

    def attempt() -> str:
        end = ends.pop(0)
        if isinstance(end, Exception):
            raise end
        return end

    reason = retried(attempt, CONFIG, clock, Hasty(clock), lambda reason, left: seen.append((reason, left)))
    assert reason == "a limit"
    assert clock.seconds == 10 + 10 + 10 + 20
    assert seen[0] == ("the engine went away.", 10)


def test_a_machine_that_is_not_fit_at_first_is_not_waited_for() -> None:
    clock = HandClock()

    def attempt() -> str:
        raise NotReady("no engine")

    with pytest.raises(NotReady, match="no engine"):
        retried(attempt, CONFIG, clock, Hasty(clock), lambda reason, left: None)
    assert clock.seconds == 0


def test_a_person_ends_the_wait_for_a_new_beginning() -> None:
    clock = HandClock()

    def press_ctrl_c() -> None:
        stop.set()

    stop = Hasty(clock, press_ctrl_c)

    def attempt() -> str:
        raise FAULT

    with pytest.raises(Interrupted):
        retried(attempt, CONFIG, clock, stop, lambda reason, left: None)
    assert clock.seconds == 1


def test_a_machine_that_will_not_be_fit_by_itself_is_not_waited_for() -> None:
    clock, ends = HandClock(), [FAULT, Unfit("no user in the image")]

    def attempt() -> str:
        raise ends.pop(0)

    with pytest.raises(Unfit):
        retried(attempt, CONFIG, clock, Hasty(clock), lambda reason, left: None)
    assert clock.seconds == 10  # the fault before it


@pytest.mark.parametrize(("error", "waits"), [(Unfit("no user"), True), (NotReady("no engine"), False)])
def test_a_service_stays_when_only_a_person_can_help(error: NotReady, waits: bool, tmp_path: Path) -> None:
    waited = threading.Event()

    def work() -> str:
        raise error

    with pytest.raises(type(error)):
        stay(work, tmp_path, Staying(waited))
    assert waited.is_set() is waits


def test_a_service_that_has_ended_goes_on_when_a_person_asks_for_something(tmp_path: Path) -> None:
    reasons = ["limit of 4 experiments reached", "limit of 5 experiments reached"]
    asked, stop = [*reasons], threading.Event()

    def work() -> str:
        for request in requests.read(tmp_path):
            requests.remove(tmp_path, request.id)
        if len(asked) == len(reasons):
            requests.submit(tmp_path, requests.made("limit", "somebody", limits={"experiments": 5}))
        else:
            stop.set()
        return asked.pop(0)

    assert stay(work, tmp_path, stop) == reasons[1] and asked == []


class Staying(threading.Event):
    """A stop event that says whether somebody waited for it, and comes at once."""

    def __init__(self, waited: threading.Event) -> None:
        super().__init__()
        self._waited = waited

    def wait(self, timeout: float | None = None) -> bool:
        self._waited.set()
        return True
