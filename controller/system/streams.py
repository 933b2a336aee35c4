"""Make the standard streams usable: some may be closed, limited to ASCII, or lose their reader."""

from __future__ import annotations

import codecs
import errno
import io
import locale
import os
import sys


def complete() -> None:
    """Open /dev/null for streams our parent closed, so that no file of ours becomes stdout or stderr."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free descriptor: this one
    if sys.stdin is None:
        sys.stdin = open(os.devnull, encoding="utf-8")  # noqa: SIM115  (as long as the process)
    if sys.stdout is None:
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115


def accept_any_text() -> None:
    """Let stdout and stderr take any text: what their encoding lacks is written as an escape, `\\u2192`.

    The encoding is the locale's unless PYTHONIOENCODING is set; UTF-8 if the locale has none (C, POSIX).
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            named = stream.encoding if os.environ.get("PYTHONIOENCODING") else _of_the_locale()
            stream.reconfigure(encoding=named, errors="backslashreplace")


def _of_the_locale() -> str:
    try:
        name = codecs.lookup(locale.getencoding()).name
    except LookupError:
        return "utf-8"
    return "utf-8" if name == "ascii" else name


def flush_stdout() -> None:
    """Flush what is left, so that the flush at exit cannot fail. Raises OSError.

    A closed pipe, as of `glovebox log | head`, is not an error.
    """
    try:
        sys.stdout.flush()
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if not isinstance(error, BrokenPipeError):
            raise


def is_full(error: OSError) -> bool:
    """True if the disk or device is full or failing, rather than a file that cannot be opened."""
    return error.filename is None and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO)
