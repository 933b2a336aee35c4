"""Asking ahead, absences and the understudy, with an agent that is slow and costs money."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from controller.core.errors import AgentAway, AgentError, Interrupted, UserError
from controller.core.events import (
    AgentAbsent,
    AgentFailed,
    AgentReturned,
    ExperimentOpened,
    ProposalDropped,
    ProposalMade,
    TrainingFinished,
    TrainingStarted,
)
from controller.core.rules import AbsenceConfig
from controller.core.state import ResearchState, fold
from controller.core.values import Cause, Change, Verdict
from controller.ports import Context
from controller.store.journal import read_records
from controller.store.verify import verify
from tests.loop.effort import Effort, verdicts
from tests.loop.slow import (
    PATIENCE,
    PRICE,
    QUICK,
    PatientTrainer,
    Quick,
    Slow,
    Step,
    begin,
    events,
    exhausted,
    fails,
    insert,
    prepared,
    swap,
    whole,
)
from tests.support.fakes import train_py


def all_calls_ended(home: Path) -> bool:
    return not fold(read_records(home)).spending.open


def test_the_next_proposal_is_ready_before_the_training_ends(tmp_path: Path, efforts: list[Effort]) -> None:
    agent = Slow([insert(2.9), insert(2.8), insert(2.7)])
    begin(efforts, tmp_path, agent, lambda state: prepared(state) or state.next_number == 3)
    loop = efforts[0].loop(experiments=3)
    loop.run()
    order = [
        e.event for e in events(tmp_path, ProposalMade, TrainingStarted, TrainingFinished, ExperimentOpened)
    ]
    assert order == [
        "proposal_made",
        "experiment_opened", "training_started", "proposal_made", "training_finished",
        "experiment_opened", "training_started", "proposal_made", "training_finished",
        "experiment_opened", "training_started", "training_finished",
    ]  # fmt: skip
    assert [e.proposal.number for e in loop.state.experiments] == [0, 1, 2]
    running = [known.number for context in agent.contexts for known in context.running]
    assert running == [0, 1] and threading.main_thread() not in agent.threads
    assert [e.verdict for e in loop.state.experiments] == [Verdict.KEEP] * 3
    assert [loop.state.spending.of(e.proposal.number).usd for e in loop.state.experiments] == [
        0.0,
        PRICE,
        PRICE,
    ]
    assert verify(tmp_path) == []


def test_edits_are_made_again_on_the_new_frontier(tmp_path: Path, efforts: list[Effort]) -> None:
    agent = Slow([insert(2.9, "first"), insert(2.8, "second"), exhausted()])
    begin(efforts, tmp_path, agent, lambda state: prepared(state) or state.next_number == 3)
    loop = efforts[0].loop()
    assert "no more ideas" in loop.run()
    first, second = loop.state.experiments[1:]
    assert second.parent == second.proposal.parent == first.commit
    text = loop.effort.source(second)
    assert "# first" in text and "# second" in text
    assert "+WIDTH = 2.8" in loop.effort.diff(second)
    assert "first" not in loop.effort.diff(second).replace(" WIDTH = 2.9  # first", "")


@pytest.mark.parametrize(
    ("step", "reason"),
    [
        (whole(train_py(2.6)), "as a whole"),
        (swap("WIDTH = 3.0", "WIDTH = 2.6"), "no longer applies"),
    ],
)
def test_what_does_not_fit_the_new_frontier_is_asked_again(
    tmp_path: Path, efforts: list[Effort], step: Step, reason: str
) -> None:
    agent = Slow([swap("WIDTH = 3.0", "WIDTH = 2.9"), step, insert(2.5), exhausted()])
    begin(efforts, tmp_path, agent, lambda state: prepared(state) or state.next_number == 3)
    loop = efforts[0].loop()
    loop.run()
    dropped = [str(event) for event in events(tmp_path, ProposalDropped)]
    assert [reason in text for text in dropped] == [True, False] and "no more ideas" in dropped[1]
    assert [e.proposal.number for e in loop.state.experiments] == [0, 1, 3]
    assert verify(tmp_path) == []


def test_a_repair_comes_first_and_what_was_prepared_after_it(tmp_path: Path, efforts: list[Effort]) -> None:
    agent = Slow([insert(2.9, "crash NameError"), insert(2.7), exhausted()], repair=insert(2.8))
    begin(efforts, tmp_path, agent, lambda state: prepared(state) or state.next_number == 4)
    loop = efforts[0].loop()
    loop.run()
    assert verdicts(loop.state)[1:] == [
        (Verdict.CRASH, Cause.NAME),
        (Verdict.KEEP, None),
        (Verdict.KEEP, None),
    ]
    repair, later = loop.state.experiments[2:]
    assert (repair.proposal.fixes, repair.proposal.purpose, repair.proposal.number) == (1, "fix", 3)
    assert (later.proposal.fixes, later.proposal.number) == (None, 2)
    spending = loop.state.spending
    assert [spending.of(e.proposal.number).usd for e in loop.state.experiments] == [0.0, PRICE, PRICE, PRICE]
    assert all_calls_ended(tmp_path) and verify(tmp_path) == []


def test_a_repair_is_asked_for_once(tmp_path: Path, efforts: list[Effort]) -> None:
    """Also if what comes of it is refused: this one is the frontier, unchanged."""
    agent = Slow(
        [insert(2.9, "crash NameError"), insert(2.7), exhausted()],
        repair=lambda context: Change(train_py=context.train_py, description="nothing"),
    )
    watch = begin(efforts, tmp_path, agent, lambda state: prepared(state) or state.next_number == 3)
    loop = efforts[0].loop()
    loop.run()
    assert verdicts(loop.state)[1:] == [(Verdict.CRASH, Cause.NAME), (Verdict.KEEP, None)]
    assert watch.events.count("proposal_refused") == 1


def test_an_agent_that_is_away_is_waited_for_and_asked_again(tmp_path: Path, efforts: list[Effort]) -> None:
    away = fails(AgentAway("The API is overloaded.", 0.0))
    agent = Slow([away, away, insert(2.9), exhausted()])
    begin(efforts, tmp_path, agent, lambda state: state.absence is not None or state.next_number == 2)
    loop = efforts[0].loop()
    loop.run()
    kinds = [e.event for e in events(tmp_path, AgentAbsent, AgentReturned)]
    assert kinds == ["agent_absent", "agent_absent", "agent_returned"]
    assert loop.state.absence is None
    assert verdicts(loop.state) == [(Verdict.KEEP, None)] * 2
    assert loop.state.spending.total.usd == PRICE
    assert verify(tmp_path) == []


def test_an_agent_that_will_never_answer_stops_the_loop_with_its_sentence(
    tmp_path: Path, efforts: list[Effort]
) -> None:
    agent = Slow([fails(AgentAway("The API refused the key.", None)), insert(2.9)])
    begin(efforts, tmp_path, agent, lambda state: state.absence is not None)
    with pytest.raises(UserError, match=r"^The API refused the key\.$"):
        efforts[0].loop().run()
    efforts[0].restart()  # a person changed something
    loop = efforts[0].loop(experiments=2)
    efforts[0].rule(absence=QUICK)
    loop.run()
    assert verdicts(loop.state) == [(Verdict.KEEP, None)] * 2 and loop.state.absence is None


def test_the_understudy_acts_and_is_marked_and_the_agent_comes_back(
    tmp_path: Path, efforts: list[Effort]
) -> None:
    """The agent is asked again while the understudy's first experiment trains."""
    agent = Slow([fails(AgentAway("The API is overloaded.", 0.0)), insert(2.7), exhausted()])

    def during(state: ResearchState) -> bool:
        baseline = state.next_number == 1 and state.absence is not None
        return baseline or (state.next_number == 2 and prepared(state)) or state.next_number == 3

    begin(efforts, tmp_path, agent, during)
    efforts[0].stand_in(Quick(insert(2.9), insert(2.8)))
    efforts[0].rule(
        absence=AbsenceConfig(understudy_after_seconds=0.0, retry_seconds=1.0, max_retry_seconds=1.0)
    )
    loop = efforts[0].loop()
    loop.run()
    _, stood_in, own = loop.state.experiments
    assert (stood_in.proposal.agent, stood_in.proposal.stands_in_for) == ("quick", "slow")
    assert (own.proposal.agent, own.proposal.stands_in_for) == ("slow", None)
    assert verify(tmp_path) == []


def test_an_understudy_goes_on_without_an_agent_that_is_gone(tmp_path: Path, efforts: list[Effort]) -> None:
    agent = Slow([fails(AgentAway("The API refused the key.", None))])
    begin(efforts, tmp_path, agent, lambda state: state.absence is not None)
    efforts[0].stand_in(Quick(insert(2.9), insert(2.8)))
    efforts[0].rule(absence=QUICK.model_copy(update={"understudy_after_seconds": 0.0}))
    loop = efforts[0].loop()
    with pytest.raises(UserError, match="refused the key"):
        loop.run()
    assert [e.proposal.stands_in_for for e in loop.state.experiments] == [None, "slow", "slow"]
    assert len(agent.contexts) == 1


def test_an_agent_that_fails_again_and_again_is_left_alone_for_a_while(
    tmp_path: Path, efforts: list[Effort]
) -> None:
    agent = Slow([fails(AgentError("nonsense"))] * 4 + [insert(2.9), exhausted()])
    begin(efforts, tmp_path, agent, lambda state: state.agent_errors_in_a_row > 0 or state.next_number == 2)
    loop = efforts[0].loop()
    loop.run()
    kinds = [e.event for e in events(tmp_path, AgentFailed, AgentAbsent, AgentReturned)]
    assert kinds == ["agent_failed"] * 3 + [
        "agent_absent", "agent_failed", "agent_absent", "agent_returned",
    ]  # fmt: skip
    assert verdicts(loop.state) == [(Verdict.KEEP, None)] * 2


def test_no_proposal_is_prepared_behind_the_last_experiment(tmp_path: Path, efforts: list[Effort]) -> None:
    agent = Slow([insert(2.9)])
    begin(efforts, tmp_path, agent, lambda state: prepared(state) or state.next_number == 2)
    efforts[0].loop(experiments=2).run()
    assert len(agent.contexts) == 1


def test_money_ends_the_effort_after_the_experiment_that_runs(tmp_path: Path, efforts: list[Effort]) -> None:
    """Two calls of 0.25, each reserving 0.5, fit into 0.8; a third might not."""
    agent = Slow([insert(2.9), insert(2.8), insert(2.7)])
    begin(efforts, tmp_path, agent, lambda state: prepared(state) or state.next_number == 3)
    loop = efforts[0].loop(dollars=0.8)
    assert "limit of 0.8 dollars reached" in loop.run()
    assert [e.verdict for e in loop.state.experiments] == [Verdict.KEEP] * 3
    assert loop.state.spending.total.usd == 2 * PRICE


def test_a_mistake_of_ours_in_the_other_thread_ends_the_loop(tmp_path: Path, efforts: list[Effort]) -> None:
    agent = Slow([fails(ZeroDivisionError("ours"))])
    begin(efforts, tmp_path, agent, lambda state: not state.spending.open)
    loop = efforts[0].loop()
    with pytest.raises(ZeroDivisionError):
        loop.run()
    assert all_calls_ended(tmp_path)


def test_nothing_is_recorded_while_the_state_is_written_down(tmp_path: Path, efforts: list[Effort]) -> None:
    agent = Slow([insert(2.9)])
    begin(efforts, tmp_path, agent, lambda state: prepared(state) or state.next_number == 2)
    free: list[bool] = []

    def publish(state: ResearchState) -> None:
        other = threading.Thread(target=lambda: free.append(loop.effort.lock.acquire(blocking=False)))
        other.start()
        other.join()

    efforts[0].components.publish = publish
    loop = efforts[0].loop(experiments=2)
    loop.run()
    assert free == [False, False]


def waits_for_stop(entered: threading.Event) -> Step:
    """Sits in a conversation until it is broken off."""

    def step(context: Context) -> Change:
        entered.set()
        assert context.services.stop.wait(PATIENCE)
        raise Interrupted("stopped")

    return step


def test_a_stop_ends_the_thread_and_the_call(tmp_path: Path, efforts: list[Effort]) -> None:
    entered = threading.Event()
    agent = Slow([waits_for_stop(entered)])
    begin(efforts, tmp_path, agent, lambda state: True)

    def stop_it(number: int) -> None:
        assert entered.wait(PATIENCE)
        efforts[0].stop.set()

    efforts[0].train_with(PatientTrainer(stop_it))
    with pytest.raises(Interrupted):
        efforts[0].loop().run()
    assert agent.threads and not agent.threads[0].is_alive()
    assert all_calls_ended(tmp_path)


def test_a_thread_that_hears_nothing_can_write_nothing_any_more(
    tmp_path: Path, efforts: list[Effort]
) -> None:
    """It answers when the loop is over and its grace is past; its call has an end by then."""
    entered, released = threading.Event(), threading.Event()

    def deaf(context: Context) -> Change:
        entered.set()
        assert released.wait(PATIENCE)
        return insert(2.9)(context)

    agent = Slow([deaf])
    begin(efforts, tmp_path, agent, lambda state: True)

    def break_it(number: int) -> None:
        assert entered.wait(PATIENCE)
        raise KeyboardInterrupt

    efforts[0].train_with(PatientTrainer(break_it))
    loop = efforts[0].loop()
    with pytest.raises(KeyboardInterrupt):
        loop.run()
    assert all_calls_ended(tmp_path)
    lines = len([*read_records(tmp_path)])
    released.set()
    agent.threads[0].join(PATIENCE)
    assert len([*read_records(tmp_path)]) == lines
