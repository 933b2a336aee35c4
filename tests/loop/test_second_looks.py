"""What is looked at again: a rebased proposal is rehearsed anew, a repair is not asked for a second time."""

from __future__ import annotations

from pathlib import Path

import pytest

from controller.core.errors import AgentError, AgentExhausted, Interrupted
from controller.core.events import PreparationDropped, ProposalRefused, Record, Rehearsed, RepairGivenUp
from controller.core.experiment import Experiment
from controller.core.state import ResearchState
from controller.core.values import Cause, Proposal, Verdict
from controller.ports import Context
from controller.store.journal import read_records
from tests.loop.effort import Effort, start, verdicts
from tests.loop.slow import FakeRehearsal, PatientTrainer, Slow, Step, Watch, fails, insert
from tests.support.fakes import train_py

FIRST, SECOND = insert(2.9, "first"), insert(2.8, "second")


class Rehearsing(Slow):
    """Rehearses what it proposes, as `claude` does."""

    def propose(self, context: Context) -> Proposal:
        proposal = super().propose(context)
        assert context.services.rehearse(proposal.train_py) is None
        return proposal


def begin(efforts: list[Effort], home: Path, agent: Slow, experiments: int) -> Effort:
    """Every training lasts until the next proposal is ready."""
    effort = start(efforts, home, agent)
    watch = Watch()

    def ready(state: ResearchState) -> bool:
        return state.prepared is not None or state.next_number == experiments

    effort.train_with(PatientTrainer(lambda number: watch.until(ready)))
    effort.world.observer = watch
    return effort


def both(train_py: str) -> bool:
    return "# first" in train_py and "# second" in train_py


def test_two_changes_that_fail_together_never_run_together(tmp_path: Path, efforts: list[Effort]) -> None:
    effort = begin(efforts, tmp_path, Rehearsing([FIRST, SECOND, insert(2.7, "third")]), 3)
    effort.world.rehearsal = rehearsal = FakeRehearsal(fails=both)
    loop = effort.loop(experiments=3)
    loop.run()
    records = [record.data for record in read_records(tmp_path)]
    results = [event.result for event in records if isinstance(event, Rehearsed)]
    assert results == ["passed", "passed", "failed", "passed"]
    dropped = [event.reason for event in records if isinstance(event, PreparationDropped)]
    assert len(dropped) == 1 and "on the new frontier its rehearsal failed: it raises" in dropped[0]
    assert "# third" in loop.chronicle.source(loop.state.experiments[2])
    assert rehearsal.threads[2] == "foresight"  # while the first change was being confirmed


@pytest.mark.parametrize(("inconclusive", "times"), [(False, 3), (True, 2)])
def test_what_taught_nothing_is_not_rehearsed_again(
    tmp_path: Path, efforts: list[Effort], inconclusive: bool, times: int
) -> None:
    effort = begin(efforts, tmp_path, Rehearsing([FIRST, SECOND]), 3)
    effort.world.rehearsal = rehearsal = FakeRehearsal(inconclusive=inconclusive)
    loop = effort.loop(experiments=3)
    loop.run()
    assert len(rehearsal.rehearsed) == times
    assert both(loop.chronicle.source(loop.state.experiments[2]))


class Repairing(Slow):
    """Answers the question for a repair as it is told."""

    def __init__(self, answer: Step | None) -> None:
        exhausted = fails(AgentExhausted("no more ideas"))
        super().__init__([insert(2.9, "crash NameError"), insert(2.7), exhausted])
        self.answer = answer
        self.asked: list[int] = []

    def fix(self, context: Context, crashed: Experiment) -> Proposal | None:
        self.asked.append(crashed.number)
        return None if self.answer is None else self.answer(context)


class Dying(Watch):
    def recorded(self, record: Record, state: ResearchState) -> None:
        super().recorded(record, state)
        if state.repair_tried is not None:
            raise Interrupted("the process ends as soon as this is on record")


def test_a_repair_is_a_second_attempt_at_the_same_idea(tmp_path: Path, efforts: list[Effort]) -> None:
    agent = Repairing(lambda context: Proposal(train_py=train_py(2.8), description="mended", idea="mending"))
    effort = start(efforts, tmp_path, agent)
    loop = effort.loop(experiments=3)
    loop.run()
    crashed, repair = (experiment.proposal for experiment in loop.state.experiments[1:])
    assert (repair.fixes, repair.idea, crashed.idea) == (1, "insert", "insert")


def nothing(context: Context) -> Proposal:
    return Proposal(train_py=context.train_py, description="nothing")


@pytest.mark.parametrize(
    ("answer", "kind"),
    [(None, RepairGivenUp), (fails(AgentError("nonsense")), RepairGivenUp), (nothing, ProposalRefused)],
    ids=["none", "error", "refused"],
)
def test_a_repair_is_asked_for_once_in_all_lives(
    tmp_path: Path, efforts: list[Effort], answer: Step | None, kind: type[RepairGivenUp | ProposalRefused]
) -> None:
    agent = Repairing(answer)
    effort = start(efforts, tmp_path, agent)
    watch = Dying()
    effort.world.observer = watch
    effort.train_with(PatientTrainer(lambda number: watch.until(lambda state: state.prepared is not None)))
    with pytest.raises(Interrupted):
        effort.loop().run()
    effort.train_with(PatientTrainer(lambda number: None, like=effort.trainer))
    effort.restart()
    loop = effort.loop()
    assert "no more ideas" in loop.run()
    assert agent.asked == [1]
    assert verdicts(loop.state)[1:] == [(Verdict.CRASH, Cause.NAME), (Verdict.KEEP, None)]
    ends = [record.data for record in read_records(tmp_path) if isinstance(record.data, kind)]
    assert [end.fixes for end in ends] == [1]
