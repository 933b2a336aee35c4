"""The verbs that steer an effort: what is refused at once, what is put down, and a real run."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from controller.core.events import EffortStarted, SessionStarted
from controller.store import requests
from controller.store.journal import Journal, read_records
from controller.system.clock import SystemClock
from tests.cli.corpus import write_corpus
from tests.support.efforts import PROVENANCE
from tests.support.glovebox import Glovebox, begin

DEADLINE = 120.0


def test_requests_wait_for_the_next_controller(glovebox: Glovebox, tmp_path: Path) -> None:
    glovebox("instruct", "Be brief.").refused(2, "No effort was started")
    begin(glovebox.home)
    mine, bad = tmp_path / "mine.py", tmp_path / "bad.py"
    mine.write_text("build_model = 1\n", encoding="utf-8")
    bad.write_text("def", encoding="utf-8")
    said = glovebox("instruct", "Be \x1b[31mbrief.", "--reason", "time")
    assert (said.status, said.out) == (0, "No controller is at work; the next one will hear of it.\n")
    assert glovebox("queue", str(mine), "--description", "my own").status == 0
    assert glovebox("limit", "--experiments", "7", "--hours", "none").status == 0
    assert glovebox("agent", "tuner").status == 0
    assert glovebox("pause", "--slot", "1").status == 0
    asked = requests.read(glovebox.home)
    assert [one.verb for one in asked] == ["instruct", "queue", "limit", "agent", "hold"]
    assert asked[0].reason == "time" and "@" in asked[0].by
    assert asked[1].train_py == "build_model = 1\n" and asked[1].text == "my own"
    assert asked[2].limits == {"experiments": 7.0, "hours": None}
    glovebox("queue", str(bad)).refused(2, "bad.py", "cannot be run")
    glovebox("queue", str(tmp_path / "none.py")).refused(2, "no train.py at")
    glovebox("kill", "3").refused(2, "Experiment 3 is not running")
    glovebox("requeue", "3").refused(2, "no experiment 3")
    glovebox("rollback", "3").refused(2, "cannot go back to experiment 3")
    glovebox("limit").refused(2, "No limit is named")
    glovebox("limit", "--hours", "many").refused(2, "a number or none, not 'many'")
    glovebox("limit", "--dollars", "0").refused(2, "above 0")
    glovebox("agent", "gpt").refused(2, "There is no agent 'gpt'")
    assert len(requests.read(glovebox.home)) == 5


def test_what_was_asked_for_is_shown(glovebox: Glovebox) -> None:
    journal = Journal(glovebox.home, SystemClock())
    journal.append(EffortStarted(tag="t", base_commit="0" * 40))
    journal.append(SessionStarted(agent="tuner", budget_seconds=20.0, provenance=PROVENANCE))
    journal.append(requests.made("instruct", "ada@lab", reason="time").granted("Be brief."))
    journal.append(requests.made("limit", "ada@lab", limits={"hours": 2.5}).granted())
    journal.close()
    told = glovebox("status").out
    assert "for the next question, by ada@lab at" in told and "Be brief." in told
    assert "limits changed" in told and "hours 2.5" in told
    steering = glovebox("status", "--json").json()["steering"]
    assert steering["limits"] == {"hours": 2.5} and steering["instructions"][0]["reason"] == "time"


ENDLESS = """\
import time

def build_model(): ...

print("begun", flush=True)
while True:
    time.sleep(0.1)
"""


@pytest.mark.slow
@pytest.mark.engine
def test_a_real_run_is_killed_and_a_program_of_ones_own_comes_next(
    on_engine: Glovebox, tmp_path: Path
) -> None:
    """The agent's only idea never ends; the effort would be over after it."""
    write_corpus(tmp_path / "corpus")
    assert on_engine("prepare", "--corpus", str(tmp_path / "corpus"), "--scale", "cpu").status == 0
    ideas = tmp_path / "ideas"
    ideas.mkdir()
    (ideas / "0.py").write_text(ENDLESS, encoding="utf-8")
    (tmp_path / "mine.py").write_text(ENDLESS.replace("while True", "while False"), encoding="utf-8")
    arguments = ("run", "--agent", f"replay:{ideas}", "--budget", "60", "--device", "cpu", "--tag", "t")
    one_baseline = {"GLOVEBOX_REPLICATES__BASELINE": "1", "GLOVEBOX_BUDGET__WALL_SECONDS": "60"}
    (tmp_path / "train.py").write_text("def build_model(): ...\nraise SystemExit(1)\n", encoding="utf-8")
    process = on_engine.start(*arguments, GLOVEBOX_TRAIN=str(tmp_path / "train.py"), **one_baseline)
    try:
        wait_for(on_engine.home, "training_started", experiment=1)
        assert on_engine("queue", str(tmp_path / "mine.py"), "--description", "my own").out == "Asked.\n"
        assert on_engine("kill", "1", "--reason", "it never ends").status == 0
        began = time.monotonic()
        wait_for(on_engine.home, "decided", experiment=1)
        assert time.monotonic() - began < 20.0  # a third of what was left to it
        wait_for(on_engine.home, "decided", experiment=2)
        process.wait(DEADLINE)
    finally:
        process.kill()
        out, _ = process.communicate()
    shown = on_engine("show", "1", "--json").json()
    assert (shown["verdict"], shown["cause"]) == ("discard", "killed"), out
    assert "it never ends" in shown["rule"] and shown["val_bpb"] is None
    mine = on_engine("show", "2", "--audit", "--json").json()
    assert (mine["agent"], mine["description"]) == ("person", "my own")
    assert "steered" in [event["data"]["event"] for event in mine["audit"]["events"]]
    assert "all agree" in on_engine("verify").out


def wait_for(home: Path, event: str, experiment: int) -> None:
    """Until the journal says so of the experiment."""
    end = time.monotonic() + DEADLINE
    while time.monotonic() < end:
        if (home / "audit.jsonl").exists():
            told = [(r.data.event, r.experiment) for r in read_records(home)]
            if (event, experiment) in told:
                return
        time.sleep(0.1)
    raise AssertionError(f"no {event} of experiment {experiment}")
