"""results.tsv: upstream's columns, one row a run, always what the journal says."""

from __future__ import annotations

import csv
import math
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from controller.core.values import Cause, Claim
from controller.store.ledger import COLUMNS, render
from controller.store.snapshot import standing
from controller.store.verify import verify
from tests.support.story import BASELINE, Story, tell
from tests.support.two_slots import three_and_four


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tell(tmp_path_factory.mktemp("told")).home


@pytest.fixture
def story(told: Path, tmp_path: Path) -> Story:
    return Story(shutil.copytree(told, tmp_path / "home"))


def rows(home: Path) -> list[dict[str, str]]:
    with (home / "results.tsv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, delimiter="\t"))


def test_it_starts_with_upstreams_columns() -> None:
    assert COLUMNS[:5] == ("commit", "val_bpb", "memory_gb", "status", "description")


def test_every_run_has_its_row(story: Story) -> None:
    base, kept = str(story.state.base_commit)[:7], story.state.experiments
    table = [(r["commit"], r["val_bpb"], r["status"], r["description"], r["error"]) for r in rows(story.home)]
    assert table == [
        (str(kept[0].commit)[:7], "2.000000", "keep", "baseline", ""),
        (str(kept[0].commit)[:7], "2.500000", "discard", "worse", "worse"),
        (str(kept[0].commit)[:7], "", "crash", "crash", "oom"),
        (str(kept[0].commit)[:7], "", "reject", "reject", "non-causal"),
        (str(kept[4].commit)[:7], "1.500000", "keep", "better", ""),
    ]
    assert base not in {row["commit"] for row in rows(story.home)}
    assert {row["seconds"] for row in rows(story.home)} == {"20.2"}
    assert "7.654321" not in (story.home / "results.tsv").read_text()


@pytest.mark.parametrize(
    ("claim", "shown"),
    [(45060.2, "44.0"), (None, ""), (0.0, ""), (-5.0, ""), (math.nan, ""), (math.inf, ""), (1e300, "")],
)
def test_claimed_memory_is_shown_if_it_can_be_true(tmp_path: Path, claim: float | None, shown: str) -> None:
    story = Story(tmp_path)
    story.begin()
    number = story.propose(BASELINE)
    story.train(number, Cause.EXIT, Claim(peak_vram_mb=claim))
    story.decide(number)
    story.ledger.publish(story.state)
    assert rows(tmp_path)[0]["memory_gb"] == shown


def test_a_hostile_description_stays_one_cell(story: Story) -> None:
    story.experiment(BASELINE + "A = 5\n", 9.0, '"=cmd()\t\n\x1b[31m\u202e' + "x" * 10**6)
    row = rows(story.home)[-1]
    assert row["description"].startswith("'=cmd() xx")
    assert len(row["description"]) <= 200
    assert row["error"] == "worse"


def test_an_understudy_is_marked_in_the_description(story: Story) -> None:
    experiment = story.state.experiments[-1]
    proposal = replace(experiment.proposal, stands_in_for="claude")
    story.state.experiments.replace(experiment.number, replace(experiment, proposal=proposal))
    assert f"{proposal.description} [replay in place of claude]" in render(story.state).splitlines()[-1]


def test_two_slots_have_their_rows_in_the_order_in_which_they_finished(tmp_path: Path) -> None:
    """Whether each was appended when it was due, some were missing, or all are written again."""
    story = three_and_four(tmp_path)
    path = tmp_path / "results.tsv"
    story.finish(4, 1.9)
    appended = path.stat().st_ino
    before = path.read_bytes()
    story.finish(3, 1.8)
    assert path.stat().st_ino == appended, "rows were appended"
    assert path.read_bytes().startswith(before)
    assert [row["experiment"] for row in rows(tmp_path)] == ["0", "1", "2", "4", "3"]
    assert [row["description"] for row in rows(tmp_path)][-2:] == ["the fourth", "the third"]
    complete = path.read_bytes()
    assert complete == render(story.state).encode() == render(standing(tmp_path)[0]).encode()
    for missing in (1, 2, 3, 6):
        path.write_bytes(b"".join(complete.splitlines(keepends=True)[:-missing]))
        story.ledger.publish(story.state)
        assert path.read_bytes() == complete
    assert verify(tmp_path) == []


def test_an_open_experiment_has_no_row_yet(story: Story) -> None:
    story.propose(BASELINE + "A = 5\n")
    story.ledger.publish(story.state)
    assert len(rows(story.home)) == 5


@pytest.mark.parametrize("kept_bytes", [0, 1, 40, 100, 300, -1])
def test_it_grows_from_whatever_a_crash_left_of_it(story: Story, kept_bytes: int) -> None:
    path = story.home / "results.tsv"
    complete = path.read_bytes()
    path.write_bytes(complete[:kept_bytes])
    story.ledger.publish(story.state)
    assert path.read_bytes() == complete == render(story.state).encode()


@pytest.mark.parametrize("damage", [b"nonsense\n", None])
def test_a_missing_or_foreign_ledger_is_written_again(story: Story, damage: bytes | None) -> None:
    path = story.home / "results.tsv"
    complete = path.read_bytes()
    path.unlink() if damage is None else path.write_bytes(damage)
    story.ledger.publish(story.state)
    assert path.read_bytes() == complete


def test_readers_keep_their_file_while_it_grows(story: Story) -> None:
    before = (story.home / "results.tsv").stat().st_ino
    story.experiment(BASELINE + "A = 5\n", 9.0)
    assert (story.home / "results.tsv").stat().st_ino == before
