"""Prepared data that was changed is noticed, whatever was changed and however it looks."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from controller.core.model import VerificationFailed
from controller.data_files import DataFiles
from tests.sealing import seal

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
