"""Build the data folder: corpus -> split by document -> tokenizer -> token shards -> manifest -> one rename.

    DIR/public   manifest, tokenizer, train and dev shards: what an experiment may see
    DIR/judge    manifest, byte table, validation and hold-out shards: for the judge only

The tokenizer is trained on the train split only. `python prepare.py` runs this; experiments do not see this
module.
"""

import argparse
import base64
import contextlib
import errno
import fcntl
import hashlib
import io
import itertools
import json
import os
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import rustbpe
from corpus import Corpus, Request, open_corpus, origin_of
from documents import BLANK_LINES, DOCUMENT_CHARS, END_OF_TEXT, KINDS, NO_SEPARATOR, BadInput, Tally, shown
from folder import told_left_out
from processes import Workers, default_workers
from shards import FOLDER_OF_SPLIT, SPLITS, Count, Job, Share, shares_of, tokenize

from prepare import MANIFEST_VERSION, PACKING_BUFFER, SPECIAL_TOKENS, pack_rows, read_documents

# GPT-4's pattern, but numbers are split after two digits: three would waste a small vocabulary.
SPLIT_PATTERN = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,2}|"
    r" ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
)
TOKENIZER_DOCUMENT_CHARS = 10_000  # the tokenizer is trained on the head of longer documents

_TOO_LITTLE = "the corpus has too little text or too few documents"
_SEPARATE = f"one long .txt becomes many documents with --separator {BLANK_LINES}, or another one"


@dataclass(frozen=True)
class Scale:
    """The sizes of data and evaluation; all stored in the manifest."""

    max_seq_len: int
    vocab_size: int
    eval_tokens: int
    """Dev tokens for a run's own estimate."""
    score_tokens: int
    """Validation tokens the judge scores by default; fewer, down to a quarter, for a small corpus."""
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
    # `medium` for cards with 8 to 20 GB, `small` for less: rows and logits fill their memory, so context and
    # vocabulary are smaller. Fewer tokens are scored because such cards are slower per token.
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


def prepare(out: Path, downloads: Path, request: Request, scale_name: str, workers: int) -> str:
    """Build the data folder `out` unless it exists; returns one line about it for the user.

    Everything is written to `out`.partial, which is then renamed atomically. Raises BadInput.
    """
    if out.exists() and any(out.iterdir()):
        return check_prepared(out, origin_of(request), scale_name)
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_name(out.name + ".partial")
    with locked(out.parent):
        shutil.rmtree(partial, ignore_errors=True)  # left by a killed preparation
        try:
            scale = SCALES[scale_name]
            corpus = open_corpus(request, downloads, workers, scale.max_corpus_bytes)
            summary = build(partial, corpus, scale_name, scale, workers)
            os.rename(partial, out)
            _fsync(out.parent)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return summary


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Lock a folder, without a lock file. Raises BadInput if it is locked."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise BadInput(f"another preparation is running in {folder}") from None
    finally:
        os.close(descriptor)


def check_prepared(out: Path, origin: str, scale_name: str) -> str:
    """One line if `out` was made by the same request; otherwise raises BadInput."""
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
    started, public = time.monotonic(), folder / "public"
    for name in FOLDER_OF_SPLIT.values():
        (folder / name).mkdir(parents=True)
    print(f"corpus: {corpus.origin}", flush=True)
    # The corpus is read only in child processes: this one stays small and can report if one dies.
    with Workers(workers) as pool:
        shares = shares_of(corpus, scale.max_corpus_bytes, pool)
        pool.each(train_tokenizer, [Training(public / "tokenizer", shares, scale)])
        shutil.copyfile(public / "tokenizer" / "token_bytes.npy", folder / "judge" / "token_bytes.npy")
        print(f"tokenizer: {scale.vocab_size} tokens, after {time.monotonic() - started:.0f} s", flush=True)
        passage_tokens = passage_tokens_of(corpus, scale)
        done = pool.each(tokenize, [Job(i, share, passage_tokens, folder) for i, share in enumerate(shares)])
    splits = {split: sum((counts[split] for counts, _ in done), Count()) for split in SPLITS}
    write_manifests(folder, corpus, scale_name, scale, splits)
    for line in account(corpus, sum((tally for _, tally in done), Tally()), scale_name, scale):
        print(line, flush=True)
    tokens = ", ".join(f"{split} {splits[split].tokens / 1e6:.2f}M" for split in SPLITS)
    return f"prepared at scale {scale_name} in {time.monotonic() - started:.0f} s; tokens: {tokens}"


def account(corpus: Corpus, tally: Tally, scale_name: str, scale: Scale) -> Iterator[str]:
    """Lines about what was read, what was not, and why."""
    files = sum(part.files for part in corpus.parts)
    yield f"read: {tally.documents} documents from {tally.begun} of {files} files"
    if tally.finished < files:
        yield (
            f"cut: the scale {scale_name} takes {(scale.max_corpus_bytes or 0) / 1e6:.0f} MB of text;"
            f" files read in part: {tally.begun - tally.finished}, not at all: {files - tally.begun}"
        )
    if tally.long:
        yield f"cut: documents into pieces of {DOCUMENT_CHARS} characters: {tally.long}"
    if tally.empty or tally.halves:
        yield (
            f"skipped: documents that are empty or null: {tally.empty}, with half of a surrogate pair:"
            f" {tally.halves}; the first is {tally.first}"
        )
    if told := "; ".join(told_left_out(corpus.left_out)):
        yield f"not read: {told}"


def passage_tokens_of(corpus: Corpus, scale: Scale) -> int | None:
    """Length above which documents are cut into passages, each with its own BOS; None: never cut.

    The packer drops what does not fit into a row, so a model would only see the head of a long file.
    Upstream's shards at upstream's scale are not cut, so that scores compare with upstream's.
    """
    return None if corpus.name == "climbmix" and scale == SCALES["gpu"] else scale.max_seq_len


@dataclass(frozen=True)
class Training:
    """What the tokenizer is trained on, and the folder it is written to."""

    folder: Path
    shares: Sequence[Share]
    scale: Scale

    def __str__(self) -> str:
        return f"{self.shares[0]} and what follows" if len(self.shares) > 1 else str(self.shares[0])

    def texts(self) -> Iterator[str]:
        """The heads of documents of the train split."""
        room = self.scale.tokenizer_chars
        for share in self.shares:
            if share.part.split in (None, "train"):
                for split, _, text in share.documents(Tally()):
                    if split == "train":
                        yield text[:TOKENIZER_DOCUMENT_CHARS]
                        room -= min(len(text), TOKENIZER_DOCUMENT_CHARS)
                        if room <= 0:
                            return


def train_tokenizer(training: Training) -> None:
    """Train BPE on the train split and write `tokenizer.json` and `token_bytes.npy`. Raises BadInput."""
    scale, folder = training.scale, training.folder
    trainer = rustbpe.Tokenizer()
    merged = scale.vocab_size - len(SPECIAL_TOKENS)
    trainer.train_from_iterator(training.texts(), merged, pattern=SPLIT_PATTERN)
    ranks = {bytes(token): rank for token, rank in trainer.get_mergeable_ranks()}
    if len(ranks) < merged:
        raise BadInput(f"{_TOO_LITTLE} for a vocabulary of {scale.vocab_size} tokens ({_SEPARATE})")
    special = {name: merged + i for i, name in enumerate(SPECIAL_TOKENS)}
    stored_ranks = {base64.b64encode(token).decode(): rank for token, rank in ranks.items()}
    folder.mkdir()
    content = {"pattern": SPLIT_PATTERN, "ranks": stored_ranks, "special": special}
    (folder / "tokenizer.json").write_text(json.dumps(content))
    lengths = {rank: len(token) for token, rank in ranks.items()}
    token_bytes = [lengths.get(token_id, 0) for token_id in range(scale.vocab_size)]
    np.save(folder / "token_bytes.npy", np.array(token_bytes, np.int32))


def score_tokens_of(folder: Path, split: str, scale: Scale, wanted: int) -> int:
    """How many tokens of a split can be scored: `wanted`, or fewer if the packed rows have fewer.

    Raises BadInput if it is less than a quarter of `wanted`.
    """
    bos_token_id = scale.vocab_size - len(SPECIAL_TOKENS)
    documents = read_documents(folder / FOLDER_OF_SPLIT[split], bos_token_id)
    rows = pack_rows(documents, scale.max_seq_len + 1, PACKING_BUFFER)
    available = scale.max_seq_len * sum(1 for _ in itertools.islice(rows, wanted // scale.max_seq_len))
    if available < wanted // 4:
        raise BadInput(
            f"{_TOO_LITTLE}: {available} tokens fell to the {split} split, {wanted // 4} are needed"
            f" ({_SEPARATE})"
        )
    return available


def write_manifests(
    folder: Path, corpus: Corpus, scale_name: str, scale: Scale, splits: dict[str, Count]
) -> None:
    """Write public/manifest.json and judge/manifest.json, and make every file durable."""
    public_files, judge_files = file_facts(folder / "public"), file_facts(folder / "judge")
    common = {
        "version": MANIFEST_VERSION,
        "scale": "cpu" if scale_name == "cpu" else "gpu",  # where experiments run
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
    """{path relative to `folder`: {"bytes", "sha256"}} for every file below it."""
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


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Prepare data and tokenizer once.")
    parser.add_argument("--out", type=Path, required=True, help="the data folder to make")
    parser.add_argument(
        "--corpus", required=True, help=f"stdlib, climbmix, or a folder or file of {', '.join(KINDS)}"
    )
    parser.add_argument(
        "--scale", required=True, choices=SCALES, help="the size of the game, for a CPU or a GPU of that size"
    )
    parser.add_argument("--shards", type=int, help="climbmix: how many training shards")
    parser.add_argument(
        "--separator",
        help=f"what stands between two documents in a .txt: a text, by default {END_OF_TEXT}; {BLANK_LINES};"
        f" or {NO_SEPARATOR}: a file is a document",
    )
    parser.add_argument(
        "--workers",
        type=int,
        default=default_workers(),
        help="processes that read text at once, each with up to 1 GB of memory, and downloads at once;"
        " default: what CPUs and memory allow",
    )
    parser.add_argument("--downloads", type=Path, help="where downloads are kept; default: beside --out")
    parser.add_argument(
        "--links", type=Path, help="a folder with what the links lead to that lead out of --corpus"
    )
    return parser.parse_args()


def main() -> int:
    """Exit status: 0 done, or already done; 2 bad input, with one sentence on stderr."""
    for stream in (sys.stdout, sys.stderr):  # file names may contain any bytes
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")
    args = arguments()
    os.umask(0o022)  # other users, the experiment's and the judge's, read the data
    out = args.out.absolute()
    request = Request(args.corpus, args.shards, args.separator, args.links)
    try:
        if args.workers < 1:
            raise BadInput("--workers must be at least 1")
        downloads = args.downloads or out.with_name("downloads")
        print(prepare(out, downloads, request, args.scale, args.workers))
        return 0
    except BadInput as error:
        sentence = str(error)
    except OSError as error:
        if error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}:
            sentence = (
                f"no room left to write below {out.parent}: free some space and run the same command again"
            )
        elif error.errno in {errno.EACCES, errno.EROFS, errno.EPERM, errno.ENOTDIR}:
            sentence = f"cannot use {shown(error.filename or out)}: {error.strerror}"
        else:
            raise
    print(f"prepare: {sentence}", file=sys.stderr)
    return 2
