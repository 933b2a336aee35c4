"""`show N --audit`: every record that belongs to an edit and none of another one, told safely."""

from __future__ import annotations

import json

from controller.core.events import (
    AgentAbsent,
    AgentFailed,
    AgentReturned,
    ProposalDropped,
    ProposalRebased,
    ProposalRehearsed,
    Pruned,
)
from controller.core.state import fold
from controller.core.values import Cause
from controller.views import audit
from controller.views import facts as views_json
from controller.views import tables as views
from controller.views.facts import Exhibit
from tests.support.efforts import Story
from tests.support.two_slots import StoryOfTwo
from tests.views.test_tables import HOSTILE, harmless, printed


def rehearsed(proposal: int, detail: str = "") -> ProposalRehearsed:
    return ProposalRehearsed(
        proposal=proposal, train_sha256="c" * 64, result="failed", detail=detail, seconds=4.0
    )


def rebased(proposal: int) -> ProposalRebased:
    return ProposalRebased(proposal=proposal, parent="1" * 40, train_sha256="d" * 64)


def repaired() -> Story:
    """Experiment 1 crashes; proposal 2 was asked for meanwhile; the repair, proposal 3, takes its place as
    experiment 2, and proposal 2 becomes experiment 3."""
    story = Asking()
    story.run("baseline", 2.0, holdout=7.654321)
    first = story.question()
    story.ask(0.5)
    story.tell(rehearsed(first))
    story.ask(0.25)
    story.propose("a slip")
    ahead = story.question()
    story.fail("overloaded")
    story.ask(1.0)
    story.answer("as it was asked for")
    story.crash()
    repair = story.question("fix", fixes=1)
    story.ask(0.125)
    story.tell(rehearsed(repair))
    story.run("repair", Cause.OOM)
    story.tell(rebased(ahead))
    story.run_made(ahead, 1.5)
    return story


class Asking(Story):
    """Opens proposals that were made earlier, too."""

    def run_made(self, proposal: int, result: float | Cause) -> None:
        """One whole experiment of a proposal that has its text."""
        self._made = proposal
        self.run("", result)
        self._made = None

    _made: int | None = None

    def answer(self, description: str = "an idea") -> int:
        return super().answer(description) if self._made is None else self._made


def events(story: Story, number: int) -> list[str]:
    return [record.data.event for record in audit.trail(story.records, number)]


MADE = ["proposal_made", "experiment_opened"]
RUN = ["training_started", "training_finished"]
CALL = ["api_requested", "api_answered"]


def test_what_was_asked_for_an_experiment_comes_before_it() -> None:
    first = ["proposal_asked", *CALL, "proposal_rehearsed", *CALL, *MADE, *RUN, "decided"]
    assert events(repaired(), 1) == first
    scored = ["scoring_started", "scoring_finished", "decided", "committed"]
    assert events(repaired(), 0) == ["proposal_asked", *MADE, *RUN, *scored]


def test_a_repair_does_not_take_over_what_was_asked_for_before_it() -> None:
    story = repaired()
    assert events(story, 2) == ["proposal_asked", *CALL, "proposal_rehearsed", *MADE, *RUN, "decided"]
    assert events(story, 3)[:8] == [
        *("proposal_asked", "api_requested", "api_failed", *CALL),
        *("proposal_made", "proposal_rebased", "experiment_opened"),
    ]
    costs = [[call["cost_usd"] for call in audit.calls(audit.trail(story.records, n))] for n in (1, 2, 3)]
    assert costs == [[0.5, 0.25], [0.125], [0.0, 1.0]]
    state = fold(story.records)
    proposals = [state.experiments[n].proposal.number for n in (1, 2, 3)]
    assert proposals == [1, 3, 2]
    assert [sum(cost) for cost in costs] == [state.spending.of(number).usd for number in proposals]


def test_every_record_of_an_agent_belongs_to_one_experiment() -> None:
    story = repaired()
    told = [record.seq for number in range(4) for record in audit.trail(story.records, number)]
    assert sorted(told) == list(range(2, len(story.records)))  # all but the starts of effort and session


def test_what_was_told_of_two_slots_at_once_belongs_to_one_of_them_each() -> None:
    story = StoryOfTwo()
    one, other = story.open(0, "one"), story.open(1, "other")
    story.ask(0.5)
    story.end(other, Cause.OOM)
    story.end(one, 1.9)
    asked = ["proposal_asked", *MADE, *RUN]
    assert events(story, one) == [*asked, "scoring_started", "scoring_finished", "decided", "committed"]
    assert events(story, other) == [*asked, "decided"]


def test_what_came_of_other_proposals_belongs_to_no_experiment() -> None:
    """A proposal that failed, was refused or was dropped is one of its own; so is an absence."""
    story = Story()
    story.run("baseline", 2.0)
    story.tell(AgentFailed(agent="claude", proposal=story.question(), reason="said nothing"))
    story.question()
    story.refuse("identical")
    dropped = story.question()
    story.fail("no route")
    story.tell(ProposalDropped(proposal=dropped, reason="no route"))
    story.tell(AgentAbsent(agent="claude", reason="no route", until=None))
    story.tell(AgentReturned(agent="claude", seconds=60.0))
    story.question()
    story.ask(0.5)
    story.propose()
    assert events(story, 1) == ["proposal_asked", *CALL, *MADE, "training_started"]
    told = [record.data.event for record in audit.trail_of_proposal(story.records, dropped)]
    assert told == ["proposal_asked", "api_requested", "api_failed", "proposal_dropped"]
    assert audit.trail_of_proposal(story.records, 99) == []


def test_what_was_removed_of_an_experiment_is_told() -> None:
    story = repaired()
    story.tell(Pruned(what="calls", before=2, bytes=100))
    story.tell(Pruned(what="logs", before=1, bytes=100))
    assert [events(story, number).count("pruned") for number in range(4)] == [1, 1, 0, 0]


def test_a_call_is_told_in_one_piece() -> None:
    story = Story()
    story.run("baseline", 2.0)
    story.ask(0.5)
    story.fail("overloaded")
    story.ask(None)
    story.propose()
    answered, failed, open_ = audit.as_json(audit.trail(story.records, 1))["calls"]
    assert answered["model"] == "some-model" and answered["parameters"]["max_tokens"] == 1024
    assert answered["request"] == f"blobs/aa/{'a' * 64}" and answered["reply"] == f"blobs/bb/{'b' * 64}"
    assert (answered["stop_reason"], answered["cost_usd"], answered["seconds"]) == ("tool_use", 0.5, 1.5)
    assert answered["usage"]["cache_read_tokens"] == 300
    assert (failed["status"], failed["error"], failed["reply"]) == (529, "overloaded", None)
    assert (open_["ended"], open_["reserved_usd"], open_["cost_usd"]) == (None, 2.0, None)


def test_show_tells_the_trail_for_people_and_programs_without_the_hold_out_score() -> None:
    story = repaired()
    state, trail = fold(story.records), audit.trail(story.records, 1)
    text = printed(views.show(Exhibit(state, 1, records=trail, audited=True)))
    for fact in (
        "some-model",
        "mode next",
        "max_tokens 1024",
        "$0.5000",
        "75% of them",
        "failed after 4",
    ):
        assert fact in text
    for number in range(4):
        trail = audit.trail(story.records, number)
        said = views_json.show(Exhibit(state, number, records=trail, audited=True))
        text = printed(views.show(Exhibit(state, number, records=trail, audited=True)))
        for output in (json.dumps(said, allow_nan=False), text):
            assert "7.654321" not in output and "holdout" not in output


def test_hostile_words_are_neutral_in_the_trail() -> None:
    story = Story()
    story.run("baseline", 2.0)
    proposal = story.question(stands_in_for=HOSTILE)
    story.ask(0.5, reply=HOSTILE)
    story.fail(HOSTILE)
    story.tell(rehearsed(proposal, HOSTILE + "\n" + HOSTILE))
    story.tell(AgentAbsent(agent=HOSTILE, reason=HOSTILE, until=None))
    story.propose(HOSTILE)
    state, trail = fold(story.records), audit.trail(story.records, 1)
    assert state.experiments[1].proposal.stands_in_for == HOSTILE
    assert harmless(printed(views.show(Exhibit(state, 1, records=trail, audited=True))))
    said = views_json.show(Exhibit(state, 1, records=trail, audited=True))
    assert harmless(json.dumps(said, ensure_ascii=False))
    assert harmless(printed(views.status(state, "2026-03-01")))
    assert harmless(json.dumps(views_json.status(state, "2026-03-01"), ensure_ascii=False))
