"""`show N --audit`: every record that belongs to an edit and none of another one, told safely."""

from __future__ import annotations

import json

from controller.core.events import (
    AgentAbsent,
    AgentFailed,
    AgentReturned,
    PreparationDropped,
    Prepared,
    Pruned,
    Rehearsed,
)
from controller.core.state import fold
from controller.core.values import Cause
from controller.views import audit
from controller.views import facts as views_json
from controller.views import tables as views
from controller.views.facts import Exhibit
from tests.support.efforts import Story
from tests.views.test_tables import HOSTILE, harmless, printed


def rehearsed(experiment: int, detail: str = "") -> Rehearsed:
    return Rehearsed(
        for_experiment=experiment, train_sha256="c" * 64, result="failed", detail=detail, seconds=4.0
    )


def prepared(experiment: int) -> Prepared:
    return Prepared(
        for_experiment=experiment,
        agent="claude",
        parent="0" * 40,
        description="an idea",
        hypothesis="",
        train_sha256="d" * 64,
    )


def repaired() -> Story:
    """Experiment 1 crashes; while it ran, 2 was prepared; its repair takes number 2, the prepared one 3."""
    story = Story()
    story.run("baseline", 2.0, holdout=7.654321)
    story.ask(1, 0.5)
    story.tell(rehearsed(1))
    story.ask(1, 0.25)
    story.propose("a slip")
    story.fail(2, "overloaded")
    story.ask(2, 1.0)
    story.tell(prepared(2))
    story.crash()
    story.ask(2, 0.125, purpose="fix")
    story.tell(rehearsed(2))
    story.run("repair", Cause.OOM)
    story.run("as prepared", 1.5, prepared_for=2)
    return story


def events(story: Story, number: int) -> list[str]:
    return [record.data.event for record in audit.trail(story.records, number)]


RUN = ["proposed", "training_started", "training_finished"]


def test_what_was_asked_for_an_experiment_comes_before_it() -> None:
    first = ["api_requested", "api_answered", "rehearsed", "api_requested", "api_answered", *RUN, "decided"]
    assert events(repaired(), 1) == first
    assert events(repaired(), 0) == [*RUN, "scoring_started", "scoring_finished", "decided", "committed"]


def test_a_repair_does_not_take_over_what_was_prepared_under_its_number() -> None:
    story = repaired()
    assert events(story, 2) == ["api_requested", "api_answered", "rehearsed", *RUN, "decided"]
    assert events(story, 3)[:5] == [
        *("api_requested", "api_failed", "api_requested", "api_answered", "prepared")
    ]
    costs = [[call["cost_usd"] for call in audit.calls(audit.trail(story.records, n))] for n in (1, 2, 3)]
    assert costs == [[0.5, 0.25], [0.125], [0.0, 1.0]]
    state = fold(story.records)
    assert [sum(cost) for cost in costs] == [state.spending.of(n).usd for n in (1, 2, 3)]


def test_every_record_of_an_agent_belongs_to_one_experiment() -> None:
    story = repaired()
    told = [record.seq for number in range(4) for record in audit.trail(story.records, number)]
    assert sorted(told) == list(range(2, len(story.records)))  # all but the starts of effort and session


def test_absences_refusals_and_failures_belong_to_what_was_due() -> None:
    story = Story()
    story.run("baseline", 2.0)
    story.fail(1, "no route")
    story.tell(AgentAbsent(agent="claude", reason="no route", until=None))
    story.tell(AgentReturned(agent="claude", seconds=60.0))
    story.tell(AgentFailed(agent="claude", for_experiment=1, reason="said nothing"))
    story.refuse("identical")
    story.tell(PreparationDropped(for_experiment=1, reason="the frontier moved"))
    story.propose()
    assert events(story, 1) == [
        *("api_requested", "api_failed", "agent_absent", "agent_returned", "agent_failed"),
        *("proposal_refused", "preparation_dropped", "proposed", "training_started"),
    ]


def test_what_was_removed_of_an_experiment_is_told() -> None:
    story = repaired()
    story.tell(Pruned(what="calls", before=2, bytes=100))
    story.tell(Pruned(what="logs", before=1, bytes=100))
    assert [events(story, number).count("pruned") for number in range(4)] == [1, 1, 0, 0]


def test_a_call_is_told_in_one_piece() -> None:
    story = Story()
    story.run("baseline", 2.0)
    story.ask(1, 0.5)
    story.fail(1, "overloaded")
    story.ask(1, None)
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
    story.ask(1, 0.5, reply=HOSTILE)
    story.fail(1, HOSTILE)
    story.tell(rehearsed(1, HOSTILE + "\n" + HOSTILE))
    story.tell(AgentAbsent(agent=HOSTILE, reason=HOSTILE, until=None))
    story.propose(HOSTILE, stands_in_for=HOSTILE)
    state, trail = fold(story.records), audit.trail(story.records, 1)
    assert harmless(printed(views.show(Exhibit(state, 1, records=trail, audited=True))))
    said = views_json.show(Exhibit(state, 1, records=trail, audited=True))
    assert harmless(json.dumps(said, ensure_ascii=False))
    assert harmless(printed(views.status(state, "2026-03-01")))
    assert harmless(json.dumps(views_json.status(state, "2026-03-01"), ensure_ascii=False))
