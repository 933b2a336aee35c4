"""Copies of the harness and prepared data: whatever was changed in them is noticed."""

from __future__ import annotations

import json
import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from controller.agents.replay import Replay
from controller.app.machine import Machine
from controller.core.errors import UserError, VerificationFailed
from controller.core.events import Decided, ScoringFinished
from controller.core.values import RunOutcome
from controller.ports import Attempt
from controller.sandbox.inputs import NAMES, DataFiles, HarnessFiles
from controller.store.journal import read_records
from tests.loop.effort import Effort, start
from tests.support.bench import HARNESS
from tests.support.fakes import FakeTrainer, train_py
from tests.support.sealing import seal

FILES = {
    "public/train/00000.bin": b"train",
    "public/tokenizer/tokenizer.json": b"{}",
    "judge/val/00000.bin": b"validation",
    "judge/token_bytes.npy": b"bytes",
}


@pytest.fixture
def home(tmp_path: Path) -> Path:
    for name, content in FILES.items():
        path = tmp_path / "data" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    seal(tmp_path / "data", {"vocab_size": 5})
    return tmp_path


def test_data_as_prepared_is_fine_as_often_as_one_looks(home: Path) -> None:
    files = DataFiles(home)
    files.verify()
    files.verify()


@pytest.mark.parametrize("name", [*FILES, "public/manifest.json", "judge/manifest.json"])
def test_a_changed_file_is_named_even_if_its_size_and_time_are_put_back(home: Path, name: str) -> None:
    files, path = DataFiles(home), home / "data" / name
    files.verify()
    before = path.stat()
    path.write_bytes(bytes(reversed(path.read_bytes())))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(VerificationFailed, match=path.name):
        files.verify()


def test_another_file_under_the_same_name_is_noticed(home: Path) -> None:
    files, path = DataFiles(home), home / "data/judge/val/00000.bin"
    files.verify()
    other = home / "other"
    other.write_bytes(b"VALIDATION")
    other.rename(path)
    with pytest.raises(VerificationFailed, match="val/00000"):
        files.verify()


def test_a_touched_file_is_hashed_again_and_found_unchanged(home: Path) -> None:
    files = DataFiles(home)
    files.verify()
    (home / "data/public/train/00000.bin").touch()
    files.verify()


def test_missing_and_added_files_are_named(home: Path) -> None:
    files = DataFiles(home)
    added = home / "data/judge/val/00001.bin"
    added.write_bytes(b"more")
    with pytest.raises(VerificationFailed, match=r"00001\.bin"):
        files.verify()
    added.unlink()
    (home / "data/judge/token_bytes.npy").unlink()
    with pytest.raises(VerificationFailed, match="token_bytes"):
        files.verify()


@pytest.mark.parametrize(
    ("part", "key"), [("public", "vocab_size"), ("judge", "vocab_size"), ("judge", "files")]
)
def test_manifests_are_bound_to_the_fingerprint(home: Path, part: str, key: str) -> None:
    path = home / "data" / part / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest[key] = {} if key == "files" else 6
    path.write_text(json.dumps(manifest))
    with pytest.raises(VerificationFailed, match=f"{part}/manifest"):
        DataFiles(home)


class Meddled(FakeTrainer):
    """Somebody changes a file that containers mount while an experiment trains, or after each."""

    def __init__(self, mounted: Path, during: str | None) -> None:
        super().__init__()
        self._mounted, self._during = mounted, during

    def train(self, attempt: Attempt, stop: threading.Event, tick: Callable[[float], None]) -> RunOutcome:
        if attempt.experiment == self._during:
            self._meddle()
        return super().train(attempt, stop, tick)

    def discard(self, attempt: Attempt) -> None:
        super().discard(attempt)
        if self._during is None:
            self._meddle()

    def _meddle(self) -> None:
        self._mounted.chmod(0o644)
        self._mounted.write_bytes(b"other")


@pytest.mark.parametrize("during", ["0", None], ids=["while it trains", "before the next"])
@pytest.mark.parametrize("part", ["data", "harness"])
def test_a_file_that_changes_under_an_effort_ends_its_session(
    home: Path, efforts: list[Effort], part: str, during: str | None
) -> None:
    """No score is taken that may have been made with it, and nothing is started that would mount it."""
    harness = HarnessFiles.materialise(Path(__file__).parents[2] / "harness", home)
    mounted = home / "data/judge/val/00000.bin" if part == "data" else harness.folder / "judge.py"
    machine = cast(Machine, SimpleNamespace(harness=harness, data_files=DataFiles(home)))
    (home / "proposals").mkdir()
    (home / "proposals" / "0.py").write_text(train_py(2.5))
    effort = start(efforts, home / "home", Replay(home / "proposals"))
    trainer = Meddled(mounted, during)
    effort.train_with(trainer)
    effort.components.check_inputs = lambda: Machine.check_inputs(machine)
    with pytest.raises(VerificationFailed, match=mounted.name):
        effort.loop().run()
    assert trainer.started == [("0", 1)]
    told = [r.data for r in read_records(effort.home) if isinstance(r.data, ScoringFinished | Decided)]
    assert len(told) == (0 if during else 2)


def test_copies_are_named_by_content_and_readable_by_every_container(tmp_path: Path) -> None:
    files = HarnessFiles.materialise(HARNESS, tmp_path)
    assert files.folder == tmp_path / "harness" / files.digest[:16]
    assert sorted(path.name for path in files.folder.iterdir()) == list(NAMES)
    for name in NAMES:
        assert (files.folder / name).read_bytes() == (HARNESS / name).read_bytes()
        assert (files.folder / name).stat().st_mode & 0o777 == 0o444
    assert HarnessFiles.materialise(HARNESS, tmp_path) == files
    assert len(list((tmp_path / "harness").iterdir())) == 1


def test_another_version_gets_another_folder(tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(HARNESS, source)
    before = HarnessFiles.materialise(source, tmp_path)
    (source / "prepare.py").write_text("changed")
    after = HarnessFiles.materialise(source, tmp_path)
    assert before.folder != after.folder
    before.verify()
    after.verify()


def test_a_changed_or_missing_copy_is_noticed(tmp_path: Path) -> None:
    files = HarnessFiles.materialise(HARNESS, tmp_path)
    copy = files.folder / "judge.py"
    copy.chmod(0o644)
    copy.write_text("print('{}')")
    with pytest.raises(VerificationFailed, match=r"judge\.py"):
        files.verify()
    with pytest.raises(VerificationFailed, match=r"judge\.py"):
        HarnessFiles.materialise(HARNESS, tmp_path)
    copy.unlink()
    with pytest.raises(VerificationFailed, match=r"judge\.py"):
        files.verify()


def test_an_incomplete_installation_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="harness"):
        HarnessFiles.materialise(tmp_path / "nothing", tmp_path)
