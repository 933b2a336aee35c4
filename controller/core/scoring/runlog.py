"""What a run's output tells: its claim, why it crashed, and which part to show.

The experiment writes the output and may lie, but only about itself: a claim decides nothing, and a forged
traceback only mislabels its own crash.
"""

from __future__ import annotations

import math
import re
import signal

from controller.core.untrusted import clean_line, clean_text
from controller.core.values import Cause, Claim, Decision, Refusal, RunOutcome, Score

#: PID 1 of the container ended the run at its limit; see sandbox_image/entrypoint.py.
LIMIT_EXIT_CODE = 124
_SIGKILL_EXIT_CODE = 128 + signal.SIGKILL

_TRACEBACK = "Traceback (most recent call last):"
_CHAINED = (
    "During handling of the above exception, another exception occurred:",
    "The above exception was the direct cause of the following exception:",
)
_NUMBER = r"[-+]?(?:nan|inf(?:inity)?|[\d,_]*\.?\d+(?:e[-+]?\d+)?|\d+\.)"
_CLAIM_LINE = re.compile(
    rf"^\s*({'|'.join(Claim.model_fields)})\s*[:=]\s*({_NUMBER})\s*%?\s*$", re.IGNORECASE
)
_EXCEPTION_LINE = re.compile(r"^([A-Za-z_][\w.]*)(?:: (.*))?$")
_SYNTAX_LINE = re.compile(r"^(?:SyntaxError|IndentationError|TabError)\b.*", re.MULTILINE)

#: (cause, exception names, pattern of the message); the first match wins.
_RULES: tuple[tuple[Cause, frozenset[str], re.Pattern[str] | None], ...] = (
    (
        Cause.OOM,
        frozenset({"OutOfMemoryError", "MemoryError"}),
        re.compile(
            r"out of memory|can't allocate memory|cannot allocate memory|not enough memory|_ALLOC_FAILED"
            r"|bad_alloc|unable to allocate|killed by signal: killed",
            re.IGNORECASE,
        ),
    ),
    (
        Cause.NO_GPU,
        frozenset(),
        re.compile(
            r"Found no NVIDIA driver|No CUDA GPUs are available|no CUDA-capable device|NVIDIA driver on your"
            r" system is too old|Torch not compiled with CUDA|CUDA driver initialization failed"
            r"|Unexpected error from cudaGetDeviceCount"
        ),
    ),
    (Cause.SYNTAX, frozenset({"SyntaxError", "IndentationError", "TabError"}), None),
    (Cause.IMPORT, frozenset({"ImportError", "ModuleNotFoundError"}), None),
    (
        Cause.NAME,
        frozenset({"NameError", "UnboundLocalError", "AttributeError"}),
        re.compile(r"unexpected keyword argument|has no attribute '|name '\w+' is not defined"),
    ),
    (
        Cause.NAN,
        frozenset({"FloatingPointError"}),
        re.compile(
            r"\bnans?\b|non-?finite|not finite|\bdiverged\b|loss\W+(?:is |was )?-?inf\b", re.IGNORECASE
        ),
    ),
    (
        Cause.SHAPE,
        frozenset(),
        re.compile(
            r"\bshapes?\b|size mismatch|size of tensor|sizes of tensors|mat1 and mat2|must match the size"
            r"|\bdim(?:ension)?s?\b|broadcast|divisible|einsum|expects each tensor|batch size"
            r"|invalid for input of",
            re.IGNORECASE,
        ),
    ),
)

#: The last line of a script that gives up by itself, without a traceback. `FAIL` is upstream's.
_GAVE_UP = re.compile(
    r"\bFAIL\s*$|\bloss\b[^|\n]{0,40}\b(?:nan|inf)\b|non-?finite|not finite|\bdiverged\b", re.IGNORECASE
)

#: What the data loader prints when it ends a run that needs a GPU and has none; see harness/prepare.py.
_ENDED_WITHOUT_GPU = re.compile(r"^no GPU: the data is for one\b", re.MULTILINE)

_COLUMN = 18  # upstream's summary block: keys padded to this width
_HEADING = "=== Added by the Glovebox controller; the run itself printed nothing below this line ==="


def claim(text: str) -> Claim:
    """The last value of every key of the summary block, even if that is incomplete; NaN is ignored."""
    found: dict[str, float] = {}
    keys = {key.lower(): key for key in Claim.model_fields}
    for line in re.split(r"[\r\n]", text):
        if match := _CLAIM_LINE.match(line[:200]):
            found[keys[match[1].lower()]] = float(match[2].replace(",", "").replace("_", ""))
    return Claim(**{key: value for key, value in found.items() if not math.isnan(value)})


def crash_cause(
    text: str, *, exit_code: int | None, oom_killed: bool, killed_at_limit: bool
) -> tuple[Cause | None, str]:
    """Why a run ended early, with one safe line for people.

    (None, "") for a run that exited normally or was ended at its limit: whether such a run left something to
    score cannot be told from its log.
    """
    if exit_code == 0 or exit_code == LIMIT_EXIT_CODE or killed_at_limit:
        return None, ""
    if oom_killed or exit_code in (_SIGKILL_EXIT_CODE, -signal.SIGKILL):
        return Cause.OOM, "killed by the kernel: out of memory"
    raised = _final_exception(text)
    if raised is not None:
        name, message = raised
        return _classify(name, message), _detail(name, message)
    return _gave_up(text, exit_code)


def excerpt(text: str, limit: int = 4000) -> str:
    """What a person or an LLM needs to see: the final traceback and what follows, else the end."""
    start = _traceback_start(text)
    return clean_text(text[start:] if start is not None else text[-limit:], limit)


MAX_SUMMARY_BYTES = 4096
"""Upper bound on the section that `summary` makes."""


MAX_WORKER_LOG_BYTES = 64 * 1024
"""Upper bound on the file with the output of an experiment's workers."""


def summary(
    outcome: RunOutcome,
    judgement: Score | Refusal | None,
    decision: Decision,
    *,
    frontier_bpb: float | None = None,
) -> str:
    """The section the controller appends to run.log, in the format of upstream's summary block.

    With it, `grep "^val_bpb:" run.log | tail -1` gives the judge's score whatever the run printed before, and
    no number if there is no score. The hold-out score is left out: agents read this.
    """
    values = {
        "val_bpb": _bpb(judgement.val_bpb if isinstance(judgement, Score) else None),
        "frontier_bpb": _bpb(frontier_bpb),
        "total_seconds": f"{outcome.seconds:.1f}",
        "exit_code": "none" if outcome.exit_code is None else str(outcome.exit_code),
        "verdict": str(decision.verdict),
        "cause": str(decision.cause or "none"),
        "detail": clean_line(judgement.detail if isinstance(judgement, Refusal) else outcome.detail)
        or "none",
        "rule": clean_line(decision.rule),
    }
    lines = ["", _HEADING, "---", *(f"{key + ':':<{_COLUMN}}{value}" for key, value in values.items())]
    return "\n".join(lines) + "\n"


def _bpb(value: float | None) -> str:
    return f"{value:.6f}" if value is not None and math.isfinite(value) else "none"


def _final_exception(text: str) -> tuple[str, str] | None:
    """(name without its module, message) of the exception that ended the interpreter."""
    header = text.rfind(_TRACEBACK)
    # A file that does not compile is reported without a "Traceback" header.
    syntax = [match.start() for match in _SYNTAX_LINE.finditer(text)]
    if syntax and syntax[-1] > header:
        return _split_exception(text[syntax[-1] :])
    if header < 0:
        return None
    lines = text[header + len(_TRACEBACK) :].split("\n")
    for number, line in enumerate(lines):
        if line and not line[0].isspace() and _EXCEPTION_LINE.match(line):
            return _split_exception("\n".join(lines[number : number + 12]))
    return None


def _split_exception(text: str) -> tuple[str, str]:
    name, _, message = text.partition(":")
    name = name.split("\n", 1)[0].strip()
    return name.rsplit(".", 1)[-1], message.strip()[:2000]


def _detail(name: str, message: str) -> str:
    """The exception's line, and the next if it ends with a colon (torch.compile: "… raised:")."""
    lines = message.split("\n")
    said = " ".join(lines[:2] if lines[0].endswith(":") else lines[:1])
    return clean_line(f"{name}: {said}" if said else name)


def _classify(name: str, message: str) -> Cause:
    for cause, names, words in _RULES:
        if name in names or (words is not None and words.search(message)):
            return cause
    return Cause.EXIT


def _gave_up(text: str, exit_code: int | None) -> tuple[Cause, str]:
    """A run that ended without an exception: by sys.exit, by a signal, or in native code."""
    lines = [line for line in re.split(r"[\r\n]+", text[-4000:]) if line.strip()]
    last = clean_line(lines[-1]) if lines else "no output"
    tail = "\n".join(lines[-5:])
    if _ENDED_WITHOUT_GPU.search(tail):
        return Cause.NO_GPU, last
    if _RULES[0][2] is not None and _RULES[0][2].search(tail):
        return Cause.OOM, last
    if lines and _GAVE_UP.search("\n".join(lines[-2:])):
        return Cause.NAN, last
    return Cause.EXIT, f"{_exit_words(exit_code)}: {last}"


def _exit_words(exit_code: int | None) -> str:
    if exit_code is None:
        return "ended without an exit status"
    try:
        return f"killed by {signal.Signals(exit_code - 128).name}"
    except ValueError:
        return f"exit status {exit_code}"


def _traceback_start(text: str) -> int | None:
    """Where the final traceback begins, the exceptions it was raised from included."""
    start = text.rfind(_TRACEBACK)
    if start < 0:
        return None
    while (earlier := text.rfind(_TRACEBACK, 0, start)) >= 0:
        if not any(link in text[earlier:start] for link in _CHAINED):
            break
        start = earlier
    return start
