"""The verbs that only read, on a home with every verdict in it."""

from __future__ import annotations

import hashlib
import json
import subprocess
from pathlib import Path

import pytest

from controller.store import verified
from tests.support.glovebox import Glovebox
from tests.support.story import tell

VERBS = ("prepare", "run", "try", "status", "log", "show", "report", "verify", "doctor", "reap")


@pytest.fixture
def told(glovebox: Glovebox) -> Glovebox:
    tell(glovebox.home)
    return glovebox


def _head(home: Path) -> str:
    last = (home / "audit.jsonl").read_text().splitlines()[-1]
    return str(json.loads(last)["hash"])


def test_help_names_every_verb(glovebox: Glovebox) -> None:
    said = glovebox("--help")
    listed = {line.split()[0] for line in said.out.split("Commands:")[1].splitlines() if line.strip()}
    assert said.status == 0 and set(VERBS) <= listed
    assert glovebox("version").out.strip()


def test_status(told: Glovebox) -> None:
    said = told("status", "--json").json()
    assert said["tag"] == "test" and said["head"] == _head(told.home)
    assert said["frontier"]["val_bpb"] == 1.5 and said["frontier"]["experiment"] == 4
    assert said["verdicts"] == {"keep": 2, "discard": 1, "crash": 1, "reject": 1}
    assert said["running"] is False
    text = told("status").out
    assert _head(told.home) in text and "1.500000" in text and "No controller" in text


def test_log(told: Glovebox) -> None:
    rows = told("log", "--json").json()
    assert [row["verdict"] for row in rows] == ["keep", "discard", "crash", "reject", "keep"]
    assert [row["cause"] for row in rows] == [None, "worse", "oom", "non-causal", None]
    lines = told("log").out.splitlines()
    assert len(lines) == 6 and "crash oom" in lines[3]


def test_show(told: Glovebox) -> None:
    said = told("show", "4", "--json").json()
    assert said["val_bpb"] == 1.5 and said["diff"].startswith("+DEPTH")
    assert said["records"][0]["data"]["event"] == "experiment_opened"
    assert "audit" not in said
    said = told("show", "4", "--audit", "--json").json()["audit"]
    assert [known["data"]["event"] for known in said["events"][:2]] == ["proposal_asked", "proposal_made"]
    assert said["calls"] == []
    number = told("show", "4", "--json").json()["proposal"]
    events = [
        record["data"]["event"]
        for record in told("show", "--proposal", str(number), "--json").json()["events"]
    ]
    assert events[0] == "proposal_asked" and events[-1] == "experiment_opened"
    assert "experiment_opened" in told("show", "--proposal", str(number)).out
    text = told("show", "4", "--audit").out
    assert "audit trail" in text and "outcome.seconds 20.25" in text and "blobs/" in text
    text = told("show", "4").out
    assert "keep" in text and "A = 4" in text and "training_started" in text and "some output" in text


@pytest.mark.parametrize("verb", [["status"], ["log"], ["show", "0"], ["show", "4"]])
def test_what_one_might_choose_by_is_shown_without_the_hidden_score(told: Glovebox, verb: list[str]) -> None:
    for arguments in (verb, [*verb, "--json"]):
        said = told(*arguments)
        assert said.status == 0
        assert not any(word in said.out for word in ("holdout", "7.654321", "fresh_error", "0.6543"))


def test_report(told: Glovebox) -> None:
    said = told("report", "--output", "account")
    assert said.status == 0
    report, page, *pictures = (told.folder / line for line in said.out.splitlines())
    assert "+0.6543" in report.read_text() and _head(told.home) in report.read_text()
    assert page.name == "report.html" and len(pictures) == 2
    assert all(picture.read_bytes().startswith(b"<?xml") for picture in pictures)
    (told.folder / "taken").write_text("")
    told("report", "--output", "taken").refused(2, "taken")


def test_verify(told: Glovebox) -> None:
    assert told("verify", "--json").json() == {"problems": []}
    said = told("verify")
    assert said.status == 0 and _head(told.home) in said.out and "5 experiments" in said.out


@pytest.mark.parametrize(
    "name", ["audit.jsonl", "results.tsv", "runs/000001/train.py", "runs/000004/run.log"]
)
def test_verify_finds_one_changed_byte(told: Glovebox, name: str) -> None:
    path = told.home / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    said = told("verify")
    said.refused(4, "1 contradictions")
    assert name in said.out and said.out.count("\n") == 1
    as_json = told("verify", "--json")
    assert as_json.status == 4 and len(json.loads(as_json.out)["problems"]) == 1


def test_a_broken_chain_stops_everything_that_would_build_on_it(told: Glovebox) -> None:
    path = told.home / "audit.jsonl"
    path.write_bytes(path.read_bytes().replace(b'"val_bpb":1.5', b'"val_bpb":1.4'))
    before = path.read_bytes()
    for verb in (["status"], ["log"], ["report"], ["run"]):
        told(*verb).refused(4, "audit.jsonl line")
    assert path.read_bytes() == before


def test_reading_changes_nothing_but_what_verify_said(told: Glovebox) -> None:
    def files() -> dict[str, str]:
        every = (path for path in told.home.rglob("*") if path.is_file() and path.name != verified.NAME)
        return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in every}

    before = files()
    for verb in (["status"], ["log"], ["show", "2"], ["verify"], ["report", "--output", "account"]):
        assert told(*verb).status == 0
    assert files() == before


@pytest.mark.parametrize("reader", ["head -1", "true"])
def test_a_reader_that_goes_away_hears_no_complaint(told: Glovebox, reader: str) -> None:
    for verb in (["log"], ["show", "4", "--json"], ["version"]):
        pipe = ["bash", "-c", f'"$@" | {reader}', "bash", *told.command(*verb)]
        done = subprocess.run(
            pipe, env=told.env(), cwd=told.folder, capture_output=True, text=True, check=False
        )
        assert done.stderr == ""
