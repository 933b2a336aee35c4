"""W, the worker: rebuilds an experiment's model in a fresh process and answers token rows with logits.

`python worker.py CONFIG` (one JSON object, see `Config`). Two forms of train.py are accepted:

- import-safe, with a module-level `build_model` that can be called without arguments, a function or any other
  callable assigned to that name: imported as `train`, never run as a script;
- a flat upstream-style script: run as `__main__` until it requests its first training batch, or waits for one
  that it fetches in another thread or process; its module-level `model` is scored.

Holes in the files that the run left are filled. The checkpoint is copied into memory, parsed, and loaded
strictly. The model runs in eval mode, uncompiled, in inference mode and under the file's own
module-level `autocast_ctx` if it has one, else under bfloat16 autocast on CUDA.

This process runs the experiment's code, so nothing it says is trusted; it protects only itself, against a
broken checkpoint. It answers until it is killed. If it ends earlier, its exit status says why: 10 train.py
does not import or build; 11 no checkpoint; 12 the checkpoint does not fit, is too big or is not safetensors;
13 the forward pass failed; 14 out of memory; 15 a flat script fetches batches elsewhere, and its main thread
does not wait for them; 1 the exchange itself failed. On stderr it prints details for people, then one line
for the controller, which accepts only a known name and an existing line number:

    worker: RuntimeError 57

the class of the exception and the last line of train.py that it passed through, `-` if there is none.
"""

import ast
import contextlib
import errno
import json
import mmap
import os
import stat
import struct
import sys
import traceback
import types
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import safetensors.torch
import torch
from answers import Lengths, Parts, Replies, answer
from batches import FirstBatch, NeverWaited, Script
from exchange import SlotReader, SlotWriter, await_word, usable_cpus

import prepare

BUILD, NO_CHECKPOINT, CHECKPOINT, FORWARD, MEMORY, BATCHES = 10, 11, 12, 13, 14, 15
MAX_HEADER_BYTES = 8 << 20  # safetensors names and shapes; about 80,000 tensors
COMPILED = "_orig_mod."  # torch.compile's addition to the names of parameters


class Failure(Exception):
    """The experiment's model cannot be served; `status` is the exit status, `__cause__` the exception."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


@dataclass(frozen=True)
class Config:
    """Paths and limits."""

    train: Path
    checkpoint: Path
    requests: Path
    replies: Path
    total_seconds: float
    """How long to wait for the judge."""
    max_checkpoint_bytes: int
    compact: bool = False
    """Answer in float16, as a GPU does."""
    waits: bool = False
    """Import everything, then wait for the start signal before reading anything that the run left."""

    @classmethod
    def from_json(cls, text: str) -> "Config":
        """Raises ValueError, KeyError or TypeError if a field is missing or unknown."""
        fields: dict[str, Any] = json.loads(text)
        fields |= {name: Path(fields[name]) for name in ("train", "checkpoint", "requests", "replies")}
        return cls(**fields)


@contextlib.contextmanager
def failing_as(status: int, what: str) -> Iterator[None]:
    """Turn exceptions of the experiment's code into a Failure with `status`, or MEMORY if out of memory."""
    try:
        yield
    except Failure:
        raise
    except NeverWaited:
        raise Failure(BATCHES, "batches are fetched elsewhere, and nothing waited for one") from None
    except (Exception, SystemExit, FirstBatch) as error:
        reason = " ".join(f"{what}: {type(error).__name__}: {error}".split())[:500]
        raise Failure(MEMORY if _is_out_of_memory(error) else status, reason) from error


def _is_out_of_memory(error: BaseException) -> bool:
    # torch raises a plain RuntimeError when the CPU allocator fails
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "DefaultCPUAllocator" in str(error)


# --- the model -----------------------------------------------------------------


def is_importable(source: bytes | str) -> bool:
    """Whether train.py defines a module-level `build_model` that can be called without arguments.

    Anything assigned to the name, such as a `functools.partial`, counts, except a lambda that needs
    arguments.
    """
    for node in ast.parse(source).body:
        if isinstance(node, ast.FunctionDef) and node.name == "build_model":
            return _needs_nothing(node.args)
        if isinstance(node, ast.Assign | ast.AnnAssign) and _assigns_to(node, "build_model"):
            return not isinstance(node.value, ast.Lambda) or _needs_nothing(node.value.args)
    return False


def _needs_nothing(args: ast.arguments) -> bool:
    return len(args.posonlyargs + args.args) == len(args.defaults) and None not in args.kw_defaults


def _assigns_to(node: ast.Assign | ast.AnnAssign, name: str) -> bool:
    targets = node.targets if isinstance(node, ast.Assign) else [node.target]
    return node.value is not None and any(isinstance(t, ast.Name) and t.id == name for t in targets)


def run_train(path: Path) -> tuple[types.ModuleType, torch.nn.Module]:
    """Execute train.py in either form; its module and the model it builds. Raises Failure."""
    with failing_as(BUILD, "train.py"):
        source = path.read_bytes()  # bytes: compile() decodes as the interpreter does
        importable = is_importable(source)
        module = types.ModuleType("train" if importable else "__main__")
        module.__file__ = str(path)
        sys.modules[module.__name__] = module
        sys.argv = [str(path)]
        script = Script(module)
        prepare.make_dataloader = script.make_dataloader
        with script.until_first_batch():
            exec(compile(source, str(path), "exec"), module.__dict__)
        model = module.build_model() if importable else getattr(module, "model", None)
        if not isinstance(model, torch.nn.Module):
            raise Failure(BUILD, "train.py leaves neither build_model() nor a module-level model")
        return module, _uncompiled(model)


def _uncompiled(model: torch.nn.Module) -> torch.nn.Module:
    original = getattr(model, "_orig_mod", model)
    return original if isinstance(original, torch.nn.Module) else model


def forward_context(module: types.ModuleType, device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """The file's own `autocast_ctx`, else bfloat16 autocast on CUDA and nothing on the CPU."""
    context = getattr(module, "autocast_ctx", None)
    if isinstance(context, contextlib.AbstractContextManager):
        return context
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=device.type == "cuda")


# --- the checkpoint ------------------------------------------------------------


def read_checkpoint(path: Path, max_bytes: int) -> bytes:
    """A private copy of the checkpoint file. Raises Failure if it is missing, not a regular file or too big.

    The experiment wrote it: a FIFO must not block us, links are not followed, and the size is checked before
    anything is read.
    """
    try:
        file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise Failure(NO_CHECKPOINT, "the run left no checkpoint") from None
    except OSError as error:
        raise Failure(CHECKPOINT, f"checkpoint cannot be opened: {os.strerror(error.errno or 0)}") from None
    try:
        status = os.fstat(file)
        if not stat.S_ISREG(status.st_mode):
            raise Failure(CHECKPOINT, "checkpoint is not a regular file")
        if status.st_size > max_bytes:
            raise Failure(CHECKPOINT, f"checkpoint has {status.st_size} bytes, allowed are {max_bytes}")
        with failing_as(CHECKPOINT, "checkpoint cannot be read"), open(file, "rb", closefd=False) as stream:
            return stream.read(status.st_size)
    finally:
        os.close(file)


def parse_checkpoint(content: bytes) -> dict[str, torch.Tensor]:
    """The tensors of a safetensors file by name, without torch.compile's prefix. Raises Failure."""
    if len(content) < 8 or struct.unpack("<Q", content[:8])[0] > MAX_HEADER_BYTES:
        raise Failure(CHECKPOINT, f"checkpoint has no safetensors header of up to {MAX_HEADER_BYTES} bytes")
    with failing_as(CHECKPOINT, "checkpoint is no safetensors file"):
        tensors = safetensors.torch.load(content)
    return {name.replace(COMPILED, ""): tensor for name, tensor in tensors.items()}


def load_weights(model: torch.nn.Module, weights: dict[str, torch.Tensor]) -> None:
    """Load strictly; on either side, parts of the model may be compiled. Raises Failure."""
    with failing_as(CHECKPOINT, "checkpoint does not fit the model"):
        names = {name.replace(COMPILED, ""): name for name in model.state_dict()}
        state = dict(_decoded(name, tensor) for name, tensor in weights.items())
        model.load_state_dict({names.get(name, name): state[name] for name in state}, strict=True)


def _decoded(name: str, tensor: torch.Tensor) -> tuple[str, Any]:
    """An entry of state_dict(); the result of get_extra_state() was stored as JSON."""
    if not name.endswith(prepare.JSON_MARK):
        return name, tensor
    return name.removesuffix(prepare.JSON_MARK), json.loads(tensor.numpy().tobytes())


# --- what else the run left ----------------------------------------------------


def fill_holes(folder: Path) -> None:
    """Allocate every page of every file that the run left, before any of its code runs here.

    A hole in a tmpfs file that is read through a mapping becomes a page, even on a read-only mount, and the
    page outlives its reader: one worker could send a message to the next. Raises Failure if the holes are
    larger than the free space, or if a folder can be entered but not listed.
    """

    def refuse_hidden(error: OSError) -> None:
        if os.access(error.filename, os.X_OK):
            raise Failure(CHECKPOINT, "the run left a folder that cannot be looked through") from error

    with failing_as(CHECKPOINT, "what the run left cannot be looked through"):
        for where, _, names in os.walk(folder, onerror=refuse_hidden):
            for name in names:
                _fill(os.path.join(where, name))


def _fill(path: str) -> None:
    try:
        file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.ELOOP, errno.ENXIO):
            return  # unreadable for everyone here: another user's, a link, a socket
        raise
    try:
        status = os.fstat(file)
        if not stat.S_ISREG(status.st_mode) or status.st_size == 0:
            return
        room = os.fstatvfs(file)
        if status.st_size - 512 * status.st_blocks > room.f_bfree * room.f_frsize:
            raise Failure(CHECKPOINT, "the run left a file with holes that do not fit into its workspace")
        with mmap.mmap(file, 0, prot=mmap.PROT_READ) as pages:
            _ = pages[:: mmap.PAGESIZE]
    finally:
        os.close(file)


# --- answering -----------------------------------------------------------------


def get_ready() -> None:
    """Everything that does not depend on the experiment, above all slow imports for compiled functions."""
    torch.set_num_threads(usable_cpus())
    # For the few batches to score, compiling costs more than it saves, here and in compiled functions of the
    # model.
    torch.compiler.set_stance("force_eager")


def serve(config: Config) -> NoReturn:
    """Wait for the start signal, build, load, answer. Raises Failure, TimeoutError."""
    get_ready()
    if config.waits:
        await_word()
    fill_holes(config.checkpoint.parent)
    weights = parse_checkpoint(read_checkpoint(config.checkpoint, config.max_checkpoint_bytes))
    module, model = run_train(config.train)
    load_weights(model, weights)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with failing_as(BUILD, "model cannot be moved to its device"):
        model.to(device).eval()
    context = forward_context(module, device)

    def predict(tokens: torch.Tensor) -> object:
        with torch.inference_mode(), context:
            output = model(tokens.to(device, torch.int64))
        return output[0] if isinstance(output, tuple) else output  # many models return (logits, loss)

    def blaming() -> contextlib.AbstractContextManager[None]:
        return failing_as(FORWARD, "forward")

    replies = Replies(config.replies, device, compact=config.compact, blaming=blaming)
    of_any_length = Lengths(Parts(predict), prepare.MAX_SEQ_LEN)

    def blamed(tokens: torch.Tensor) -> object:
        with blaming():
            return of_any_length(tokens)

    answer(SlotReader(config.requests), replies, blamed, config.total_seconds)


def main() -> NoReturn:
    """Serve until killed, or exit with the status that says what went wrong."""
    config = Config.from_json(sys.argv[1])
    try:
        serve(config)
    except Exception as error:
        status = error.status if isinstance(error, Failure) else 1
        with contextlib.suppress(OSError):
            SlotWriter(config.replies).close()  # so that the judge need not wait for its time limit
        traceback.print_exc()
        print(report(error, str(config.train)), file=sys.stderr, flush=True)
        sys.stdout.flush()
        os._exit(status)  # do not wait for the experiment's threads and exit handlers


def report(error: Exception, train: str) -> str:
    """The last line: what the experiment's code raised, if it did, and on which line of `train`."""
    raised = error.__cause__ if isinstance(error, Failure) else error
    name = "-" if raised is None else type(raised).__name__
    frames = traceback.extract_tb(raised.__traceback__) if raised is not None else []
    lines = [frame.lineno for frame in frames if frame.filename == train]
    if isinstance(raised, SyntaxError) and raised.filename in (train, "<unknown>"):  # compiled; only parsed
        lines.append(raised.lineno)
    return f"worker: {name} {lines[-1] if lines and lines[-1] else '-'}"


if __name__ == "__main__":
    main()
