"""What a controller that died leaves to the next one, when an agent is asked in a thread of its own."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from controller.core.errors import AgentAway
from controller.core.events import (
    AnyEvent,
    ApiFailed,
    ApiRequested,
    ProposalAsked,
    ProposalDropped,
    ProposalMade,
    Record,
)
from controller.core.state import ResearchState
from controller.core.values import Cause, Change, Verdict
from controller.loop import Loop
from controller.ports import Context
from controller.recovery import recover, sweep
from controller.store.journal import Journal
from controller.store.verify import verify
from tests.core.telling import Told
from tests.loop.effort import Effort, Workspaces, start, verdicts
from tests.loop.slow import (
    QUICK,
    PatientTrainer,
    Quick,
    Slow,
    Watch,
    begin,
    events,
    exhausted,
    fails,
    insert,
    prepared,
    whole,
)
from tests.support.fakes import train_py


def _ask(loop: Loop, agent: str) -> None:
    parent = loop.state.base_commit or ""
    loop.effort.record(ProposalAsked(proposal=0, agent=agent, purpose="propose", parent=parent))


def test_what_was_prepared_outlives_the_controller(tmp_path: Path, efforts: list[Effort]) -> None:
    agent = Slow([insert(2.9), exhausted()])
    begin(efforts, tmp_path, agent, prepared)

    def die_when_prepared(number: int) -> None:
        watch.until(prepared)
        raise KeyboardInterrupt

    watch = Watch()
    efforts[0].components.observer = watch
    efforts[0].train_with(PatientTrainer(die_when_prepared))
    with pytest.raises(KeyboardInterrupt):
        efforts[0].loop().run()
    efforts[0].train_with(PatientTrainer(lambda number: None))
    efforts[0].restart()
    loop = efforts[0].loop(experiments=2)
    loop.run()
    assert loop.state.experiments[1].proposal.number == 1
    assert len(agent.contexts) == 1


def test_another_agent_drops_what_was_prepared(tmp_path: Path, efforts: list[Effort]) -> None:
    effort = start(efforts, tmp_path, Quick(insert(2.9)))
    loop = effort.loop()
    _ask(loop, "somebody")
    text = loop.effort.put_text(train_py(2.0))
    loop.effort.record(ProposalMade(proposal=0, description="", train_sha256=text))
    assert "nothing more" in loop.run()
    assert "somebody" in str(events(tmp_path, ProposalDropped)[0])


def test_a_call_of_a_dead_controller_is_ended_by_the_next(tmp_path: Path, efforts: list[Effort]) -> None:
    agent = Slow([insert(2.9)])
    effort = start(efforts, tmp_path, agent)
    loop = effort.loop()
    _ask(loop, agent.name)
    loop.effort.record(
        ApiRequested(
            call=0,
            proposal=0,
            model="m",
            request_sha256="0" * 64,
            request_bytes=0,
            reserved_usd=0.5,
        )
    )
    effort.restart()
    effort.loop(experiments=1).run()
    ended = events(tmp_path, ApiFailed)
    assert len(ended) == 1 and isinstance(ended[0], ApiFailed) and ended[0].cost_usd == 0.5


class Killed(BaseException):
    """What SIGKILL is to a process: no thread of it writes anything afterwards."""


class DyingJournal:
    """A journal whose process dies behind a given number of lines."""

    def __init__(self, journal: Journal, lines: int, dying: Callable[[], None]) -> None:
        self._journal = journal
        self._left = lines
        self._dying = dying

    def append(self, event: AnyEvent) -> Record:
        self.require_life()
        record = self._journal.append(event)
        self._left -= 1
        if self._left == 0:
            self._dying()
        return record

    def put_blob(self, content: bytes) -> str:
        self.require_life()
        return self._journal.put_blob(content)

    def get_blob(self, sha256: str) -> bytes:
        return self._journal.get_blob(sha256)

    def require_life(self) -> None:
        if self._left <= 0:
            raise Killed


class Thinker(Slow):
    """Has the same ideas in the same order in every life; one answer in each life is lost to an outage."""

    def __init__(self) -> None:
        super().__init__([], repair=insert(2.6, "mended"))
        self._outages = 1

    def propose(self, context: Context) -> Change:
        ran = [*context.history, *context.running]
        idea = sum(1 for experiment in ran if experiment.proposal.fixes is None)
        if idea == 3 and self._outages:
            self._outages -= 1
            self.steps = [fails(AgentAway("The API is overloaded.", 0.0))]
        else:
            self.steps = [
                [insert(2.5), insert(2.75, "crash NameError"), whole(train_py(2.4)), exhausted()][idea - 1]
            ]
        return super().propose(context)


def live(effort: Effort, lines: int | None = None) -> ResearchState:
    """Run an effort to its end, or until its process dies behind so many lines of the journal."""
    watch, dead = Watch(), threading.Event()

    def die() -> None:
        dead.set()
        watch.look_again()

    def spoken(state: ResearchState) -> bool:
        """What the agent is asked during a training has been answered, one way or another."""
        ideas = sum(1 for experiment in state.experiments if experiment.proposal.fixes is None)
        return dead.is_set() or prepared(state) or state.absence is not None or ideas == 4

    effort.train_with(PatientTrainer(lambda number: watch.until(spoken), like=effort.trainer))
    effort.components.observer = watch
    effort.rule(absence=QUICK)
    if lines is not None:
        assert isinstance(effort.components.journal, Journal)
        effort.components.journal = DyingJournal(effort.components.journal, lines, die)
        with pytest.raises(Killed):
            effort.loop().run()
        return ResearchState()
    loop = effort.loop()
    recover(effort.components, Workspaces(effort.trainer), loop.state)
    loop.run()
    return loop.state


def test_what_was_half_written_for_another_slot_long_ago_is_removed(
    tmp_path: Path, efforts: list[Effort]
) -> None:
    """While one slot was closing experiment 1, the other one opened 2 and 3."""
    effort = start(efforts, tmp_path, Thinker())
    told = Told().baseline().opened(0).opened(1)
    for number in (1, 2):
        told.judged(2.5, of=number).decided(Verdict.DISCARD, Cause.WORSE, of=number)
    told.opened(1).judged(2.5).decided(Verdict.DISCARD, Cause.WORSE).opened(1)
    folder = effort.components.runs.folder(1)
    folder.mkdir(parents=True)
    for name in (".experiment.json.x.partial", "run.log"):
        (folder / name).write_bytes(b"")
    sweep(tmp_path, effort.components, told.state)
    assert [path.name for path in folder.iterdir()] == ["run.log"]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_going_on_after_any_journal_line_gives_the_same_story(
    tmp_path: Path, efforts: list[Effort], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also if the line was written by the thread in which an agent was asked ahead."""
    # The loop asks ahead when it next looks, and each training here lasts until it has asked.
    monkeypatch.setattr("controller.loop._LONGEST_WAIT", 0.2)
    whole_effort = start(efforts, tmp_path / "whole", Thinker())
    reference = live(whole_effort)
    assert verdicts(reference) == [
        (Verdict.KEEP, None),
        (Verdict.KEEP, None),
        (Verdict.CRASH, Cause.NAME),
        (Verdict.DISCARD, Cause.WORSE),
        (Verdict.KEEP, None),
    ]
    for after in range(1, reference.seq):
        home = tmp_path / f"killed-after-{after}"
        effort = start(efforts, home, Thinker())
        live(effort, after)
        effort.agent = Thinker()
        effort.restart()
        state = live(effort)
        assert verdicts(state) == verdicts(reference), after
        assert effort.git_log() == whole_effort.git_log()
        assert state.spending.open == {} and state.proposals == {} and state.absence is None
        assert not effort.trainer.workspaces
        assert verify(home) == []
