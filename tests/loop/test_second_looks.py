"""What is looked at again: a rebased proposal is rehearsed anew, a repair is not asked for a second time."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from controller.core.errors import AgentError, AgentExhausted
from controller.core.events import (
    AgentFailed,
    ProposalAsked,
    ProposalDropped,
    ProposalRefused,
    ProposalRehearsed,
    Record,
)
from controller.core.experiment import Experiment
from controller.core.state import ResearchState
from controller.core.values import Cause, Change, Draw, Refusal, Score, Verdict, Work
from controller.ports import Attempt, Context
from controller.store.journal import read_records
from tests.loop.effort import Effort, start, verdicts
from tests.loop.slow import (
    PATIENCE,
    FakeRehearsal,
    PatientTrainer,
    Slow,
    Step,
    Watch,
    fails,
    insert,
    prepared,
)
from tests.support.fakes import FakeJudge, FakeTrainer, train_py

FIRST, SECOND = insert(2.9, "first"), insert(2.8, "second")


class Rehearsing(Slow):
    """Rehearses what it proposes, as `claude` does."""

    def propose(self, context: Context) -> Change:
        proposal = super().propose(context)
        assert context.services.rehearse(proposal.train_py) is None
        return proposal


def begin(efforts: list[Effort], home: Path, agent: Slow, experiments: int) -> Effort:
    """Every training lasts until the next proposal is ready."""
    effort = start(efforts, home, agent)
    watch = Watch()

    def ready(state: ResearchState) -> bool:
        return prepared(state) or state.next_number == experiments

    effort.train_with(PatientTrainer(lambda number: watch.until(ready)))
    effort.components.observer = watch
    return effort


class Thorough(FakeJudge):
    """Confirms the first change for as long as the third rehearsal takes to begin."""

    def __init__(self, trainer: FakeTrainer, rehearsal: FakeRehearsal) -> None:
        super().__init__(trainer)
        self._rehearsal = rehearsal

    def score(
        self,
        attempt: Attempt,
        seed: int,
        contends: Callable[[Score], bool],
        stop: threading.Event,
        draw: Draw | None = None,
        reference: Sequence[Work] = (),
    ) -> Score | Refusal:
        def confirmed(score: Score) -> bool:
            if not contends(score):
                return False
            end = time.monotonic() + PATIENCE
            while attempt.experiment == "1" and len(self._rehearsal.rehearsed) < 3:
                assert time.monotonic() < end
                time.sleep(0.01)
            return True

        return super().score(attempt, seed, confirmed, stop, draw, reference)


def both(train_py: str) -> bool:
    return "# first" in train_py and "# second" in train_py


def test_two_changes_that_fail_together_never_run_together(tmp_path: Path, efforts: list[Effort]) -> None:
    effort = begin(efforts, tmp_path, Rehearsing([FIRST, SECOND, insert(2.7, "third")]), 3)
    effort.components.rehearsal = rehearsal = FakeRehearsal(fails=both)
    effort.slot.judge = Thorough(effort.trainer, rehearsal)
    loop = effort.loop(experiments=3)
    loop.run()
    records = [record.data for record in read_records(tmp_path)]
    results = [event.result for event in records if isinstance(event, ProposalRehearsed)]
    assert results == ["passed", "passed", "failed", "passed"]
    dropped = [event.reason for event in records if isinstance(event, ProposalDropped)]
    assert len(dropped) == 1 and "on the new frontier its rehearsal failed: it raises" in dropped[0]
    assert "# third" in loop.effort.source(loop.state.experiments[2])
    assert rehearsal.threads[2] == "foresee"  # while the first change was being confirmed


@pytest.mark.parametrize(("inconclusive", "times"), [(False, 3), (True, 2)])
def test_what_taught_nothing_is_not_rehearsed_again(
    tmp_path: Path, efforts: list[Effort], inconclusive: bool, times: int
) -> None:
    effort = begin(efforts, tmp_path, Rehearsing([FIRST, SECOND]), 3)
    effort.components.rehearsal = rehearsal = FakeRehearsal(inconclusive=inconclusive)
    loop = effort.loop(experiments=3)
    loop.run()
    assert len(rehearsal.rehearsed) == times
    assert both(loop.effort.source(loop.state.experiments[2]))


class Repairing(Slow):
    """Answers the question for a repair as it is told."""

    def __init__(self, answer: Step | None) -> None:
        exhausted = fails(AgentExhausted("no more ideas"))
        super().__init__([insert(2.9, "crash NameError"), insert(2.7), exhausted])
        self.answer = answer
        self.asked: list[int] = []

    def fix(self, context: Context, crashed: Experiment) -> Change | None:
        self.asked.append(crashed.number)
        return None if self.answer is None else self.answer(context)


class Dying(Watch):
    """Ends the process as soon as a repair came to nothing."""

    def __init__(self) -> None:
        super().__init__()
        self._repair: int | None = None

    def recorded(self, record: Record, state: ResearchState) -> None:
        super().recorded(record, state)
        if isinstance(record.data, ProposalAsked) and record.data.purpose == "fix":
            self._repair = record.data.proposal
        match record.data:
            case (
                AgentFailed(proposal=ended)
                | ProposalDropped(proposal=ended)
                | ProposalRefused(proposal=ended)
            ):
                if ended == self._repair:
                    raise KeyboardInterrupt  # the process ends as soon as this is on record
            case _:
                return


def test_a_repair_is_a_second_attempt_at_the_same_idea(tmp_path: Path, efforts: list[Effort]) -> None:
    agent = Repairing(lambda context: Change(train_py=train_py(2.8), description="mended", idea="mending"))
    effort = start(efforts, tmp_path, agent)
    loop = effort.loop(experiments=3)
    loop.run()
    crashed, repair = (experiment.proposal for experiment in loop.state.experiments[1:])
    assert (repair.fixes, repair.idea, crashed.idea) == (1, "insert", "insert")


def nothing(context: Context) -> Change:
    return Change(train_py=context.train_py, description="nothing")


@pytest.mark.parametrize(
    ("answer", "kind"),
    [(None, ProposalDropped), (fails(AgentError("nonsense")), AgentFailed), (nothing, ProposalRefused)],
    ids=["none", "error", "refused"],
)
def test_a_repair_is_asked_for_once_in_all_lives(
    tmp_path: Path,
    efforts: list[Effort],
    answer: Step | None,
    kind: type[ProposalDropped | AgentFailed | ProposalRefused],
) -> None:
    agent = Repairing(answer)
    effort = start(efforts, tmp_path, agent)
    watch = Dying()
    effort.components.observer = watch
    effort.train_with(PatientTrainer(lambda number: watch.until(prepared)))
    with pytest.raises(KeyboardInterrupt):
        effort.loop().run()
    effort.train_with(PatientTrainer(lambda number: None, like=effort.trainer))
    effort.restart()
    loop = effort.loop()
    assert "no more ideas" in loop.run()
    assert agent.asked == [1]
    assert verdicts(loop.state)[1:] == [(Verdict.CRASH, Cause.NAME), (Verdict.KEEP, None)]
    events = [record.data for record in read_records(tmp_path)]
    (repair,) = [e.proposal for e in events if isinstance(e, ProposalAsked) and e.fixes == 1]
    ends = [e for e in events if isinstance(e, ProposalDropped | AgentFailed | ProposalRefused)]
    assert [type(end) for end in ends if end.proposal == repair] == [kind]
