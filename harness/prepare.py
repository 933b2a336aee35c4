"""What a `train.py` can rely on, and the one-time preparation of what it trains on.

`train.py` imports this module: the constants, the tokenizer, batches, the dev score, the clock, the checkpoint.
It is mounted read-only, and nothing in it protects the score: `evaluate_bpb` is a run's own estimate on the dev
split, while the score that counts is computed elsewhere, from validation text that is not mounted here, with a
checkpoint that `save_checkpoint` left behind.

Run as a script it prepares the data once (second half of the file):

    python prepare.py --out home/data --corpus stdlib --scale cpu
"""

import argparse
import base64
import bisect
import errno
import fcntl
import functools
import hashlib
import inspect
import json
import math
import multiprocessing
import os
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import tiktoken
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch  # imported where it is used: preparation runs without it
    from corpus import Corpus, Part

# --- constants ----------------------------------------------------------------------------------------------

MANIFEST_VERSION = 1

# These come from the manifest of the prepared data, when first asked for (see __getattr__ below).
SCALE: str  # "gpu" or "cpu"
MAX_SEQ_LEN: int  # context length, tokens
VOCAB_SIZE: int  # entries of the vocabulary, special tokens included
EVAL_TOKENS: int  # tokens of the dev split that evaluate_bpb looks at

WALL_SECONDS = float(os.environ.get("GLOVEBOX_BUDGET_SECONDS", "300"))  # the run is killed after this long

# Seconds of training that a script may plan for which starts its own clock late, as upstream's does after importing,
# compiling and eleven steps. What is held back is for that, and for saving and evaluating at the end. A script that
# asks time_left() instead can use almost all of WALL_SECONDS.
TIME_BUDGET = max(1.0, 0.8 * WALL_SECONDS - 3.0)


class DataNotPreparedError(RuntimeError):
    """There is no prepared data where it is expected, or it is of another version."""


def data_folder() -> Path:
    """The public data: GLOVEBOX_DATA, or else where the container or a native home has it."""
    if "GLOVEBOX_DATA" in os.environ:
        return Path(os.environ["GLOVEBOX_DATA"])
    return Path("/data") if Path("/data/manifest.json").exists() else Path("home/data/public")


@functools.cache
def manifest() -> dict[str, Any]:
    """The manifest of the prepared data. Raises DataNotPreparedError."""
    path = data_folder() / "manifest.json"
    try:
        content: dict[str, Any] = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise DataNotPreparedError(f"no prepared data at {path.parent}: run `glovebox prepare`") from None
    if content["version"] != MANIFEST_VERSION:
        raise DataNotPreparedError(
            f"{path.parent} holds data of another version: run `glovebox prepare` anew"
        )
    return content


def __getattr__(name: str) -> Any:
    """The constants that depend on the data, so that importing this module does not."""
    keys = {"SCALE": "scale", "MAX_SEQ_LEN": "max_seq_len", "VOCAB_SIZE": "vocab_size"}
    if name in keys:
        return manifest()[keys[name]]
    if name == "EVAL_TOKENS":
        return manifest()["constants"]["eval_tokens"]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


# --- the clock ----------------------------------------------------------------------------------------------


def _process_started() -> float:
    """When this process was started, on the clock of time.monotonic()."""
    after_name = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    seconds_after_boot = int(after_name[19]) / os.sysconf("SC_CLK_TCK")  # field 22 of proc_pid_stat(5)
    age = time.clock_gettime(time.CLOCK_BOOTTIME) - seconds_after_boot
    return time.monotonic() - age


_STARTED = float(os.environ["GLOVEBOX_STARTED"]) if "GLOVEBOX_STARTED" in os.environ else _process_started()


def time_left() -> float:
    """Seconds until this run is killed; negative when that is overdue. Counts from the container's start."""
    return _STARTED + WALL_SECONDS - time.monotonic()


# --- tokenizer ----------------------------------------------------------------------------------------------


class Tokenizer:
    """Byte-level BPE, served by tiktoken."""

    def __init__(self, enc: tiktoken.Encoding, bos_token_id: int) -> None:
        self.enc = enc
        self.bos_token_id = bos_token_id

    @classmethod
    def from_directory(cls, tokenizer_dir: str | Path | None = None) -> "Tokenizer":
        """Read `tokenizer.json`; by default the tokenizer of the prepared data."""
        path = Path(tokenizer_dir or data_folder() / "tokenizer") / "tokenizer.json"
        if not path.exists():
            raise DataNotPreparedError(f"no tokenizer at {path}: run `glovebox prepare`")
        stored = json.loads(path.read_bytes())
        ranks = {base64.b64decode(token): rank for token, rank in stored["ranks"].items()}
        enc = tiktoken.Encoding(
            "glovebox", pat_str=stored["pattern"], mergeable_ranks=ranks, special_tokens=stored["special"]
        )
        return cls(enc, stored["special"][BOS_TOKEN])

    def get_vocab_size(self) -> int:
        return self.enc.n_vocab

    def get_bos_token_id(self) -> int:
        return self.bos_token_id

    def encode(
        self, text: str | list[str], prepend: int | str | None = None, num_threads: int = 8
    ) -> list[int] | list[list[int]]:
        """Token ids of a text, or of each text of a list; `prepend` is a token id or a special token's name.

        Special tokens written out in the text are encoded as ordinary text.
        """
        first: list[int] = []
        if prepend is not None:
            first = [prepend if isinstance(prepend, int) else self.enc.encode_single_token(prepend)]
        if isinstance(text, str):
            return first + self.enc.encode_ordinary(text)
        return [first + ids for ids in self.enc.encode_ordinary_batch(text, num_threads=num_threads)]

    def decode(self, ids: Sequence[int]) -> str:
        return self.enc.decode(list(ids))


def get_token_bytes(device: "str | torch.device" = "cpu") -> "torch.Tensor":
    """int32 [VOCAB_SIZE]: how many bytes of text each token stands for; 0 for special tokens."""
    import torch

    return torch.from_numpy(np.load(data_folder() / "tokenizer" / "token_bytes.npy")).to(device)


# --- batches ------------------------------------------------------------------------------------------------


def read_documents(folder: Path, bos_token_id: int) -> Iterator[NDArray[np.uint16]]:
    """The documents in a folder of shards, once, in order: views of mapped memory, each starting with BOS."""
    for path in sorted(folder.glob("*.bin")):
        tokens = np.asarray(np.memmap(path, dtype="<u2", mode="r"))
        starts = np.flatnonzero(tokens == bos_token_id).tolist()
        for start, end in zip(starts, [*starts[1:], len(tokens)], strict=True):
            yield tokens[start:end]


def pack_rows(
    documents: Iterator[NDArray[np.uint16]], row_capacity: int, buffer_size: int
) -> Iterator[NDArray[np.int64]]:
    """Pack documents into full rows, int64 [row_capacity]; every row starts with the first token of a document.

    Best fit, as upstream: of the `buffer_size` documents at hand take the longest that still fits; if none does,
    fill the row with the head of the shortest and drop its tail. The last row is dropped if it cannot be filled.
    """
    lengths: list[int] = []  # sorted, so that bisect finds the best fit; among equals the oldest is last
    waiting: list[NDArray[np.uint16]] = []  # waiting[i] has lengths[i] tokens
    row, used = np.empty(row_capacity, np.int64), 0
    while True:
        while len(waiting) < buffer_size and (document := next(documents, None)) is not None:
            place = bisect.bisect_left(lengths, len(document))
            lengths.insert(place, len(document))
            waiting.insert(place, document)
        if not waiting:
            return
        best = max(bisect.bisect_right(lengths, row_capacity - used) - 1, 0)  # 0 if none fits: the shortest
        length = min(lengths.pop(best), row_capacity - used)
        row[used : used + length] = waiting.pop(best)[:length]
        used += length
        if used == row_capacity:
            yield row
            row, used = np.empty(row_capacity, np.int64), 0


def make_dataloader(
    tokenizer: Tokenizer, B: int, T: int, split: str, buffer_size: int = 1000
) -> "Iterator[tuple[torch.Tensor, torch.Tensor, int]]":
    """Batches without end: (inputs, targets, epoch), int64 [B, T] on the GPU if there is one; epochs count from 1.

    `split` is "train", or "val" for the dev split (the validation split is out of reach here).
    On CUDA the copy is asynchronous: rows are packed while the GPU is still busy with the last batch.
    """
    import torch

    folder = {"train": "train", "val": "dev"}[split]
    epoch = 0

    def documents() -> Iterator[NDArray[np.uint16]]:
        nonlocal epoch
        while True:
            epoch += 1
            yield from read_documents(data_folder() / folder, tokenizer.get_bos_token_id())

    rows = pack_rows(documents(), T + 1, buffer_size)
    while True:
        batch = torch.from_numpy(np.stack([next(rows) for _ in range(B)]))
        if torch.cuda.is_available():
            batch = batch.pin_memory().to("cuda", non_blocking=True)
        yield batch[:, :-1].contiguous(), batch[:, 1:].contiguous(), epoch


# --- the dev score and the checkpoint -----------------------------------------------------------------------


def evaluate_bpb(model: "torch.nn.Module", tokenizer: Tokenizer, batch_size: int) -> float:
    """Bits per byte on the dev split: a run's own estimate of its score, by the same formula.

    Sum of the cross-entropies in nats over the targets that stand for text, divided by ln 2 times the bytes they
    stand for; special tokens count in neither. Saves a checkpoint first, so a script which only trains and then
    evaluates is scored all the same. Looks at EVAL_TOKENS tokens, fewer if the run is about to be killed.
    """
    import torch

    save_checkpoint(model)
    seq_len = manifest()["max_seq_len"]
    token_bytes = get_token_bytes("cuda" if torch.cuda.is_available() else "cpu")
    batches = make_dataloader(tokenizer, batch_size, seq_len, "val")
    nats, count = 0.0, 0
    with torch.no_grad():
        for _ in range(max(1, manifest()["constants"]["eval_tokens"] // (batch_size * seq_len))):
            inputs, targets, _ = next(batches)
            bytes_of_target = token_bytes[targets.view(-1)]
            losses = _losses(model, inputs, targets).view(-1).double()
            nats += losses[bytes_of_target > 0].sum().item()
            count += int(bytes_of_target.sum())
            if time_left() < 0.02 * WALL_SECONDS:
                break
    return nats / (math.log(2) * count)


def _losses(model: "torch.nn.Module", inputs: "torch.Tensor", targets: "torch.Tensor") -> "torch.Tensor":
    """Cross-entropy of each target in nats, from a model(x, y, reduction=...) or from one that gives logits."""
    import torch

    forward = getattr(model, "_orig_mod", model).forward  # torch.compile hides the signature
    if "reduction" in inspect.signature(forward).parameters:
        losses: torch.Tensor = model(inputs, targets, reduction="none")
        return losses
    logits = model(inputs).float()
    return torch.nn.functional.cross_entropy(logits.flatten(0, -2), targets.view(-1), reduction="none")


def save_checkpoint(model: "torch.nn.Module") -> Path:
    """Write the model's weights as the checkpoint that will be scored, replacing an earlier one in one step.

    A run killed at any moment leaves the last complete checkpoint. Call it as often as you like; it costs a copy of
    the weights. Names are those of the model that was not compiled; tied weights are stored once for each name.
    """
    from safetensors.torch import save_file

    weights = {
        name.replace("_orig_mod.", ""): tensor.detach().to("cpu", copy=True).contiguous()
        for name, tensor in model.state_dict().items()
    }
    path = Path(os.environ.get("GLOVEBOX_OUT", "."), "checkpoint.safetensors")
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    save_file(weights, unfinished)
    unfinished.chmod(0o644)  # another user reads it
    os.replace(unfinished, path)
    return path


# === one-time preparation: nothing below is used by train.py ================================================
#
# corpus -> split by document -> tokenizer trained on the train split -> token shards -> manifest -> one rename.

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
SPECIAL_TOKENS = [f"<|reserved_{i}|>" for i in range(4)]
BOS_TOKEN = SPECIAL_TOKENS[0]
TOKENIZER_DOCUMENT_CHARS = 10_000  # of a longer document the tokenizer is trained on the head
SORT_TOKENS = 1 << 26  # so many tokens are held in memory to be put into hash order


@dataclass(frozen=True)
class Scale:
    """The size of the game; all of it goes into the manifest."""

    max_seq_len: int
    vocab_size: int
    eval_tokens: int
    """Dev tokens for a run's own estimate."""
    score_tokens: int
    """Validation tokens the judge scores by default; fewer if the corpus has less, but never less than a quarter."""
    holdout_score_tokens: int
    max_corpus_bytes: int | None
    tokenizer_chars: int
    """The tokenizer is trained on this much of the train split."""
    passage_tokens: int | None
    """Documents are cut into passages this long, each with its own BOS. With a short context the packer, which
    drops what does not fit a row, would otherwise show a model nothing but the first lines of every file."""


SCALES = {
    "gpu": Scale(
        max_seq_len=2048,
        vocab_size=8192,
        eval_tokens=1 << 21,
        score_tokens=1 << 21,
        holdout_score_tokens=1 << 19,
        max_corpus_bytes=None,
        tokenizer_chars=1_000_000_000,
        passage_tokens=None,
    ),
    "cpu": Scale(
        max_seq_len=256,
        vocab_size=1024,
        eval_tokens=1 << 15,
        score_tokens=1 << 16,
        holdout_score_tokens=1 << 15,
        max_corpus_bytes=64_000_000,
        tokenizer_chars=16_000_000,
        passage_tokens=256,
    ),
}


def prepare(
    out: Path, downloads: Path, request: str, scale_name: str, shards: int | None, workers: int
) -> str:
    """Build the data folder `out`, unless it is there already; returns one line about it for the user.

    Everything is written to `out`.partial, which then gets its name in one step. Raises BadInput.
    """
    from corpus import open_corpus, origin_of
    from download import BadInput

    if out.exists() and any(out.iterdir()):
        return check_prepared(out, origin_of(request, shards), scale_name)
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_name(out.name + ".partial")
    parent = os.open(out.parent, os.O_RDONLY)  # a lock on the folder leaves no lock file behind
    try:
        fcntl.flock(parent, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(partial, ignore_errors=True)
        scale = SCALES[scale_name]
        corpus = open_corpus(request, downloads, shards, workers, scale.max_corpus_bytes)
        summary = build(partial, corpus, scale_name, scale, workers)
        os.rename(partial, out)
        os.fsync(parent)
        return summary
    except BlockingIOError:
        raise BadInput(f"another preparation is running in {out.parent}") from None
    finally:
        os.close(parent)


def check_prepared(out: Path, origin: str, scale_name: str) -> str:
    """One line if `out` is what the same request made; BadInput if it is anything else."""
    from download import BadInput

    remedy = f"remove {out} to prepare it anew, or choose another --out"
    try:
        found = json.loads((out / "public" / "manifest.json").read_bytes())
        version, scale, found_origin = found["version"], found["scale"], found["corpus"]["origin"]
    except (OSError, ValueError, LookupError, TypeError):
        raise BadInput(f"{out} exists but is not prepared data: {remedy}") from None
    if version != MANIFEST_VERSION:
        raise BadInput(f"{out} was prepared by another version of this program ({version}): {remedy}")
    if scale != scale_name:
        raise BadInput(f"{out} was prepared at scale {scale}, not {scale_name}: {remedy}")
    if found_origin != origin:
        raise BadInput(f"{out} was prepared from another corpus ({found_origin}): {remedy}")
    return f"{out} is already prepared: {found['corpus']['name']} at scale {scale}"


def build(folder: Path, corpus: "Corpus", scale_name: str, scale: Scale, workers: int) -> str:
    """Write a complete data folder to `folder` and return one line about it. Raises BadInput."""
    started = time.monotonic()
    for name in FOLDER_OF_SPLIT.values():
        (folder / name).mkdir(parents=True)
    limit = None if scale.max_corpus_bytes is None else scale.max_corpus_bytes // max(len(corpus.parts), 1)
    print(f"corpus: {corpus.origin}", flush=True)
    train_tokenizer(folder / "public" / "tokenizer", corpus, scale, limit)
    shutil.copyfile(folder / "public" / "tokenizer" / "token_bytes.npy", folder / "judge" / "token_bytes.npy")
    print(f"tokenizer: {scale.vocab_size} tokens, after {time.monotonic() - started:.0f} s", flush=True)
    jobs = [Job(index, part, limit, scale.passage_tokens, folder) for index, part in enumerate(corpus.parts)]
    with multiprocessing.get_context("spawn").Pool(min(workers, len(jobs))) as pool:
        counts = pool.map(tokenize_part, jobs, chunksize=1)
    splits = {split: sum((count[split] for count in counts), Count()) for split in SPLITS}
    write_manifests(folder, corpus, scale_name, scale, splits)
    tokens = ", ".join(f"{split} {splits[split].tokens / 1e6:.2f}M" for split in SPLITS)
    return f"prepared at scale {scale_name} in {time.monotonic() - started:.0f} s; tokens: {tokens}"


def documents_by_split(part: "Part", limit: int | None) -> Iterator[tuple[str, bytes, str]]:
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


def train_tokenizer(folder: Path, corpus: "Corpus", scale: Scale, limit: int | None) -> None:
    """Train BPE on the train split and write `tokenizer.json` and `token_bytes.npy`. Raises BadInput."""
    import rustbpe
    from download import BadInput

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
        raise BadInput(f"the corpus has too little text for a vocabulary of {scale.vocab_size} tokens")
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
    part: "Part"
    limit: int | None
    passage_tokens: int | None
    folder: Path


def tokenize_part(job: Job) -> dict[str, Count]:
    """Write one shard per split that the part has documents for; returns the counts.

    Documents of a part whose split is pinned keep their order; the others are put into hash order, so that a folder
    sorted by topic does not become a curriculum.
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
                np.concatenate([tokens for _, tokens in documents]).astype("<u2").tofile(shard)
            documents.clear()


def score_tokens_of(split: str, available: int, wanted: int) -> int:
    """How many tokens of a split the judge scores: packing drops up to half. Raises BadInput if far too few."""
    from download import BadInput

    if available // 2 < wanted // 4:
        raise BadInput(
            f"the corpus has too little text: {available} tokens for the {split} split, {wanted // 2} are needed"
        )
    return min(wanted, available // 2)


def write_manifests(
    folder: Path, corpus: "Corpus", scale_name: str, scale: Scale, splits: dict[str, Count]
) -> None:
    """Write public/manifest.json and judge/manifest.json; every file is on the disk when this returns."""
    public_files, judge_files = file_facts(folder / "public"), file_facts(folder / "judge")
    common = {
        "version": MANIFEST_VERSION,
        "scale": scale_name,
        "max_seq_len": scale.max_seq_len,
        "vocab_size": scale.vocab_size,
        "bos_token_id": scale.vocab_size - len(SPECIAL_TOKENS),
        "score_tokens": score_tokens_of("validation", splits["validation"].tokens, scale.score_tokens),
        "holdout_score_tokens": score_tokens_of(
            "holdout", splits["holdout"].tokens, scale.holdout_score_tokens
        ),
    }
    score_tokens_of("dev", splits["dev"].tokens, scale.eval_tokens)
    score_tokens_of("train", splits["train"].tokens, scale.score_tokens)
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
        "constants": vars(scale),
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
    from download import BadInput

    parser = argparse.ArgumentParser(description="Prepare data and tokenizer once.")
    parser.add_argument("--out", type=Path, required=True, help="the data folder to make")
    parser.add_argument(
        "--corpus", required=True, help="stdlib, climbmix, or a folder of .parquet, .jsonl, .txt"
    )
    parser.add_argument("--scale", required=True, choices=SCALES)
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


if __name__ == "__main__":
    sys.exit(main())
