"""A proposal as its events tell it."""

from __future__ import annotations

from typing import Literal

import pytest

from controller.core.errors import ImpossibleHistory
from controller.core.events import ProposalAsked, ProposalMade, ProposalRebased, ProposalRehearsed
from controller.core.proposal import AnyStep, Proposal, advance, asked
from controller.core.values import Edit

EDITS = (Edit(old="a", new="b"),)
QUESTION = ProposalAsked(
    proposal=3, agent="claude", purpose="fix", parent="c0", fixes=2, merges=1, stands_in_for="tuner"
)
ANSWER = ProposalMade(
    proposal=3,
    description="wider",
    hypothesis="it helps",
    expected_effect=-0.01,
    idea="size",
    parameters={"WIDTH": 2},
    edits=EDITS,
    train_sha256="first",
)
REBASED = ProposalRebased(proposal=3, parent="c1", train_sha256="second")


def rehearsed(text: str, result: Literal["passed", "failed", "inconclusive"] = "passed") -> ProposalRehearsed:
    return ProposalRehearsed(proposal=3, train_sha256=text, result=result, detail="", seconds=1)


def told(*events: AnyStep) -> Proposal:
    proposal = asked(QUESTION, "2026-03-01T00:00Z")
    for event in events:
        proposal = advance(proposal, event)
    return proposal


def test_a_question_has_no_text_yet() -> None:
    known = told()
    assert (known.number, known.agent, known.purpose, known.parent) == (3, "claude", "fix", "c0")
    assert (known.fixes, known.merges, known.stands_in_for) == (2, 1, "tuner")
    assert known.asked_at == "2026-03-01T00:00Z"
    assert not known.is_made


def test_an_answer_adds_what_the_agent_said() -> None:
    known = told(ANSWER)
    assert known.is_made
    assert (known.description, known.hypothesis, known.expected_effect) == ("wider", "it helps", -0.01)
    assert (known.idea, known.parameters, known.edits) == ("size", {"WIDTH": 2}, EDITS)
    assert (known.train_sha256, known.parent, known.fixes) == ("first", "c0", 2)


def test_rebased_it_has_another_text_and_another_parent_and_is_the_same_idea() -> None:
    known = told(ANSWER, REBASED)
    assert (known.parent, known.train_sha256) == ("c1", "second")
    assert (known.description, known.edits) == ("wider", EDITS)


@pytest.mark.parametrize("events", [[REBASED], [ANSWER, ANSWER], [rehearsed("x"), REBASED]])
def test_what_cannot_follow(events: list[AnyStep]) -> None:
    with pytest.raises(ImpossibleHistory):
        told(*events)


@pytest.mark.parametrize(
    ("events", "rehearses"),
    [
        pytest.param([ANSWER], False, id="nothing was ever rehearsed"),
        pytest.param([rehearsed("first"), ANSWER], True, id="its text was"),
        pytest.param([rehearsed("draft", "failed"), rehearsed("first"), ANSWER], True, id="mended"),
        pytest.param([rehearsed("first", "failed"), ANSWER], True, id="a failure tells something"),
        pytest.param([rehearsed("first", "inconclusive"), ANSWER], False, id="nothing can be found out"),
        pytest.param(
            [rehearsed("first"), ANSWER, REBASED, rehearsed("second", "inconclusive")], False, id="any more"
        ),
    ],
)
def test_whether_it_is_worth_rehearsing(events: list[AnyStep], rehearses: bool) -> None:
    assert told(*events).rehearses == rehearses


def test_the_latest_rehearsal_of_a_text_counts() -> None:
    passed, other, failed = rehearsed("first"), rehearsed("second"), rehearsed("first", "failed")
    known = told(passed, ANSWER, other, failed)
    assert known.rehearsal_of("first") == failed
    assert known.rehearsal_of("second") == other
    assert known.rehearsal_of("third") is None
