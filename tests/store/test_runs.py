"""runs/N/ is complete, is closed once, and holds nothing that must stay secret."""

from __future__ import annotations

import json
import shutil
import stat
from pathlib import Path

import pytest

from controller.core.errors import InfrastructureError
from controller.core.values import Cause, Claim
from controller.store.runs import Runs
from tests.support.experiments import an_experiment
from tests.support.story import BASELINE, Story, tell


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tell(tmp_path_factory.mktemp("told")).home


@pytest.fixture
def story(told: Path, tmp_path: Path) -> Story:
    return Story(shutil.copytree(told, tmp_path / "home"))


def test_a_proposal_lies_there_as_it_will_run(tmp_path: Path) -> None:
    runs = Runs(tmp_path)
    runs.write_proposal(42, train_py="A = 'ü'\r\n", diff="+A\n")
    attempt = runs.attempt(an_experiment(42), 3, 20.0)
    assert attempt.train_path == tmp_path / "runs" / "000042" / "train.py"
    assert attempt.log_path == tmp_path / "runs" / "000042" / "run.log"
    assert (attempt.experiment, attempt.number, attempt.budget_seconds) == ("42", 3, 20.0)
    assert attempt.seed == an_experiment(42).seed
    assert attempt.train_path.read_bytes() == "A = 'ü'\r\n".encode()
    assert stat.S_IMODE(attempt.train_path.stat().st_mode) == 0o644
    assert (tmp_path / "runs" / "000042" / "change.diff").read_text() == "+A\n"


def test_a_link_in_the_place_of_train_py_is_replaced(tmp_path: Path) -> None:
    folder = Runs(tmp_path).folder(0)
    folder.mkdir(parents=True)
    (tmp_path / "precious").write_text("mine")
    (folder / "train.py").symlink_to(tmp_path / "precious")
    Runs(tmp_path).write_proposal(0, train_py="A = 1\n", diff="")
    assert (tmp_path / "precious").read_text() == "mine"
    assert not (folder / "train.py").is_symlink()


def test_a_closed_run_ends_with_the_judges_word(story: Story) -> None:
    text = (story.runs.folder(4) / "run.log").read_text()
    assert text.startswith("val_bpb: 0.1\nsome output\n===")
    last = [line for line in text.splitlines() if line.startswith("val_bpb:")][-1]
    assert last.split() == ["val_bpb:", "1.500000"]
    crashed = (story.runs.folder(2) / "run.log").read_text()
    assert "val_bpb:          none\n" in crashed
    assert "cause:            oom\n" in crashed


def test_closing_twice_changes_nothing(story: Story) -> None:
    before = {path: path.read_bytes() for path in (story.home / "runs").rglob("*") if path.is_file()}
    for experiment in story.state.finished:
        assert story.runs.is_finished(experiment)
        story.runs.finish(experiment)
    assert {path: path.read_bytes() for path in before} == before


def test_closing_goes_on_where_it_was_killed(story: Story) -> None:
    folder = story.runs.folder(1)
    before = (folder / "run.log").read_bytes()
    (folder / "experiment.json").unlink()
    assert not story.runs.is_finished(story.state.experiments[1])
    story.runs.finish(story.state.experiments[1])
    assert (folder / "run.log").read_bytes() == before


def test_a_lost_folder_is_made_again(story: Story) -> None:
    shutil.rmtree(story.runs.folder(1))
    story.runs.finish(story.state.experiments[1])
    assert story.runs.is_finished(story.state.experiments[1])
    assert (story.runs.folder(1) / "run.log").is_file()


def test_experiment_json_tells_all_but_the_hold_out(story: Story) -> None:
    text = (story.runs.folder(4) / "experiment.json").read_text()
    described = json.loads(text)
    assert described["score"]["val_bpb"] == 1.5
    assert described["decision"]["verdict"] == "keep"
    assert described["provenance"]["image"] == "sha256:1"
    assert described["outcome"]["claim"]["val_bpb"] is None
    assert "holdout" not in text
    assert "7.654321" not in text + (story.runs.folder(4) / "run.log").read_text()


def test_a_claim_that_json_cannot_hold_is_still_json(story: Story) -> None:
    number = story.propose(BASELINE + "A = 5\n")
    story.train(number, Cause.NAN, Claim(val_bpb=float("nan")))
    story.decide(number)
    story.runs.finish(story.state.experiments[number])
    described = json.loads((story.runs.folder(number) / "experiment.json").read_text())
    assert described["outcome"]["claim"]["val_bpb"] == "NaN"


def test_an_open_experiment_cannot_be_closed(story: Story) -> None:
    number = story.propose(BASELINE + "A = 5\n")
    with pytest.raises(ValueError, match="not decided"):
        story.runs.finish(story.state.experiments[number])


def test_an_excerpt_is_safe_and_short(tmp_path: Path) -> None:
    runs = Runs(tmp_path)
    assert runs.excerpt(0) == ""
    runs.write_proposal(0, train_py="", diff="")
    (runs.folder(0) / "run.log").write_bytes(b"\x1b]52;c;x\x07\xff\x00step\r" * 100_000 + b"the end\n")
    excerpt = runs.excerpt(0)
    assert excerpt.endswith("the end")
    assert len(excerpt) <= 4000
    assert not set(excerpt) & {"\x1b", "\x07", "\x00", "\r"}


def test_a_disk_that_refuses_is_the_infrastructures_fault(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("not a folder")
    with pytest.raises(InfrastructureError, match="cannot be written"):
        Runs(tmp_path).write_proposal(0, train_py="", diff="")
