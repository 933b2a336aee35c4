"""Which files of a folder are read, and that every other one is told."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import folder
import pytest
from documents import BadInput
from folder import AGAIN, HIDDEN, LINK, OTHER, SPECIAL

import prepare
from tests.harness.conftest import without_privilege


def names(listing: folder.Listing) -> list[str]:
    return [source.name for source in listing.files]


def write(root: Path, *paths: str) -> None:
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(path)


def test_every_kind_in_every_folder_is_found_and_the_rest_is_told(tmp_path: Path) -> None:
    kinds = ["a.txt", "b.JSONL", "c.json", "d.jsonl.gz", "e.Txt.GZ", "deep/er/f.parquet", "deep/g.json.gz"]
    others = ["h.md", "i", "deep/j.zst", "k.parquet.gz", "gz"]
    hidden = [".git/x.txt", "deep/._a.txt"]
    write(tmp_path, *kinds, *others, *hidden)
    os.mkfifo(tmp_path / "pipe.txt")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket.txt"))
    listing = folder.find(tmp_path)
    assert names(listing) == sorted(kinds)
    assert {why: sorted(left) for why, left in listing.left_out.items()} == {
        OTHER: sorted(others),
        HIDDEN: [".git", "deep/._a.txt"],
        SPECIAL: ["pipe.txt", "socket.txt"],
    }
    told = "; ".join(folder.told_left_out(listing.left_out))
    assert "of another kind: 5 (gz, h.md, i, …)" in told and "hidden: 2 (.git, deep/._a.txt)" in told


def test_links_are_followed_and_nothing_is_read_twice(tmp_path: Path) -> None:
    write(tmp_path, "blobs/aa", "blobs/bb", "other/c.txt", "corpus/own.txt")
    corpus = tmp_path / "corpus"
    for name, target in {
        "a.txt": "../blobs/aa",
        "b.jsonl": str(tmp_path / "blobs/bb"),
        "b2.jsonl": "b.jsonl",
        "circle.txt": "circle.txt",
        "loop": ".",
        "more": "../other",
        "nowhere.txt": "../blobs/cc",
        "up": "..",
    }.items():
        (corpus / name).symlink_to(target)
    os.link(corpus / "own.txt", corpus / "same.txt")
    listing = folder.find(corpus)
    assert names(listing) == ["a.txt", "b.jsonl", "more/c.txt", "own.txt"]
    assert sorted(listing.left_out[LINK]) == ["circle.txt", "nowhere.txt"]
    assert {"b2.jsonl", "loop", "same.txt"} < set(listing.left_out[AGAIN])


def test_what_links_lead_to_is_found_where_it_is_mounted(tmp_path: Path) -> None:
    """As in a container, where other files than meant may be behind a link that leads out."""
    write(tmp_path, "links/sub/a.jsonl", "links/books/b.txt", "corpus/own.txt", "container/file")
    (tmp_path / "corpus" / "sub").mkdir()
    for name, target in {
        "sub/a.jsonl": "/of/another/world",
        "books": "../container",
        "c.txt": "/of/another/world",
        "d.txt": "../container/file",
        "more": str(tmp_path / "container"),
        "near.txt": "sub/../own.txt",
    }.items():
        (tmp_path / "corpus" / name).symlink_to(target)
    (tmp_path / "links" / "books" / "e.txt").symlink_to(tmp_path / "container" / "file")
    listing = folder.find(tmp_path / "corpus", tmp_path / "links")
    assert names(listing) == ["books/b.txt", "near.txt", "sub/a.jsonl"]
    assert sorted(listing.left_out[LINK]) == ["books/e.txt", "c.txt", "d.txt", "more"]
    assert listing.left_out[AGAIN] == ["own.txt"]
    assert folder.find(tmp_path / "corpus").left_out[LINK] == ["c.txt", "sub/a.jsonl"]


def test_one_file_is_a_corpus(tmp_path: Path) -> None:
    write(tmp_path, "input.txt", "notes.md")
    [source] = folder.find(tmp_path / "input.txt").files
    assert (source.name, source.kind, source.size) == ("input.txt", ".txt", 9)
    with pytest.raises(BadInput, match=r"notes.md is of no kind that is read: .*\.jsonl"):
        folder.find(tmp_path / "notes.md")


def test_a_folder_with_nothing_to_read_says_what_is_there(tmp_path: Path) -> None:
    write(tmp_path, "a.md", "b\n.zst")
    with pytest.raises(BadInput) as refusal:
        folder.find(tmp_path)
    assert "no .parquet, .jsonl, .json or .txt file" in str(refusal.value)
    assert r"not read: of another kind: 2 (a.md, b\n.zst)" in str(refusal.value)


@pytest.mark.parametrize("closed", ["a.txt", "deep"])
def test_what_may_not_be_read_is_refused(tmp_path: Path, closed: str) -> None:
    write(tmp_path, "a.txt", "deep/b.txt")
    (tmp_path / closed).chmod(0)
    try:
        command = [sys.executable, prepare.__file__, "--corpus", tmp_path, "--out", tmp_path / "out"]
        done = subprocess.run(
            [*without_privilege(), *map(str, command), "--scale", "cpu"],
            capture_output=True,
            text=True,
            check=False,
        )
    finally:
        (tmp_path / closed).chmod(0o755)
    sentence = f"prepare: {tmp_path}/{closed} may not be read by user {os.getuid()}; let others read it\n"
    assert (done.returncode, done.stderr) == (2, sentence)
