"""Rehearse a train.py before it costs a run: build the model, take one step, save, rebuild, load, predict.

`python rehearse.py CONFIG` (one JSON object, see `Config`) prints one JSON object with `result` and `detail`.
`failed` means that the same would happen in a run or at scoring; `inconclusive` that nothing was learnt,
because a rehearsal has no GPU, less memory or less disk than a run; otherwise the result is `passed`.

Two child processes, one after the other, do what the trainer and the worker would do, each from a fresh
interpreter state; this process only waits for them. Whatever train.py prints goes to stderr.

The first attempt takes short cuts: short sequences where the full context does not matter, no compilation,
and one long row to look for leaks. Most texts pass it. A text that does not is rehearsed again without short
cuts, and only what fails then counts.

It protects nothing: the rehearsed code could report that it passed. All it would gain is a run that fails.
"""

import inspect
import json
import os
import re
import signal
import sys
import traceback
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
import torch.nn.functional as F
from exchange import usable_cpus
from torch import Tensor, nn

import prepare
from worker import Failure, forward_context, load_weights, parse_checkpoint, read_checkpoint, run_train

ROWS = 2
PAIRED_ROWS = 3
SHORT = 256  # tokens of a short sequence; common block lengths divide it
EVERY = 16  # spacing of the positions at which trained and loaded model are compared
NOISE = 0.02  # standard deviation of the noise on the weights when looking for leaks
TOLERANCE = 1e-3  # of the largest logit; honest models are exact on a CPU, or nearly (FFT)
DETAIL_CHARACTERS = 4000

NON_CAUSAL = "predictions depend on later tokens: the model is not causal, and the judge would reject it"
TRAINED_MASK = (
    "predictions depend on later tokens as soon as {} changes: a mask that is a trained parameter does not"
    " stay what it is; make it a buffer, or mask what is trained in forward"
)
BATCH_DEPENDENT = (
    "a row is answered differently among other rows of its batch, and the judge would reject it: scale by"
    " token, not by tensor (float8), route to experts without a capacity in eval mode, use no statistics of"
    " the batch"
)

NO_GPU = re.compile(r"cuda|nvidia|cudnn|triton|flash.?att", re.IGNORECASE)
TOO_SMALL = re.compile(r"out of memory|MemoryError|DefaultCPUAllocator|No space left", re.IGNORECASE)
LOSS_INPUTS = {"targets", "target", "labels", "y"}  # names of a second input that makes it return a loss


@dataclass(frozen=True)
class Config:
    """What to rehearse, and what a run will have that is missing here."""

    train: Path
    out: Path
    """A writable folder; GLOVEBOX_OUT names the same one."""
    gpu: bool
    """A run will have a GPU, so errors about CUDA are inconclusive here."""
    max_checkpoint_bytes: int

    @classmethod
    def from_json(cls, text: str) -> "Config":
        """Raises ValueError, KeyError or TypeError if a field is missing or unknown."""
        fields: dict[str, Any] = json.loads(text)
        return cls(**fields | {"train": Path(fields["train"]), "out": Path(fields["out"])})


@dataclass(frozen=True)
class Report:
    result: str
    detail: str = ""


class Flaw(Exception):
    """The model does something that fails in a run or is rejected by the judge."""


# --- the trainer's part ---------------------------------------------------------


def train_stage(config: Config, thorough: bool) -> None:
    """Build, one forward and backward pass, save. Raises Failure, Flaw, or whatever train.py raises."""
    module, model = run_train(config.train)
    length = context_length() if thorough else short_length()
    tokens, targets = random_tokens(1)[:, :length], random_tokens(2)[:, :length]
    context = forward_context(module, torch.device("cpu"))
    model.train()
    with context:
        loss = loss_of(model, tokens, targets)
    if not torch.isfinite(loss):
        raise Flaw(f"the loss of the first step is {loss.item()}")
    if learns(model, loss):
        loss.backward()
        check_gradients(model)
    with torch.inference_mode(), context:
        logits = check_logits(model.eval()(tokens[:1]), tokens[:1])
    np.save(config.out / "trained.npy", logits[:, ::EVERY].numpy())
    prepare.save_checkpoint(model)


def context_length() -> int:
    return prepare.MAX_SEQ_LEN


def short_length() -> int:
    """Always shorter than the context."""
    return min(SHORT, context_length() // 2)


def random_tokens(seed: int, rows: int = ROWS) -> Tensor:
    """int64 [rows, context], the same in every process; the first rows do not depend on `rows`."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(prepare.VOCAB_SIZE, (rows, context_length()), generator=generator)


def loss_of(model: nn.Module, tokens: Tensor, targets: Tensor) -> Tensor:
    """The model's own loss if its second input makes it return one, else the cross-entropy of its logits."""
    names = list(inspect.signature(model.forward).parameters)
    if len(names) > 1 and names[1] in LOSS_INPUTS:
        output = model(tokens, targets)
        for part in output if isinstance(output, tuple) else (output,):
            if isinstance(part, Tensor) and part.numel() == 1:
                return part.reshape(())
    logits = check_logits(model(tokens), tokens, detach=False)
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


def learns(model: nn.Module, loss: Tensor) -> bool:
    """Whether it is trained by gradients; a model that only counts tokens, say, has no parameters."""
    return loss.requires_grad or any(parameter.requires_grad for parameter in model.parameters())


def check_gradients(model: nn.Module) -> None:
    """Raises Flaw if no parameter has a gradient, or if any gradient is NaN or infinite."""
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    if not gradients:
        raise Flaw("no parameter of the model gets a gradient from the loss")
    for name, gradient in gradients.items():
        if not torch.isfinite(gradient).all():
            raise Flaw(f"the gradient of {name} is not finite in the first step")


# --- the worker's part ----------------------------------------------------------


def score_stage(config: Config, thorough: bool) -> None:
    """Build in a fresh process, load the checkpoint, predict. Raises as `train_stage`."""
    weights = parse_checkpoint(
        read_checkpoint(config.out / "checkpoint.safetensors", config.max_checkpoint_bytes)
    )
    module, model = run_train(config.train)
    load_weights(model, weights)
    tokens = random_tokens(1, PAIRED_ROWS)
    row = tokens[:1] if thorough else tokens[:1, : short_length()]
    model.eval()
    with torch.inference_mode(), forward_context(module, torch.device("cpu")):
        compare_with_trained(config, check_logits(model(row), row))
        check_causal(model, weights, tokens, thorough)


def check_logits(output: object, tokens: Tensor, detach: bool = True) -> Tensor:
    """The logits in a model's output: finite float32 [*tokens.shape, vocabulary]. Raises Flaw."""
    logits = check_shape(first_of(output), tokens)
    if not torch.isfinite(logits).all():
        raise Flaw("model(tokens) gives logits that are NaN or infinite, before any training")
    return (logits.detach() if detach else logits).float()


def check_shape(logits: object, tokens: Tensor) -> Tensor:
    """Floating-point logits [*tokens.shape, vocabulary]. Raises Flaw."""
    expected = [*tokens.shape, prepare.VOCAB_SIZE]
    if not isinstance(logits, Tensor) or not logits.is_floating_point():
        raise Flaw(f"model(tokens) gives {describe(logits)}, not floating-point logits {expected}")
    if list(logits.shape) != expected:
        raise Flaw(f"model(tokens) gives logits {list(logits.shape)}, not {expected}")
    return logits


def first_of(output: object) -> Any:
    """The logits, also of a model that returns (logits, loss)."""
    return output[0] if isinstance(output, tuple) else output


def describe(value: object) -> str:
    return str(value.dtype) if isinstance(value, Tensor) else type(value).__name__


def compare_with_trained(config: Config, logits: Tensor) -> None:
    """Raises Flaw if the loaded model predicts something else: what is not in the checkpoint is lost."""
    trained = torch.from_numpy(np.load(config.out / "trained.npy"))
    if differ(trained, logits[:, ::EVERY]):
        raise Flaw(
            "built anew and with the saved weights loaded, the model predicts something else than before: "
            "part of what it needs is not in its state_dict(), or it is random in eval mode"
        )


def check_causal(model: nn.Module, weights: dict[str, Tensor], tokens: Tensor, thorough: bool) -> None:
    """Raises Flaw if, with noise on the weights, predictions depend on later tokens or on other rows.

    `weights` are the model's current weights: if a leak disappears when parameters with a value for each pair
    of positions keep theirs, it is a trained mask.
    """
    add_noise(model)
    check_batch(model, tokens if thorough else tokens[:, : short_length()])
    look = check_twins if thorough else check_prefix
    try:
        look(model, tokens)
    except Flaw:
        places = per_place(model)
        if places:
            load_weights(model, weights)
            add_noise(model, but=places)
            look(model, tokens)
            raise Flaw(TRAINED_MASK.format(", ".join(places))) from None
        raise


def per_place(model: nn.Module) -> list[str]:
    """Names of trained parameters with a value for each pair of positions, as a mask has."""
    square = [context_length()] * 2
    named = model.named_parameters()
    return [name for name, p in named if p.requires_grad and list(p.shape[-2:]) == square]


def add_noise(model: nn.Module, but: Collection[str] = ()) -> None:
    """Add noise to the weights: parts that are initialised to zero would block leaks, too.

    What is not trained, such as a mask, stays unchanged. An outer product is noisy enough and costs a tenth
    of independent numbers.
    """
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and parameter.is_floating_point() and name not in but:
            first = torch.randn(parameter.shape[:1]).to(parameter.dtype)
            rest = torch.randn(parameter.shape[1:]).to(parameter.dtype)
            parameter.addcmul_(first.reshape(-1, *[1] * rest.dim()), rest, value=NOISE)


def check_batch(model: nn.Module, rows: Tensor) -> None:
    """Run rows [3, T] in pairs, each in both positions and with both neighbours. Raises Flaw.

    All batches have the same shape, so that the same kernels run and an honest model rounds alike. Whichever
    row has the largest number, another row is scaled by its own maximum in one batch only.
    """
    pairs = [[0, 1], [2, 0], [1, 2]]
    logits = [first_of(model(rows[pair])).float() for pair in pairs]
    for row in range(len(pairs)):
        first, second = (logits[number][pair.index(row)] for number, pair in enumerate(pairs) if row in pair)
        require_same(first, second, BATCH_DEPENDENT)


def check_twins(model: nn.Module, tokens: Tensor) -> None:
    """Raises Flaw if other tokens from a cut on change predictions before it.

    The cut is not a multiple of any usual block length.
    """
    tokens = tokens[:2].clone()
    cut = tokens.size(1) // 2 + tokens.size(1) // 7
    tokens[1, :cut] = tokens[0, :cut]
    logits = first_of(model(tokens)).float()
    require_same(logits[0, :cut], logits[1, :cut])


def check_prefix(model: nn.Module, tokens: Tensor) -> None:
    """Raises Flaw if a prefix alone gives other predictions than in the whole row.

    It costs half as much as twins and also exercises the full context. A model that depends on the length
    itself fails, although it is causal.
    """
    row = tokens[:1]
    whole = check_shape(first_of(model(row)), row).float()
    prefix = row[:, : short_length()]
    require_same(first_of(model(prefix)).float()[0], whole[0, : prefix.size(1)])


def require_same(logits: Tensor, others: Tensor, flaw: str = NON_CAUSAL) -> None:
    """Raises Flaw if they differ, unless noise made the model overflow."""
    finite = torch.isfinite(logits).all() and torch.isfinite(others).all()
    if finite and differ(logits, others):
        raise Flaw(flaw)


def differ(a: Tensor, b: Tensor) -> bool:
    """Whether the difference exceeds rounding."""
    largest = torch.maximum(a.abs().max(), b.abs().max())
    return bool((a - b).abs().max() > TOLERANCE * largest)


# --- one stage, in a process of its own ------------------------------------------


Stage = Callable[[Config, bool], None]


def run_stage(stage: Stage, config: Config, thorough: bool) -> Report:
    """Run a stage in a child process; the report, even if the process died."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.dup2(2, 1)
        report = attempt(stage, config, thorough)
        os.write(writer, json.dumps([report.result, report.detail]).encode())
        os._exit(0)  # do not wait for threads and exit handlers of the rehearsed code
    _, status = os.waitpid(child, 0)
    os.set_blocking(reader, False)
    try:
        result, detail = json.loads(os.read(reader, 1 << 16))
        return Report(result, detail)
    except (BlockingIOError, ValueError):
        return how_it_died(os.waitstatus_to_exitcode(status))


def attempt(stage: Stage, config: Config, thorough: bool) -> Report:
    """Run a stage in this process."""
    torch.set_num_threads(usable_cpus())
    if not thorough:
        torch.compile = not_compiled
    try:
        stage(config, thorough)
    except Flaw as flaw:
        return Report("failed", str(flaw))
    except BaseException as error:
        return blame(config, error)
    return Report("passed")


def not_compiled(model: Any = None, **_options: object) -> Any:
    """Replaces torch.compile, also as a decorator; its imports take as long as torch itself."""
    return model if model is not None else not_compiled


def blame(config: Config, error: BaseException) -> Report:
    """Whether this would happen in a run as well, as a report."""
    detail = explain(config.train, error)
    if TOO_SMALL.search(detail):
        return Report("inconclusive", "the rehearsal ran out of memory or disk, of which a run has more")
    if config.gpu and NO_GPU.search(detail):
        return Report("inconclusive", "train.py needs the GPU, which a rehearsal does not have")
    return Report("failed", detail)


def explain(train: Path, error: BaseException) -> str:
    """The error and where in train.py it came from, like a traceback without other files."""
    origin = error.__cause__ if isinstance(error, Failure) and error.__cause__ else error
    frames = [frame for frame in traceback.extract_tb(origin.__traceback__) if frame.filename == str(train)]
    lines = [f"train.py, line {frame.lineno}, in {frame.name}: {frame.line}" for frame in frames]
    said = str(error) if isinstance(error, Failure) else f"{type(error).__name__}: {error}"
    return "\n".join([*lines, said])[-DETAIL_CHARACTERS:]


def how_it_died(code: int) -> Report:
    """The report for a child that ended without one."""
    if code == -signal.SIGKILL:
        return Report("inconclusive", "the rehearsal was killed, most likely for its memory")
    ended = f"by signal {signal.Signals(-code).name}" if code < 0 else f"with status {code}"
    return Report("failed", f"train.py ended its process {ended} before there was a trained model")


def rehearse(config: Config) -> Report:
    """Rehearse with short cuts and, if that fails, without them."""
    report = rehearse_once(config, thorough=False)
    if report.result != "failed":
        return report
    # Nothing is worth compiling for one step. Set here, in the parent, because it imports what both children
    # need.
    torch.compiler.set_stance("force_eager")
    return rehearse_once(config, thorough=True)


def rehearse_once(config: Config, thorough: bool) -> Report:
    """Both stages; the second only if the first passed."""
    for name, stage in (("in training", train_stage), ("at scoring", score_stage)):
        report = run_stage(stage, config, thorough)
        if report.result == "failed":
            return Report("failed", f"{name}: {report.detail}")
        if report.result != "passed":
            return report
    return Report("passed")


def main() -> NoReturn:
    """Rehearse and print the report."""
    report = rehearse(Config.from_json(sys.argv[1]))
    print(json.dumps({"result": report.result, "detail": report.detail}), flush=True)
    os._exit(0)  # do not wait for processes that were left behind


if __name__ == "__main__":
    main()
