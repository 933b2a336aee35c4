"""What of a corpus the preparer is given: the folder, and what its links lead to."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from controller.app import corpus as data_corpus
from controller.core.errors import UserError


@pytest.fixture
def hub(tmp_path: Path) -> Path:
    """A snapshot as a model hub leaves it: its files are links to blobs beside it."""
    repository = tmp_path / ".cache" / "hub" / "datasets--x"
    (repository / "blobs").mkdir(parents=True)
    snapshot = repository / "snapshots" / "abc"
    (snapshot / "data").mkdir(parents=True)
    for blob, name in (("1f", "data/a.parquet"), ("2f", "b.jsonl")):
        (repository / "blobs" / blob).write_text(name)
        up = "../../../blobs" if "/" in name else "../../blobs"
        (snapshot / name).symlink_to(f"{up}/{blob}")
    return snapshot


def linked(corpus: Path) -> dict[str, str]:
    """Where in the container -> what of the host, besides the corpus itself."""
    found = data_corpus.find(str(corpus))
    assert found is not None
    first, *others = found.mounts
    assert (first.source, first.target) == (str(corpus), "/corpus")
    assert all(mount.read_only and not mount.volume for mount in found.mounts)
    return {mount.target: mount.source for mount in others}


def test_corpora_with_a_name_are_not_mounted() -> None:
    assert data_corpus.find("stdlib") is data_corpus.find("climbmix") is None


def test_what_the_links_of_a_snapshot_lead_to_is_mounted_under_their_names(hub: Path) -> None:
    blobs = hub.parents[1] / "blobs"
    assert linked(hub) == {"/links/data/a.parquet": f"{blobs}/1f", "/links/b.jsonl": f"{blobs}/2f"}


def test_a_link_to_a_link_is_followed_to_its_end(hub: Path, tmp_path: Path) -> None:
    corpus = tmp_path / ".cache" / "corpus"
    corpus.mkdir()
    (corpus / "a.jsonl").symlink_to(hub / "b.jsonl")
    (corpus / "folder").symlink_to(hub.parents[1] / "blobs")
    (corpus / "own.txt").touch()
    (corpus / "same.txt").symlink_to(corpus / "own.txt")  # absolute: in a container it leads nowhere
    (corpus / "near.txt").symlink_to("own.txt")
    assert linked(corpus) == {
        "/links/a.jsonl": str(hub.parents[1] / "blobs" / "2f"),
        "/links/folder": str(hub.parents[1] / "blobs"),
        "/links/same.txt": str(corpus / "own.txt"),
    }


def test_links_that_no_corpus_should_have_are_not_followed(tmp_path: Path) -> None:
    """A corpus comes from elsewhere, and a link in it could name whatever its maker wants to be read."""
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    (tmp_path / ".ssh").mkdir()
    (tmp_path / ".ssh" / "key").write_text("secret")
    (tmp_path / "to-key").symlink_to(tmp_path / ".ssh" / "key")
    (tmp_path / "private").symlink_to(tmp_path / ".ssh")
    os.mkfifo(tmp_path / "pipe")
    targets = [
        *("/etc/passwd", "/etc", "/proc/self/environ", "/dev/zero", "/", "/nowhere", "..", "circle-10.txt"),
        *("../.ssh/key", "../to-key", "../private", "../pipe", "\udcff"),
    ]
    for number, target in enumerate(targets):
        (corpus / f"circle-{number}.txt").symlink_to(target)
    assert linked(corpus) == {}


def test_a_file_is_a_corpus(hub: Path, tmp_path: Path) -> None:
    (tmp_path / "input.txt").write_text("text")
    found = data_corpus.find(str(tmp_path / "input.txt"))
    assert found is not None and found.argument == "/corpus/input.txt"
    [mount] = found.mounts
    assert (mount.source, mount.target) == (str(tmp_path / "input.txt"), "/corpus/input.txt")
    link = data_corpus.find(str(hub / "b.jsonl"))
    assert link is not None and link.argument == "/corpus/b.jsonl"
    assert link.mounts[0].source == str(hub.parents[1] / "blobs" / "2f")


@pytest.mark.parametrize(
    ("name", "sentence"), [("absent", "There is no corpus"), ("\udcff", "is not UTF-8: give it another")]
)
def test_what_is_no_corpus(tmp_path: Path, name: str, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        data_corpus.find(str(tmp_path / name))
