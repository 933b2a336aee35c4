"""Build the data folder: corpus -> split by document -> tokenizer -> token shards -> manifest -> one rename.

    DIR/public   manifest, tokenizer, train and dev shards: what an experiment may see
    DIR/judge    manifest, byte table, validation and hold-out shards: the judge's alone

A shard is a flat file of little-endian uint16 tokens; every document in it starts with BOS. The tokenizer is
trained on the train split alone. `python prepare.py` runs this; an experiment does not see this module.
"""

import argparse
import base64
import contextlib
import errno
import fcntl
import hashlib
import itertools
import json
import multiprocessing
import os
import shutil
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import rustbpe
from corpus import Corpus, Part, open_corpus, origin_of
from download import BadInput
from numpy.typing import NDArray

from prepare import MANIFEST_VERSION, PACKING_BUFFER, SPECIAL_TOKENS, Tokenizer, pack_rows, read_documents

SPLITS = ("train", "dev", "validation", "holdout")
FOLDER_OF_SPLIT = {
    "train": "public/train",
    "dev": "public/dev",
    "validation": "judge/val",
    "holdout": "judge/holdout",
}
SHARE_OF_SPLIT = {"validation": 0.04, "holdout": 0.03, "dev": 0.03}  # of the documents; the rest is train

# GPT-4's pattern, but numbers are cut after two digits: with a small vocabulary three would waste it.
SPLIT_PATTERN = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,2}|"
    r" ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
)
TOKENIZER_DOCUMENT_CHARS = 10_000  # of a longer document the tokenizer is trained on the head
SORT_TOKENS = 1 << 24  # so many tokens are held in memory to be put into hash order


@dataclass(frozen=True)
class Scale:
    """The size of the game; all of it goes into the manifest."""

    max_seq_len: int
    vocab_size: int
    eval_tokens: int
    """Dev tokens for a run's own estimate."""
    score_tokens: int
    """Validation tokens the judge scores by default; down to a quarter of it if the corpus has less."""
    holdout_score_tokens: int
    max_corpus_bytes: int | None
    tokenizer_chars: int
    """The tokenizer is trained on this much of the train split."""


SCALES = {
    "gpu": Scale(
        max_seq_len=2048,
        vocab_size=8192,
        eval_tokens=1 << 21,
        score_tokens=1 << 21,
        holdout_score_tokens=1 << 19,
        max_corpus_bytes=None,
        tokenizer_chars=1_000_000_000,
    ),
    # For cards with 8 to 20 GB and with less: rows and logits are what fills them, so context and vocabulary
    # shrink. Less is scored because such a card takes longer for each token.
    "medium": Scale(
        max_seq_len=1024,
        vocab_size=8192,
        eval_tokens=1 << 20,
        score_tokens=1 << 20,
        holdout_score_tokens=1 << 18,
        max_corpus_bytes=None,
        tokenizer_chars=500_000_000,
    ),
    "small": Scale(
        max_seq_len=512,
        vocab_size=4096,
        eval_tokens=1 << 18,
        score_tokens=1 << 19,
        holdout_score_tokens=1 << 17,
        max_corpus_bytes=1_000_000_000,
        tokenizer_chars=100_000_000,
    ),
    "cpu": Scale(
        max_seq_len=256,
        vocab_size=1024,
        eval_tokens=1 << 15,
        score_tokens=1 << 16,
        holdout_score_tokens=1 << 15,
        max_corpus_bytes=64_000_000,
        tokenizer_chars=16_000_000,
    ),
}


def prepare(
    out: Path, downloads: Path, request: str, scale_name: str, shards: int | None, workers: int
) -> str:
    """Build the data folder `out`, unless it is there already; returns one line about it for the user.

    Everything is written to `out`.partial, which then gets its name in one step. Raises BadInput.
    """
    if out.exists() and any(out.iterdir()):
        return check_prepared(out, origin_of(request, shards), scale_name)
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_name(out.name + ".partial")
    with locked(out.parent):
        shutil.rmtree(partial, ignore_errors=True)  # what a killed preparation left
        try:
            scale = SCALES[scale_name]
            corpus = open_corpus(request, downloads, shards, workers, scale.max_corpus_bytes)
            summary = build(partial, corpus, scale_name, scale, workers)
            os.rename(partial, out)
            _fsync(out.parent)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return summary


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder, on the folder itself: no lock file stays. Raises BadInput if it is taken."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise BadInput(f"another preparation is running in {folder}") from None
    finally:
        os.close(descriptor)


def check_prepared(out: Path, origin: str, scale_name: str) -> str:
    """One line if `out` is what the same request made; BadInput if it is anything else."""
    remedy = f"remove {out} to prepare it anew, or choose another --out"
    try:
        found = json.loads((out / "public" / "manifest.json").read_bytes())
        version, found_origin = found["version"], found["corpus"]["origin"]
    except (OSError, ValueError, LookupError, TypeError):
        raise BadInput(f"{out} exists but is not prepared data: {remedy}") from None
    if version != MANIFEST_VERSION:
        raise BadInput(f"{out} was prepared by another version of this program ({version}): {remedy}")
    if found["size"] != scale_name:
        raise BadInput(f"{out} was prepared at scale {found['size']}, not {scale_name}: {remedy}")
    if found_origin != origin:
        raise BadInput(f"{out} was prepared from another corpus ({found_origin}): {remedy}")
    return f"{out} is already prepared: {found['corpus']['name']} at scale {scale_name}"


def build(folder: Path, corpus: Corpus, scale_name: str, scale: Scale, workers: int) -> str:
    """Write a complete data folder to `folder` and return one line about it. Raises BadInput."""
    started = time.monotonic()
    for name in FOLDER_OF_SPLIT.values():
        (folder / name).mkdir(parents=True)
    limit = None if scale.max_corpus_bytes is None else scale.max_corpus_bytes // max(len(corpus.parts), 1)
    print(f"corpus: {corpus.origin}", flush=True)
    train_tokenizer(folder / "public" / "tokenizer", corpus, scale, limit)
    shutil.copyfile(folder / "public" / "tokenizer" / "token_bytes.npy", folder / "judge" / "token_bytes.npy")
    print(f"tokenizer: {scale.vocab_size} tokens, after {time.monotonic() - started:.0f} s", flush=True)
    passage_tokens = passage_tokens_of(corpus, scale)
    jobs = [Job(index, part, limit, passage_tokens, folder) for index, part in enumerate(corpus.parts)]
    with multiprocessing.get_context("spawn").Pool(min(workers, len(jobs))) as pool:
        counts = pool.map(tokenize_part, jobs, chunksize=1)
    splits = {split: sum((count[split] for count in counts), Count()) for split in SPLITS}
    write_manifests(folder, corpus, scale_name, scale, splits)
    tokens = ", ".join(f"{split} {splits[split].tokens / 1e6:.2f}M" for split in SPLITS)
    return f"prepared at scale {scale_name} in {time.monotonic() - started:.0f} s; tokens: {tokens}"


def passage_tokens_of(corpus: Corpus, scale: Scale) -> int | None:
    """How long documents may be before they are cut into passages, each with its own BOS; None: never cut.

    The packer drops what does not fit a row, so uncut, a model would see only the head of a long file.
    Upstream's shards at upstream's scale stay whole all the same, so that scores compare with upstream's.
    """
    return None if corpus.name == "climbmix" and scale == SCALES["gpu"] else scale.max_seq_len


def documents_by_split(part: Part, limit: int | None) -> Iterator[tuple[str, bytes, str]]:
    """(split, content hash, document) of each document of a part, until `limit` bytes of text have been seen.

    The hash decides the split, so two copies of a document never end up on both sides of a fence.
    """
    seen = 0
    for text in part.documents():
        content = text.encode("utf-8", "surrogatepass")
        seen += len(content)
        if limit is not None and seen > limit:
            return
        digest = hashlib.sha256(content).digest()
        yield part.split or split_of(digest), digest, text


def split_of(digest: bytes) -> str:
    """The split of a document with this content hash; the shares are SHARE_OF_SPLIT.

    Takes other bytes of the hash than those which order (and so select) the documents.
    """
    point = int.from_bytes(digest[-8:], "big") / 2**64
    for split, share in SHARE_OF_SPLIT.items():
        if point < share:
            return split
        point -= share
    return "train"


def train_tokenizer(folder: Path, corpus: Corpus, scale: Scale, limit: int | None) -> None:
    """Train BPE on the train split and write `tokenizer.json` and `token_bytes.npy`. Raises BadInput."""

    def train_texts() -> Iterator[str]:
        room = scale.tokenizer_chars
        for part in corpus.parts:
            if part.split in (None, "train"):
                for split, _, text in documents_by_split(part, limit):
                    if split == "train":
                        yield text[:TOKENIZER_DOCUMENT_CHARS]
                        room -= min(len(text), TOKENIZER_DOCUMENT_CHARS)
                        if room <= 0:
                            return

    trainer = rustbpe.Tokenizer()
    merged = scale.vocab_size - len(SPECIAL_TOKENS)
    trainer.train_from_iterator(train_texts(), merged, pattern=SPLIT_PATTERN)
    ranks = {bytes(token): rank for token, rank in trainer.get_mergeable_ranks()}
    if len(ranks) < merged:
        raise BadInput(
            "the corpus has too little text or too few documents"
            f" for a vocabulary of {scale.vocab_size} tokens"
        )
    special = {name: merged + i for i, name in enumerate(SPECIAL_TOKENS)}
    stored_ranks = {base64.b64encode(token).decode(): rank for token, rank in ranks.items()}
    folder.mkdir()
    content = {"pattern": SPLIT_PATTERN, "ranks": stored_ranks, "special": special}
    (folder / "tokenizer.json").write_text(json.dumps(content))
    lengths = {rank: len(token) for token, rank in ranks.items()}
    token_bytes = [lengths.get(token_id, 0) for token_id in range(scale.vocab_size)]
    np.save(folder / "token_bytes.npy", np.array(token_bytes, np.int32))


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
    """The part of a corpus that one call of tokenize_part turns into shards number `index`."""

    index: int
    part: Part
    limit: int | None
    passage_tokens: int | None
    folder: Path


def tokenize_part(job: Job) -> dict[str, Count]:
    """Write one shard per split that the part has documents for; returns the counts.

    Documents of a part whose split is pinned keep their order; the others are put into hash order, so that a
    folder sorted by topic does not become a curriculum.
    """
    tokenizer = Tokenizer.from_directory(job.folder / "public" / "tokenizer")
    token_bytes = np.load(job.folder / "public" / "tokenizer" / "token_bytes.npy")
    held: dict[str, list[tuple[bytes, NDArray[np.uint16]]]] = {split: [] for split in SPLITS}
    held_tokens, counts = 0, dict.fromkeys(SPLITS, Count())
    for split, digest, text in documents_by_split(job.part, job.limit):
        ids = np.array(tokenizer.enc.encode_ordinary(text), np.uint16)
        tokens = with_bos(ids, tokenizer.bos_token_id, job.passage_tokens)
        held[split].append((digest, tokens))
        held_tokens += len(tokens)
        counts[split] += Count(1, len(tokens), int(token_bytes[ids].sum()))
        if held_tokens > SORT_TOKENS:
            _append_shards(job, held)
            held_tokens = 0
    _append_shards(job, held)
    return counts


def with_bos(ids: NDArray[np.uint16], bos_token_id: int, passage_tokens: int | None) -> NDArray[np.uint16]:
    """The ids with BOS before them, or before each passage of `passage_tokens` of them."""
    starts = range(0, len(ids), passage_tokens or max(len(ids), 1))
    return np.insert(ids, list(starts), bos_token_id)


def _append_shards(job: Job, held: dict[str, list[tuple[bytes, NDArray[np.uint16]]]]) -> None:
    for split, documents in held.items():
        if documents:
            if job.part.split is None:
                documents.sort(key=lambda item: item[0])
            with (job.folder / FOLDER_OF_SPLIT[split] / f"{job.index:05d}.bin").open("ab") as shard:
                shard.write(np.concatenate([tokens for _, tokens in documents]).astype("<u2").tobytes())
            documents.clear()


def score_tokens_of(folder: Path, split: str, scale: Scale, wanted: int) -> int:
    """How many tokens of a split can be scored: `wanted`, or what the packer makes of it if that is less.

    Raises BadInput if it is less than a quarter.
    """
    bos_token_id = scale.vocab_size - len(SPECIAL_TOKENS)
    documents = read_documents(folder / FOLDER_OF_SPLIT[split], bos_token_id)
    rows = pack_rows(documents, scale.max_seq_len + 1, PACKING_BUFFER)
    available = scale.max_seq_len * sum(1 for _ in itertools.islice(rows, wanted // scale.max_seq_len))
    if available < wanted // 4:
        raise BadInput(
            "the corpus has too little text or too few documents:"
            f" {available} tokens fell to the {split} split, {wanted // 4} are needed"
        )
    return available


def write_manifests(
    folder: Path, corpus: Corpus, scale_name: str, scale: Scale, splits: dict[str, Count]
) -> None:
    """Write public/manifest.json and judge/manifest.json; every file is on the disk when this returns."""
    public_files, judge_files = file_facts(folder / "public"), file_facts(folder / "judge")
    common = {
        "version": MANIFEST_VERSION,
        "scale": "cpu" if scale_name == "cpu" else "gpu",  # where it is played; train.py's constants go by it
        "size": scale_name,
        "max_seq_len": scale.max_seq_len,
        "vocab_size": scale.vocab_size,
        "bos_token_id": scale.vocab_size - len(SPECIAL_TOKENS),
        "score_tokens": score_tokens_of(folder, "validation", scale, scale.score_tokens),
        "holdout_score_tokens": score_tokens_of(folder, "holdout", scale, scale.holdout_score_tokens),
    }
    score_tokens_of(folder, "dev", scale, scale.eval_tokens)
    score_tokens_of(folder, "train", scale, scale.score_tokens)
    public = common | {
        "corpus": {
            "name": corpus.name,
            "origin": corpus.origin,
            "documents": sum(count.documents for count in splits.values()),
            "bytes": sum(count.bytes for count in splits.values()),
            "inputs": corpus.inputs,
        },
        "splits": {split: vars(count) for split, count in splits.items()},
        "files": public_files,
        "judge_files_sha256": _sha256_of_json(judge_files),
        "constants": vars(scale) | {"passage_tokens": passage_tokens_of(corpus, scale)},
    }
    public["fingerprint"] = _sha256_of_json(public)
    judge = common | {"files": judge_files, "public_fingerprint": public["fingerprint"]}
    for name, content in (("public", public), ("judge", judge)):
        (folder / name / "manifest.json").write_text(json.dumps(content, indent=1, sort_keys=True) + "\n")
    for path in [
        *folder.rglob("*"),
        folder,
    ]:  # a rename that survives a power failure must not outlive the data
        _fsync(path)


def file_facts(folder: Path) -> dict[str, dict[str, int | str]]:
    """{path relative to `folder`: {"bytes", "sha256"}} of every file below it."""
    facts: dict[str, dict[str, int | str]] = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        facts[path.relative_to(folder).as_posix()] = {"bytes": path.stat().st_size, "sha256": digest}
    return facts


def _sha256_of_json(content: object) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def main() -> int:
    """Exit status: 0 done, or already done; 2 bad input, with one sentence on stderr."""
    parser = argparse.ArgumentParser(description="Prepare data and tokenizer once.")
    parser.add_argument("--out", type=Path, required=True, help="the data folder to make")
    parser.add_argument(
        "--corpus", required=True, help="stdlib, climbmix, or a folder of .parquet, .jsonl, .txt"
    )
    parser.add_argument(
        "--scale", required=True, choices=SCALES, help="the size of the game, for a CPU or a GPU of that size"
    )
    parser.add_argument("--shards", type=int, help="climbmix: how many training shards")
    parser.add_argument(
        "--workers", type=int, default=len(os.sched_getaffinity(0)), help="parallel processes"
    )
    parser.add_argument("--downloads", type=Path, help="where downloads are kept; default: beside --out")
    args = parser.parse_args()
    os.umask(0o022)  # other users read the data: the experiment's and the judge's
    out = args.out.absolute()
    try:
        if args.workers < 1:
            raise BadInput("--workers must be at least 1")
        downloads = args.downloads or out.with_name("downloads")
        print(prepare(out, downloads, args.corpus, args.scale, args.shards, args.workers))
        return 0
    except BadInput as error:
        sentence = str(error)
    except OSError as error:
        if error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}:
            sentence = (
                f"no room left to write below {out.parent}: free some space and run the same command again"
            )
        elif error.errno in {errno.EACCES, errno.EROFS, errno.EPERM, errno.ENOTDIR}:
            sentence = f"cannot use {error.filename or out}: {error.strerror}"
        else:
            raise
    print(f"prepare: {sentence}", file=sys.stderr)
    return 2
