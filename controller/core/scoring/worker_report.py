"""How a worker ended, in a sentence of our own. Pure.

A worker has seen validation text, so none of its output is passed on: docs/decisions/words-of-a-worker.md.
Only two facts are taken from its last line, if they are valid: the class of the exception, if listed here,
and its line in train.py.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from controller.core.scoring.runlog import LIMIT_EXIT_CODE
from controller.core.values import Cause, Refusal

#: The meaning of the worker's exit statuses, as defined in harness/worker.py.
_ENDS: Mapping[int | None, tuple[Cause, str]] = {
    10: (Cause.LOAD, "train.py failed when the worker imported it or built the model"),
    11: (Cause.NO_CHECKPOINT, "the run left no checkpoint"),
    12: (Cause.LOAD, "the checkpoint cannot be read or does not fit the model"),
    13: (Cause.FORWARD, "train.py failed in the worker's forward pass"),
    14: (Cause.OOM, "the worker had no memory left"),
    15: (
        Cause.LOAD,
        "train.py fetches batches in another thread or process, and its main thread did not come to wait "
        "for one with a module-level model ready (docs/train-py.md)",
    ),
    LIMIT_EXIT_CODE: (Cause.WORKER_TIMEOUT, "the worker was not done within its time"),
}
_OTHER = Cause.FORWARD, "the worker ended by itself"

#: Of Python and of torch.
_EXCEPTIONS = frozenset(
    {
        "ArithmeticError",
        "AssertionError",
        "AttributeError",
        "BufferError",
        "EOFError",
        "Exception",
        "FileNotFoundError",
        "FloatingPointError",
        "ImportError",
        "IndentationError",
        "IndexError",
        "IsADirectoryError",
        "KeyError",
        "LookupError",
        "MemoryError",
        "ModuleNotFoundError",
        "NameError",
        "NotADirectoryError",
        "NotImplementedError",
        "OSError",
        "OutOfMemoryError",
        "OverflowError",
        "PermissionError",
        "RecursionError",
        "RuntimeError",
        "SafetensorError",
        "StopIteration",
        "SyntaxError",
        "SystemError",
        "SystemExit",
        "TabError",
        "TimeoutError",
        "TypeError",
        "UnboundLocalError",
        "UnicodeDecodeError",
        "UnicodeError",
        "UnicodeEncodeError",
        "UserWarning",
        "ValueError",
        "Warning",
        "ZeroDivisionError",
    }
)
_UNKNOWN = "another exception"

_LAST_LINE = re.compile(rb"worker: ([A-Za-z]{1,40}|-) ([1-9][0-9]{0,6}|-)")


KILLED_BY_KERNEL = Refusal(cause=Cause.OOM, detail="the worker was killed by the kernel: out of memory")


def refusal(exit_code: int | None, output: bytes, lines: int) -> Refusal:
    """Why there was nothing to judge, from a worker's exit code and the end of its output.

    `lines`: how many lines its train.py has.
    """
    cause, words = _ENDS.get(exit_code, _OTHER)
    return Refusal(cause=cause, detail=words + _where(output, lines))


def doubted(found: Refusal) -> Refusal:
    """The refusal for a second worker that failed with a checkpoint that the first one served."""
    return found.model_copy(
        update={
            "cause": Cause.UNCONFIRMED,
            "symptom": found.cause,
            "confirming": True,
            "detail": f"a first worker got through and a second one did not: {found.detail}",
        }
    )


def _where(output: bytes, lines: int) -> str:
    """`: RuntimeError at line 57`, as far as the last line is valid."""
    match = _LAST_LINE.fullmatch(output.rstrip(b"\n").rpartition(b"\n")[2])
    if match is None:
        return ""
    name, line = match[1].decode("ascii"), match[2].decode("ascii")
    known = name if name in _EXCEPTIONS else _UNKNOWN
    said = "" if name == "-" else f": {known}"
    return f"{said} at line {line}" if said and line != "-" and int(line) <= lines else said
