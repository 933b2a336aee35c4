"""What a `train.py` can rely on: constants, the clock, tokenizer, batches, the dev score, the checkpoint.

It is mounted read-only beside `train.py`, and nothing in it protects the score: `evaluate_bpb` is a run's own
estimate on the dev split. The score that counts is computed elsewhere, from the checkpoint that
`save_checkpoint` left behind and from validation text that is never mounted here.

A run's clock starts with its container. On a GPU, importing torch and creating a context take seconds,
compiling a model takes tens of seconds, and each is a second less of training; `time_left()` includes them.
No compiled kernel is kept from one run to the next, so fast compilation is worth more than slightly faster
kernels: compile a repeated block once, use few shapes, and compile nothing that does not pay off.

Run as a script it prepares the data, once:

    python prepare.py --out home/data --corpus stdlib --scale cpu
"""

import base64
import bisect
import contextlib
import functools
import inspect
import itertools
import json
import math
import multiprocessing
import os
import re
import sys
import threading
import time
import types
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard

import numpy as np
import tiktoken
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch  # imported where it is used: preparation runs without it

# --- constants ----------------------------------------------------------------------------------------------

MANIFEST_VERSION = 1

SPECIAL_TOKENS = [f"<|reserved_{i}|>" for i in range(4)]  # the last ids of the vocabulary
BOS_TOKEN = SPECIAL_TOKENS[0]  # begins every document

# These come from the manifest of the prepared data, on first access (see __getattr__ below).
SCALE: str  # "gpu" or "cpu": where experiments run; for a GPU there are several sizes of data
MAX_SEQ_LEN: int  # context length, tokens
VOCAB_SIZE: int  # entries of the vocabulary, special tokens included
EVAL_TOKENS: int  # tokens of the dev split that evaluate_bpb looks at

PACKING_BUFFER = 1000  # documents the packer chooses from

WALL_SECONDS = float(os.environ.get("GLOVEBOX_BUDGET_SECONDS", "300"))  # the run is killed after this long

# The run's seed, drawn by the controller: no program is kept for the luck of its own.
SEED = int(os.environ.get("GLOVEBOX_SEED", "42"))

# The controller looks for this line.
NO_GPU = "no GPU: the data is for one, and torch finds none in this container"


class DataNotPreparedError(RuntimeError):
    """There is no prepared data in the expected place, or it is of another version."""


def data_folder() -> Path:
    """The public data: GLOVEBOX_DATA, else its place in the container or in a native home."""
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
    """The constants that depend on the data; lazy, so that this module can be imported without data."""
    keys = {"SCALE": "scale", "MAX_SEQ_LEN": "max_seq_len", "VOCAB_SIZE": "vocab_size"}
    if name in keys:
        return manifest()[keys[name]]
    if name == "EVAL_TOKENS":
        return manifest()["constants"]["eval_tokens"]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


# --- the clock ----------------------------------------------------------------------------------------------


def _process_started() -> float:
    """When this process started, on the clock of time.monotonic()."""
    after_name = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    seconds_after_boot = int(after_name[19]) / os.sysconf("SC_CLK_TCK")  # field 22 of proc_pid_stat(5)
    age = time.clock_gettime(time.CLOCK_BOOTTIME) - seconds_after_boot
    return time.monotonic() - age


_STARTED = float(os.environ["GLOVEBOX_STARTED"]) if "GLOVEBOX_STARTED" in os.environ else _process_started()


def time_left() -> float:
    """Seconds until this run is killed, negative if overdue. Counts from the container's start."""
    return _STARTED + WALL_SECONDS - time.monotonic()


class _TimeBudget(float):
    """What a script's own clock should read when its training ends, if that clock starts late.

    Upstream's clock starts after imports, compilation and eleven steps, and its schedule uses
    `total_training_time / TIME_BUDGET`. Until training has begun, this is a plain number, an estimate. From
    then on, if a clock is divided by it or compared with it, it is what that clock will read at the end: its
    current reading plus the time left, less a reserve for the current step, the evaluation and the save. That
    accounts for the actual start-up time, and for anything else the clock does not count. Everywhere else, in
    a sum or in print, it is its last value.

    A clock is distinguished from a constant by its value: no clock has run for longer than the process.
    """

    __array_ufunc__ = None  # makes NumPy numbers use the methods below

    def __init__(self, estimate: float) -> None:
        self.seconds = float(estimate)
        self.batches = self.tokens = 0  # handed out for training
        self._compared, self._tokens_then = 0.0, 0  # at the last comparison with a clock
        self._step_seconds = self._step_tokens = 0.0  # between two such comparisons

    def hand_out(self, tokens: int) -> None:
        """Called by the data loader for each batch."""
        self.batches += 1
        self.tokens += tokens

    def _for_clock(self, reading: object) -> float:
        """The budget for this clock reading; a value that cannot be one leaves it unchanged."""
        if self._is_clock(reading):
            self.seconds = float(reading) + time_left() - self._reserve()
        return self.seconds

    def _is_clock(self, reading: object) -> TypeGuard[float]:
        training = self.batches > 1  # the first batch is fetched before training
        if not training or not isinstance(reading, int | float | np.number):
            return False
        return 0 < float(reading) <= WALL_SECONDS - time_left()

    def _reserve(self) -> float:
        """Seconds to reserve for one more step, the evaluation, the save and the process's exit."""
        evaluation = 0.0
        if self._step_tokens > 0:  # a forward pass is about a third of a training step
            steps = manifest()["constants"]["eval_tokens"] / self._step_tokens
            evaluation = min(0.4 * steps * self._step_seconds, 0.05 * WALL_SECONDS)
        return 1.0 + 0.015 * WALL_SECONDS + self._step_seconds + evaluation

    def _compare(self, reading: object) -> float:
        """The same for a comparison. There is one in each step, so they measure the step time."""
        if self._is_clock(reading):
            now, tokens = WALL_SECONDS - time_left(), self.tokens
            if self._compared > 0:
                # A moving average: with a maximum, the schedule would jump at every hiccup.
                share = 0.1 if self._step_seconds > 0 else 1.0
                self._step_seconds += share * (now - self._compared - self._step_seconds)
                self._step_tokens += share * (tokens - self._tokens_then - self._step_tokens)
            self._compared, self._tokens_then = now, tokens
        return self._for_clock(reading)

    def __lt__(self, other: float) -> bool:
        return self._compare(other) < other

    def __le__(self, other: float) -> bool:
        return self._compare(other) <= other

    def __gt__(self, other: float) -> bool:
        return self._compare(other) > other

    def __ge__(self, other: float) -> bool:
        return self._compare(other) >= other

    def __rtruediv__(self, other: float) -> float:
        budget = self._for_clock(other)
        # The last step may use some of the reserve, but a schedule's progress must not exceed 1.
        return other / (max(budget, other) if self._is_clock(other) else budget)

    def __truediv__(self, other: float) -> float:
        return self.seconds / other

    def __add__(self, other: float) -> float:
        return self.seconds + other

    def __sub__(self, other: float) -> float:
        return self.seconds - other

    def __rsub__(self, other: float) -> float:
        return other - self.seconds

    def __mul__(self, other: float) -> float:
        return self.seconds * other

    __radd__, __rmul__ = __add__, __mul__

    def __float__(self) -> float:
        return self.seconds

    def __int__(self) -> int:
        return int(self.seconds)

    def __repr__(self) -> str:
        return repr(self.seconds)

    __str__ = __repr__

    def __format__(self, how: str) -> str:
        return format(self.seconds, how)


_time_budget = _TimeBudget(max(1.0, 0.8 * WALL_SECONDS - 3.0))

TIME_BUDGET: float = _time_budget  # seconds of training for a clock that starts late; prefer time_left()


# --- the training loss --------------------------------------------------------------------------------------


class _Reports:
    """What was reported since the last line, and when that was printed."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.next_line = 0.0
        """Seconds after the start."""
        self.broken = False
        """A loss that is not finite was reported, at once."""


_reports = _Reports()

REPORT_LINES = 256  # at most so many are printed in the budget


def report(step: int, loss: "float | torch.Tensor") -> None:
    """Tell the controller the training loss of a step, in nats per token: the plain mean cross-entropy.

    Call it in every step, or as often as the loss is known; a tensor is waited for. The losses become a curve
    beside the score, for people and for the agent. No run is ranked by it. But a run is ended early if its
    loss is not a finite number, or if for some time it is far above what every kept program had reached in
    half the time; so report no loss that cannot be compared, with a penalty in it for instance, or of targets
    that were smoothed.
    """
    seconds, value = WALL_SECONDS - time_left(), float(loss)
    _reports.losses.append(value)
    broken = not math.isfinite(value)
    breaks, _reports.broken = broken and not _reports.broken, _reports.broken or broken
    if seconds < _reports.next_line and not breaks:
        return
    mean = sum(_reports.losses) / len(_reports.losses)
    print(f"report: step={step} seconds={seconds:.2f} loss={mean:.7g}", flush=True)
    _reports.losses.clear()
    _reports.next_line = seconds + WALL_SECONDS / REPORT_LINES


# --- tokenizer ----------------------------------------------------------------------------------------------


class Tokenizer:
    """Byte-level BPE, served by tiktoken."""

    RUN_CHARS = 1 << 16
    """tiktoken panics if its pattern matches a piece of about a million characters. Such a piece has no white
    space after its first character, or is all white space: longer runs of either kind are cut. White space is
    Unicode's White_Space, as \\s is in tiktoken but not in Python."""
    _SPACE = "\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
    _LONG_RUN = re.compile(
        f"(?<![^{_SPACE}])[^{_SPACE}]{{{RUN_CHARS + 1},}}|(?<![{_SPACE}])[{_SPACE}]{{{RUN_CHARS + 1},}}"
    )

    def __init__(self, enc: tiktoken.Encoding, bos_token_id: int) -> None:
        self.enc = enc
        self.bos_token_id = bos_token_id

    @classmethod
    def from_directory(cls, tokenizer_dir: str | Path | None = None) -> "Tokenizer":
        """Read `tokenizer.json`; by default that of the prepared data."""
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
            return first + self._encode(text)
        with ThreadPoolExecutor(num_threads) as threads:
            return [first + ids for ids in threads.map(self._encode, text)]

    def _encode(self, text: str) -> list[int]:
        return [token for piece in self._pieces(text) for token in self.enc.encode_ordinary(piece)]

    def _pieces(self, text: str) -> list[str]:
        """The text, cut where a run is too long for tiktoken."""
        if len(text) <= self.RUN_CHARS:
            return [text]
        cuts = [0]
        for run in self._LONG_RUN.finditer(text):
            cuts += range(run.start() + self.RUN_CHARS, run.end(), self.RUN_CHARS)
        return [text[start:end] for start, end in itertools.pairwise([*cuts, len(text)])]

    def decode(self, ids: Sequence[int]) -> str:
        return self.enc.decode(list(ids))


def get_token_bytes(device: "str | torch.device" = "cpu") -> "torch.Tensor":
    """int32 [VOCAB_SIZE]: how many bytes of text each token stands for; 0 for special tokens."""
    import torch

    return torch.from_numpy(np.load(data_folder() / "tokenizer" / "token_bytes.npy")).to(device)


# --- batches ------------------------------------------------------------------------------------------------


def read_documents(folder: Path, bos_token_id: int) -> Iterator[NDArray[np.uint16]]:
    """The documents in a folder of shards, once, in order: views of mapped files, each starting with BOS."""
    for path in sorted(folder.glob("*.bin")):
        tokens = np.asarray(np.memmap(path, dtype="<u2", mode="r"))
        starts = np.flatnonzero(tokens == bos_token_id).tolist()
        for start, end in zip(starts, [*starts[1:], len(tokens)], strict=True):
            yield tokens[start:end]


def pack_rows(
    documents: Iterator[NDArray[np.uint16]], row_capacity: int, buffer_size: int
) -> Iterator[NDArray[np.int64]]:
    """Pack documents into full rows, int64 [row_capacity]; every row starts with a document's first token.

    Best fit, as upstream: take the longest of `buffer_size` buffered documents that fits; if none does, fill
    the row with the head of the shortest and drop its tail. An incomplete last row is dropped.
    """
    lengths: list[int] = []  # sorted for bisect; among equals the oldest is last
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
    tokenizer: Tokenizer, B: int, T: int, split: str, buffer_size: int = PACKING_BUFFER
) -> "Iterator[tuple[torch.Tensor, torch.Tensor, int]]":
    """Endless batches: (inputs, targets, epoch), int64 [B, T], on the GPU if there is one.

    `split` is "train", or "val" for the dev split; the validation split is not available. Epochs count from
    1. On CUDA the copy is asynchronous: rows are packed while the GPU is still busy with the last batch.

    In a separate process, such as a DataLoader's worker, batches stay in main memory, and all such processes
    get the same ones.

    Instead of the first training batch, raises TypeError if a `model` could not be saved after training, see
    `save_checkpoint`. If a script has saved nothing shortly before the kill, its module-level `model` is
    saved here. A run on data for a GPU ends here if there is no GPU: on a CPU it would only waste time.
    """
    import torch

    if split == "train":
        _require_gpu()
        if threading.current_thread() is threading.main_thread() and not _is_child():
            _require_storable(sys._getframe(1))  # in other threads the model may not be ready yet
    folder = {"train": "train", "val": "dev"}[split]
    epoch = 0

    def documents() -> Iterator[NDArray[np.uint16]]:
        nonlocal epoch
        while True:
            epoch += 1
            yield from read_documents(data_folder() / folder, tokenizer.get_bos_token_id())

    rows = pack_rows(documents(), T + 1, buffer_size)
    asked = time.monotonic()
    while True:
        if split == "train":
            _time_budget.hand_out(B * T)
            asked, before = time.monotonic(), asked
            _save_late(asked - before)
        batch = torch.from_numpy(np.stack([next(rows) for _ in range(B)]))
        if not _is_child() and torch.cuda.is_available():
            batch = batch.pin_memory().to("cuda", non_blocking=True)
        yield batch[:, :-1].contiguous(), batch[:, 1:].contiguous(), epoch


def _require_gpu() -> None:
    """End a run on data for a GPU if torch finds none: the whole process, from any thread."""
    import torch

    in_a_run = "GLOVEBOX_BUDGET_SECONDS" in os.environ
    if in_a_run and manifest()["scale"] == "gpu" and not torch.cuda.is_available():
        print(f"\n{NO_GPU}", flush=True)
        os._exit(1)


# --- the dev score and the checkpoint -----------------------------------------------------------------------

# evaluate_bpb ends this many seconds before the kill, which leaves time for a summary and for the process to
# exit; a GPU driver takes up to 0.4 s for that.
LEAVE_SECONDS = min(1.0, 0.02 * WALL_SECONDS)

LEAST_EVALUATION = 0.25  # share of EVAL_TOKENS below which an estimate would be meaningless


def evaluate_bpb(model: "torch.nn.Module", tokenizer: Tokenizer, batch_size: int) -> float:
    """Bits per byte on the dev split: a run's own estimate of its score, by the same formula.

    Sum of the cross-entropies in nats over the targets that stand for text, divided by ln 2 times the bytes
    they stand for; special tokens count in neither. Saves a checkpoint first, so that a script that only
    trains and evaluates can be scored. Uses EVAL_TOKENS tokens, or fewer if the kill is too close; NaN if
    there is no time for a quarter of them.
    """
    import torch

    save_checkpoint(model)
    seq_len = manifest()["max_seq_len"]
    token_bytes = get_token_bytes("cuda" if torch.cuda.is_available() else "cpu")
    batches = make_dataloader(tokenizer, batch_size, seq_len, "val")
    steps = max(1, manifest()["constants"]["eval_tokens"] // (batch_size * seq_len))
    nats, count, done, another = 0.0, 0, 0, 0.0
    with torch.no_grad():
        while done < steps and time_left() > LEAVE_SECONDS + another:
            began = time.monotonic()
            inputs, targets, _ = next(batches)
            bytes_of_target = token_bytes[targets.view(-1)]
            losses = _losses(model, inputs, targets).view(-1).double()
            nats += losses[bytes_of_target > 0].sum().item()
            count += int(bytes_of_target.sum())
            another = 1.5 * (time.monotonic() - began) if done else 0.0  # the first may include compilation
            done += 1
    if done < steps:
        print(f"evaluate_bpb: no time for more than {done} of {steps} batches", flush=True)
    return nats / (math.log(2) * count) if done >= LEAST_EVALUATION * steps else math.nan


def _losses(model: "torch.nn.Module", inputs: "torch.Tensor", targets: "torch.Tensor") -> "torch.Tensor":
    """Nats for each target, from a model(x, y, reduction=...) or from one that only returns logits."""
    import torch

    forward = getattr(model, "_orig_mod", model).forward  # torch.compile hides the signature
    if "reduction" in inspect.signature(forward).parameters:
        losses: torch.Tensor = model(inputs, targets, reduction="none")
        return losses
    logits = model(inputs).float()
    return torch.nn.functional.cross_entropy(logits.flatten(0, -2), targets.view(-1), reduction="none")


def save_checkpoint(model: "torch.nn.Module") -> Path:
    """Write the model's weights as the checkpoint that will be scored, atomically replacing an earlier one.

    A run killed at any moment leaves the last complete checkpoint. Call it as often as you like: it costs a
    copy of the weights.

    What is saved is model.state_dict(): parameters and persistent buffers, on any device, under the names of
    the uncompiled model; tied weights once for each name; the result of get_extra_state() if it is a tensor
    or survives a JSON round trip. Raises TypeError, naming the entry, for anything else: other objects, and
    tensors without separate memory for each number (meta, lazy, sparse, quantised, expanded).
    """
    from safetensors.torch import save_file

    weights = dict(_storable(name, value) for name, value in _state_of(model))
    path = Path(os.environ.get("GLOVEBOX_OUT", "."), "checkpoint.safetensors")
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    save_file(weights, unfinished)
    unfinished.chmod(0o644)  # it is read by another user
    os.replace(unfinished, path)
    _late_save.needed = False
    return path


JSON_MARK = "#json"
"""Suffix of the names of entries that are not tensors and are stored as the bytes of a JSON text."""


def _state_of(model: "torch.nn.Module") -> Iterator[tuple[str, Any]]:
    """The entries of state_dict(), without torch.compile's prefix in their names."""
    return ((name.replace("_orig_mod.", ""), value) for name, value in model.state_dict().items())


def _storable(name: str, value: Any) -> "tuple[str, torch.Tensor]":
    """The name and tensor as which an entry of state_dict() is stored. Raises TypeError."""
    import torch

    if isinstance(value, torch.Tensor):
        _require_plain(name, value)
        return name, value.detach().to("cpu", copy=True).contiguous()
    return name + JSON_MARK, torch.frombuffer(bytearray(_as_json(name, value)), dtype=torch.uint8)


def _require_plain(name: str, tensor: "torch.Tensor") -> None:
    """Raises TypeError for a tensor that a checkpoint cannot store or restore."""
    import torch

    remedy = None
    if not _has_memory(tensor):
        remedy = "has no memory: give a meta tensor some with to_empty() and fill it, run a lazy module once"
    elif tensor.layout != torch.strided or tensor.is_nested:
        remedy = "is sparse or nested: keep it as a dense tensor"
    elif tensor.is_quantized:
        remedy = "is quantised: keep its integers and its scale as two tensors"
    elif any(stride == 0 and size > 1 for stride, size in zip(tensor.stride(), tensor.shape, strict=True)):
        remedy = "is expanded, so that numbers share memory: keep it with .clone(), or as a smaller buffer"
    elif not _has_storable_type(tensor.dtype):
        remedy = f"is {tensor.dtype}, which safetensors cannot hold: keep it in another type"
    if remedy is not None:
        raise TypeError(f"state_dict() holds a tensor under {name!r} that {remedy}")


@functools.cache
def _has_storable_type(dtype: "torch.dtype") -> bool:
    import safetensors.torch
    import torch

    try:
        safetensors.torch.load(safetensors.torch.save({"": torch.empty(0, dtype=dtype)}))
    except KeyError:
        return False
    return True


def _has_memory(tensor: "torch.Tensor") -> bool:
    import torch

    return not (tensor.is_meta or torch.nn.parameter.is_lazy(tensor))


def _as_json(name: str, value: Any) -> bytes:
    """A value that is not a tensor, as JSON. Raises TypeError if that would change it."""
    try:
        text = json.dumps(value)
        same = json.loads(text) == value
    except (TypeError, ValueError, RecursionError):
        same = False
    if not same:
        raise TypeError(
            f"state_dict() holds a {type(value).__name__} under {name!r}, which a checkpoint cannot: return a"
            " tensor from get_extra_state(), or what is the same after a trip through JSON (no tuples)"
        )
    return text.encode()


def _require_storable(frame: types.FrameType | None) -> None:
    """Raises TypeError if a `model` of the script, or of a caller of this frame, cannot be saved.

    Without this, a script would fail only at the end of training. Tensors without memory yet are not checked.
    """
    import torch

    models = [getattr(sys.modules["__main__"], "model", None)]
    while frame is not None:
        models.append(frame.f_locals.get("model"))
        frame = frame.f_back
    for model in models:
        if isinstance(model, torch.nn.Module):
            for name, value in _state_of(model):
                if isinstance(value, torch.Tensor):
                    if _has_memory(value):
                        _require_plain(name, value)
                else:
                    _as_json(name, value)


def _is_child() -> bool:
    """Whether this is a child process of the run, such as a DataLoader's worker."""
    # A spawned process has imported this module itself, so comparing process ids is not enough.
    return os.getpid() != _PROCESS or multiprocessing.parent_process() is not None


class _LateSave:
    """Whether and when the data loader must save for a script that has not saved anything itself."""

    def __init__(self) -> None:
        self.needed = True
        self.below = max(3.0, 0.05 * WALL_SECONDS)
        """The next save is due when at most this many seconds are left."""


_late_save = _LateSave()
_PROCESS = os.getpid()


def _save_late(step_seconds: float) -> None:
    """Save the running script's module-level `model` if the kill is near and nothing was ever saved.

    A script like upstream's saves by calling `evaluate_bpb` after training; on a slow machine it would be
    killed before that, with nothing to score. Saves again whenever half of the remaining time has passed, so
    that little training is lost. `step_seconds`, the time since the last batch, estimates the time until the
    next.
    """
    import torch

    left = time_left()
    if _is_child():
        return  # its copy of the model is from before training
    if not (_late_save.needed and 0 < left <= max(_late_save.below, 2 * step_seconds)):
        return
    _late_save.below = left / 2
    model = getattr(sys.modules["__main__"], "model", None)
    if isinstance(model, torch.nn.Module):
        with contextlib.suppress(Exception):  # the script did not ask for this, so it must not end the run
            save_checkpoint(model)
            _late_save.needed = True  # until the script itself saves


if __name__ == "__main__":
    from dataset import main

    sys.exit(main())
