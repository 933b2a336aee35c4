"""Parts of a corpus -> documents by split -> token shards, one child process per part.

A shard is a flat file of little-endian uint16 tokens; every document in it starts with BOS.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from corpus import Corpus, Part
from documents import Tally
from numpy.typing import NDArray
from processes import Workers

from prepare import Tokenizer

SPLITS = ("train", "dev", "validation", "holdout")
FOLDER_OF_SPLIT = {
    "train": "public/train",
    "dev": "public/dev",
    "validation": "judge/val",
    "holdout": "judge/holdout",
}
SHARE_OF_SPLIT = {"validation": 0.04, "holdout": 0.03, "dev": 0.03}  # of all documents; the rest is train
SORT_TOKENS = 1 << 24  # how many tokens are held in memory and sorted into hash order


@dataclass(frozen=True)
class Share:
    """A part of a corpus, and how much of its text is used."""

    part: Part
    limit: int | None = None
    """Bytes of text; None: all of it."""
    whole: bool = True
    """A document beyond the limit is left out, not cut."""

    def __str__(self) -> str:
        return str(self.part)

    def documents(self, tally: Tally) -> Iterator[tuple[str, bytes, str]]:
        """(split, content hash, document) of each document.

        The hash decides the split, so two copies of a document are never in different splits, even if one of
        them is cut.
        """
        seen = 0
        for text in self.part.documents(tally):
            content = text.encode()
            digest = hashlib.sha256(content).digest()
            split = self.part.split or split_of(digest)
            if self.limit is not None and seen + len(content) > self.limit:
                head = "" if self.whole else content[: self.limit - seen].decode(errors="ignore")
                if head:
                    yield split, digest, head
                else:
                    tally.take_back()
                return
            seen += len(content)
            yield split, digest, text


def split_of(digest: bytes) -> str:
    """The split of a document with this content hash; the shares are SHARE_OF_SPLIT.

    Uses other bytes of the hash than those that order (and so select) the documents.
    """
    point = int.from_bytes(digest[-8:], "big") / 2**64
    for split, share in SHARE_OF_SPLIT.items():
        if point < share:
            return split
        point -= share
    return "train"


# --- how much of each part ----------------------------------------------------------------------------------


def shares_of(corpus: Corpus, max_bytes: int | None, workers: Workers) -> list[Share]:
    """Each part with its share of `max_bytes`. Raises BadInput.

    The parts of the library and of climbmix are nearly equal. Those of a user's folder are measured, and what
    the small ones leave goes to the large ones.
    """
    parts = corpus.parts
    if max_bytes is None:
        return [Share(part) for part in parts]
    if not corpus.measured:
        return [Share(part, max_bytes // len(parts)) for part in parts]

    def measure(limits: Sequence[int]) -> list[int]:
        return workers.each(text_bytes, [Share(p, n, False) for p, n in zip(parts, limits, strict=True)])

    limits = fair_limits(len(parts), max_bytes, measure)
    return [Share(part, limit, whole=False) for part, limit in zip(parts, limits, strict=True)]


def text_bytes(share: Share) -> int:
    """Bytes of text in a share, at most its limit."""
    tally = Tally()
    total = sum(len(text.encode()) for _, _, text in share.documents(tally))
    return total if share.limit is None or tally.finished == share.part.files else share.limit


def fair_limits(parts: int, total: int, measure: Callable[[Sequence[int]], Sequence[int]]) -> list[int]:
    """How much of each part to take, so that only the largest are cut, all to the same size.

    `measure` returns the size of each part, up to a given limit. It is called again with larger limits until
    little of `total` is left.
    """
    limits = [total // parts] * parts
    while True:
        sizes = measure(limits)
        cut = [part for part in range(parts) if sizes[part] >= limits[part]]
        room = total - sum(sizes)
        if not cut or room < max(total // 100, len(cut)):
            return limits
        for part in cut:
            limits[part] += room // len(cut)


# --- tokens -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Count:
    """How much of a split there is; counts add up."""

    documents: int = 0
    tokens: int = 0
    bytes: int = 0

    def __add__(self, other: "Count") -> "Count":
        return Count(self.documents + other.documents, self.tokens + other.tokens, self.bytes + other.bytes)


@dataclass(frozen=True)
class Job:
    """What one call of tokenize turns into shard number `index` of each split."""

    index: int
    share: Share
    passage_tokens: int | None
    folder: Path

    def __str__(self) -> str:
        return str(self.share)


def tokenize(job: Job) -> tuple[dict[str, Count], Tally]:
    """Write one shard per split that the part has documents for; returns the counts.

    Documents of a part with a fixed split keep their order; others are sorted into hash order, so that a
    folder sorted by topic does not become a curriculum.
    """
    tokenizer = Tokenizer.from_directory(job.folder / "public" / "tokenizer")
    token_bytes = np.load(job.folder / "public" / "tokenizer" / "token_bytes.npy")
    held: dict[str, list[tuple[bytes, NDArray[np.uint16]]]] = {split: [] for split in SPLITS}
    held_tokens, counts, tally = 0, dict.fromkeys(SPLITS, Count()), Tally()
    for split, digest, text in job.share.documents(tally):
        ids = np.array(tokenizer.encode(text), np.uint16)
        tokens = with_bos(ids, tokenizer.bos_token_id, job.passage_tokens)
        held[split].append((digest, tokens))
        held_tokens += len(tokens)
        counts[split] += Count(1, len(tokens), int(token_bytes[ids].sum()))
        if held_tokens > SORT_TOKENS:
            _append_shards(job, held)
            held_tokens = 0
    _append_shards(job, held)
    return counts, tally


def with_bos(ids: NDArray[np.uint16], bos_token_id: int, passage_tokens: int | None) -> NDArray[np.uint16]:
    """The ids with BOS before them, or before each passage of `passage_tokens` of them."""
    starts = range(0, len(ids), passage_tokens or max(len(ids), 1))
    return np.insert(ids, list(starts), bos_token_id)


def _append_shards(job: Job, held: dict[str, list[tuple[bytes, NDArray[np.uint16]]]]) -> None:
    for split, documents in held.items():
        if documents:
            if job.share.part.split is None:
                documents.sort(key=lambda item: item[0])
            with (job.folder / FOLDER_OF_SPLIT[split] / f"{job.index:05d}.bin").open("ab") as shard:
                shard.write(np.concatenate([tokens for _, tokens in documents]).astype("<u2").tobytes())
            documents.clear()
