from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from controller.core.errors import UserError, VerificationFailed
from controller.sandbox.harness_files import NAMES, HarnessFiles
from tests.sandbox.conftest import HARNESS


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
