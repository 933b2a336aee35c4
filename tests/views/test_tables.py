"""status, log and show say what the journal says, and nothing a terminal would obey."""

from __future__ import annotations

import io
import json
import unicodedata

import pytest
from rich.console import Console, RenderableType

from controller.core.events import AgentAbsent, AgentFailed, Paused, TrainingFinished, Voided
from controller.core.state import fold
from controller.core.values import Cause, Conditions, CpuConditions, GpuConditions, RunOutcome
from controller.views import facts as views_json
from controller.views import tables as views
from controller.views.facts import Exhibit
from tests.support.efforts import Story, small
from tests.support.fakes import LOAD
from tests.support.two_slots import StoryOfTwo

TODAY = "2026-03-01"
HOSTILE = "\x1b]52;c;Y2xpcA==\x07[red]bold[/red]\x1b[2J :smile: \u202etxt\u200b\tx\r\ny\x9b31m" + "A" * 5000


def printed(renderable: RenderableType, width: int = 120, terminal: bool = False) -> str:
    console = Console(file=io.StringIO(), width=width, force_terminal=terminal, color_system=None)
    console.print(renderable)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def harmless(text: str) -> bool:
    return all(character == "\n" or unicodedata.category(character) not in ("Cc", "Cf") for character in text)


def test_status_of_a_finished_effort() -> None:
    state = fold(small().records)
    said = views_json.status(state, TODAY)
    assert said["branch"] == "autoresearch/mar1"
    assert said["frontier"]["val_bpb"] == 1.85 and said["frontier"]["experiment"] == 5
    assert said["baseline_bpb"] == 2.0 and said["improvement_bpb"] == pytest.approx(0.15)
    assert said["experiments"] == 6
    assert said["verdicts"] == {"keep": 3, "discard": 1, "crash": 1, "reject": 1}
    assert said["causes"] == {"oom": 1, "non-causal": 1, "worse": 1}
    assert said["open"] is None and [row["experiment"] for row in said["last"]] == [1, 2, 3, 4, 5]
    text = printed(views.status(state, TODAY))
    for fact in (
        "autoresearch/mar1",
        "1.850000",
        "2.000000",
        "0.150000",
        "3 keep",
        "1 non-causal",
        "MATRIX_LR",
    ):
        assert fact in text


def test_status_tells_how_far_the_limits_are() -> None:
    story = Story(limits={"experiments": 100, "hours": 48.5})
    state = fold(story.records)
    said = views_json.status(state, TODAY)
    assert said["limits"] == {"experiments": 100.0, "hours": 48.5}
    story.tell(Paused(why="person", reason=""), seconds=9 * 3600)
    text = printed(views.status(fold(story.records), TODAY))
    assert "0 of 100 finished" in text and "9.0 of 48.5 hours" in text and "latest" not in text
    text = printed(views.status(fold(small().records), TODAY))
    assert "6 finished" in text and "finished at 2026-03-01" in text


def test_status_names_the_open_experiment() -> None:
    story = small()
    story.propose("still running")
    state = fold(story.records)
    assert views_json.status(state, TODAY)["open"]["phase"] == "training"
    assert views_json.status(state, TODAY)["experiments"] == 6
    assert "experiment 6, training: still running" in printed(views.status(state, TODAY))
    assert views_json.log(state)[-1]["verdict"] is None


def test_status_names_what_runs_on_each_of_two_slots() -> None:
    story = StoryOfTwo()
    one, other = story.open(0, "one"), story.open(1, "other")
    story.end(one, Cause.OOM)
    waits = story.open(0, "a third")
    story.tell(Voided(experiment=waits, attempt=1, cause="disturbed", reason=LOAD.detail, evidence=LOAD))
    story.tell(Voided(experiment=other, attempt=1, cause="infrastructure", reason="no engine"))
    story.tell(Paused(why="infrastructure", slot=1, reason="no engine"))
    story.question()
    state = fold(story.records)
    said = views_json.status(state, TODAY)
    first, second = said["slots"]
    assert (first["slot"], first["experiment"], first["phase"]) == (0, waits, "opened")
    assert (first["noise"]["experiment"], first["noise"]["detail"]) == (waits, LOAD.detail)
    assert (second["slot"], second["experiment"], second["faults"]) == (1, other, 1)
    assert second["noise"] is None and second["pause"]["reason"] == "no engine"
    assert said["open"]["experiment"] == other and said["pause"] is None
    assert said["noise"]["experiment"] == waits
    assert [(row["experiment"], row["slot"]) for row in said["last"]] == [(0, 0), (one, 0)]
    assert [(known["proposal"], known["made"]) for known in said["proposals"]] == [(4, False)]
    text = printed(views.status(state, TODAY))
    for fact in (
        f"experiment {other} on slot 1, opened: other",
        f"experiment {waits} on slot 0, opened: a third",
        "for the slot to be undisturbed",
        "waiting for the machine",
        "2 finished: 1 keep, 0 discard, 1 crash, 0 reject",
    ):
        assert fact in text
    assert [row["slot"] for row in views_json.log(state)] == [0, 0, 1, 0]


def test_status_tells_of_one_slot_without_its_number() -> None:
    story = small()
    story.propose("still running")
    state = fold(story.records)
    assert [slot["experiment"] for slot in views_json.status(state, TODAY)["slots"]] == [6]
    assert "slot" not in printed(views.status(state, TODAY))


def test_an_empty_home_is_no_error() -> None:
    state = fold([])
    assert views_json.log(state) == []
    assert views_json.status(state, TODAY)["frontier"] is None
    assert "not started" in printed(views.status(state, TODAY))
    assert "No experiment" in printed(views.log(state))
    assert "0 finished" in printed(views.status(fold(Story().records), TODAY))


def test_log_has_a_row_for_every_experiment() -> None:
    state = fold(small().records)
    rows = views_json.log(state)
    assert [row["verdict"] for row in rows] == ["keep", "keep", "crash", "reject", "discard", "keep"]
    assert rows[4]["effect_bpb"] == pytest.approx(0.0005) and rows[4]["cause"] == "worse"
    assert rows[2]["val_bpb"] is None and rows[2]["cause"] == "oom"
    lines = printed(views.log(state)).splitlines()
    assert len(lines) == 7
    assert "crash oom" in lines[3] and "+0.000500" in lines[5] and "DEPTH 4 → 6" in lines[3]


def test_show_tells_all_about_one_experiment() -> None:
    story = small()
    state = fold(story.records)
    records = [record for record in story.records if record.experiment == 3]
    diff = "--- a/train.py\n+++ b/train.py\n@@ -1 +1 @@\n-A = 1\n+A = 2"
    said = views_json.show(Exhibit(state, 3, records=records, diff=diff, log_excerpt="step 1"))
    assert said["refusal"]["cause"] == "non-causal" and said["refusal"]["detail"] == "it cheated"
    assert said["refusal"]["work"] == [] and said["score"] is None
    assert said["diff"] == diff and said["log"] == "step 1"
    assert [record["data"]["event"] for record in said["records"]][:2] == [
        "experiment_opened",
        "training_started",
    ]
    text = printed(views.show(Exhibit(state, 3, records=records, diff=diff, log_excerpt="step 1")))
    for fact in (
        "reject non-causal",
        "it cheated",
        "It helps.",
        "+A = 2",
        "step 1",
        "training_started",
        "290.5 s",
    ):
        assert fact in text


def test_every_experiment_can_be_shown_in_a_narrow_terminal() -> None:
    state = fold(small().records)
    for number in range(len(state.experiments)):
        text = printed(views.show(Exhibit(state, number)), width=30, terminal=True)
        assert max(len(line) for line in text.splitlines()) <= 30


def test_claims_that_json_has_no_word_for_become_null() -> None:
    state = fold(small().records)
    text = json.dumps(views_json.show(Exhibit(state, 0, records=small().records)), allow_nan=False)
    assert json.loads(text)["outcome"]["claim"]["val_bpb"] is None
    json.dumps([views_json.status(state, TODAY), views_json.log(state)], allow_nan=False)


def test_hostile_strings_are_neutral_everywhere() -> None:
    story = small([HOSTILE] * 5)
    story.answer(HOSTILE)
    story.ask(None)
    state = fold(story.records)
    shown = views.show(Exhibit(state, 2, records=story.records, diff=HOSTILE, log_excerpt=HOSTILE))
    for renderable in (views.status(state, TODAY), views.log(state), shown):
        text = printed(renderable)
        assert harmless(text)
        assert "[red]" in text.replace("\n", "")
    said = views_json.show(
        Exhibit(state, 2, records=story.records, diff=HOSTILE, log_excerpt=HOSTILE, audited=True)
    )
    made = next(known for known in said["audit"]["events"] if known["data"]["event"] == "proposal_made")
    waiting = views_json.status(state, TODAY)
    for value in (
        said["description"],
        said["diff"],
        said["log"],
        made["data"]["description"],
        waiting["prepared"],
        *(known["description"] for known in waiting["proposals"]),
    ):
        assert harmless(value)
    assert len(said["description"]) <= 200


def costly() -> Story:
    """A tuner's baseline, then an agent that costs something and is away in the end, with an understudy."""
    story = Story(limits={"dollars": 20.0, "dollars_per_day": 5.0})
    story.run("baseline", 2.0)
    story.ask(0.5)
    story.ask(0.25)
    story.run("wider", 1.9)
    story.fail("overloaded")
    story.tell(AgentFailed(agent="claude", proposal=story.question(), reason="overloaded"))
    story.tell(AgentAbsent(agent="claude", reason="an outage", until="2026-03-01T09:30:00.000000+00:00"))
    story.run("a constant", 1.95, stands_in_for="claude")
    story.ask(None)
    return story


def test_money_is_shown_for_each_experiment_and_in_total() -> None:
    state = fold(costly().records)
    said = views_json.status(state, TODAY)
    assert said["spending"]["limits"] == {"dollars": 20.0, "dollars_per_day": 5.0}
    total = said["spending"]["total"]
    assert (total["calls"], total["usd"], total["in_flight_usd"]) == (4, 0.75, 2.0)
    assert (total["cache_read_tokens"], total["output_tokens"], total["cache_share"]) == (600, 100, 0.75)
    assert views_json.status(state, "2026-03-02")["spending"]["today"]["calls"] == 0
    assert [row["spending"]["usd"] for row in views_json.log(state)] == [0.0, 0.75, 0.0]
    text = printed(views.status(state, TODAY))
    for fact in (
        "$0.75, up to $2.00 more on its way of $20.00, 4 requests",
        "on its way of $5.00",
        "800 in, 75% of them from the cache, 100 out",
        "claude since 2026-03-01",
        "asked again at 2026-03-01 09:30:00 UTC: an outage",
    ):
        assert fact in text
    assert said["absence"]["reason"] == "an outage" and said["absence"]["times"] == 1
    lines = printed(views.log(state)).splitlines()
    assert "$0.75" in lines[2] and "$0.00" in lines[3]
    assert "$0.75" in printed(views.show(Exhibit(state, 1)))


def test_an_understudy_is_marked() -> None:
    state = fold(costly().records)
    assert views_json.log(state)[2]["stands_in_for"] == "claude"
    assert "a constant [tuner in place of claude]" in printed(views.log(state))


def test_an_agent_that_costs_nothing_has_no_column() -> None:
    state = fold(small().records)
    assert "cost" not in printed(views.log(state)) and "cost" not in printed(views.status(state, TODAY))
    assert views_json.status(state, TODAY)["absence"] is None


def test_what_the_machine_was_like_is_told_with_the_run() -> None:
    gpu = GpuConditions(
        spec_sha256="",
        samples=60,
        temperature_mean=66.5,
        temperature_max=71.0,
        throttled={"hw_slowdown": 0.5},
        foreign_bytes=3 * 1024**3,
        lost=HOSTILE,
    )
    cpu = CpuConditions(seconds=300.0, ours=0.7, others=0.3, contended=0.28)
    story = small()
    story.propose("on a busy machine")
    outcome = RunOutcome(
        seconds=300,
        exit_code=1,
        cause=Cause.OOM,
        conditions=Conditions(cpu=cpu, gpu=gpu, disturbances=(LOAD.model_copy(update={"detail": HOSTILE}),)),
    )
    story.tell(TrainingFinished(experiment=6, attempt=1, outcome=outcome))
    state = fold(story.records)
    text = printed(views.show(Exhibit(state, 6)), width=200)
    for fact in (
        "70% used by us, 30% by others",
        "66 °C (at most 71)",
        "hw_slowdown 50%",
        "3.0 GiB",
        "60 samples",
    ):
        assert fact in text
    assert harmless(text)
    told = views_json.show(Exhibit(state, 6))["outcome"]["conditions"]
    assert told["cpu"]["contended"] == 0.28
    assert harmless(json.dumps(told, ensure_ascii=False))
