"""How much of each part of a corpus is used, and where its documents go."""

import json
from pathlib import Path

import pytest
import shards
from corpus import Request, open_corpus
from documents import Tally
from hypothesis import given
from hypothesis import strategies as st
from processes import Workers


def upper_limit(sizes: list[int], total: int) -> int:
    """The size s for which the sum of min(size, s) is `total`, by trying."""
    low, high = 0, max(sizes)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if sum(min(s, middle) for s in sizes) <= total else (low, middle - 1)
    return low


@given(st.lists(st.integers(0, 10_000), min_size=1, max_size=30), st.integers(1, 60_000))
def test_only_the_largest_are_cut_and_next_to_nothing_is_wasted(sizes: list[int], total: int) -> None:
    limits = shards.fair_limits(
        len(sizes),
        total,
        lambda limits: [min(size, limit) for size, limit in zip(sizes, limits, strict=True)],
    )
    used = [min(size, limit) for size, limit in zip(sizes, limits, strict=True)]
    assert sum(used) <= total
    assert sum(used) > min(sum(sizes), total) - max(total // 100, len(sizes))
    level = upper_limit(sizes, total)
    assert all(use == size for use, size in zip(used, sizes, strict=True) if size <= level * 0.9 - len(sizes))


@pytest.fixture
def one_large_file_beside_tiny_ones(tmp_path: Path) -> Path:
    folder = tmp_path / "corpus"
    folder.mkdir()
    for number in range(19):
        (folder / f"tiny{number}.txt").write_text(f"tiny {number}")
    with (folder / "large.jsonl").open("w") as file:
        for number in range(80_000):
            file.write(json.dumps({"text": f"{number} " * 20}) + "\n")
    return folder


def used_bytes(folder: Path, cap: int) -> tuple[int, Tally]:
    corpus = open_corpus(Request(str(folder)), folder / "downloads", 1, cap)
    tally = Tally()
    with Workers(1) as workers:
        shares = shards.shares_of(corpus, cap, workers)
    return sum(len(text.encode()) for share in shares for _, _, text in share.documents(tally)), tally


def test_a_large_file_beside_tiny_ones_gets_all_that_is_left(one_large_file_beside_tiny_ones: Path) -> None:
    cap = 6_000_000
    used, tally = used_bytes(one_large_file_beside_tiny_ones, cap)
    assert 0.99 * cap < used <= cap
    assert (tally.begun, tally.finished) == (20, 19)
    everything, tally = used_bytes(one_large_file_beside_tiny_ones, 100_000_000)
    assert everything > 9_000_000 and tally.finished == 20


@pytest.mark.parametrize("text", ["é" * 1000, "\U0001f600" * 1000])
def test_a_document_that_is_cut_falls_to_the_split_of_the_whole(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.txt").write_text(text)
    [part] = open_corpus(Request(str(tmp_path)), tmp_path, 1, None).parts
    [(split, digest, whole)] = shards.Share(part).documents(Tally())
    [(same_split, same_digest, head)] = shards.Share(part, 101, whole=False).documents(Tally())
    assert (same_split, same_digest) == (split, digest)
    assert whole == text and head == text[: 101 // len(text[0].encode())]
    tally = Tally()
    assert list(shards.Share(part, 101).documents(tally)) == [] and (tally.documents, tally.begun) == (0, 0)
