"""Standard streams as a command finds them: closed, made for few letters, with a reader that goes away."""

from __future__ import annotations

import codecs
import errno
import io
import locale
import os
import sys


def complete() -> None:
    """Open to nowhere what our parent closed, so that no file of ours takes the place of stdout or stderr."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free: this one
    if sys.stdin is None:
        sys.stdin = open(os.devnull, encoding="utf-8")  # noqa: SIM115  (as long as the process)
    if sys.stdout is None:
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115


def accept_any_text() -> None:
    """Let stdout and stderr take every text: what their encoding lacks is written as an escape, `\\u2192`.

    It is the encoding of the person's locale, unless PYTHONIOENCODING says otherwise; where the locale says
    none (C, POSIX), UTF-8.
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
    """Write what is left, so that the flush at exit has nothing to complain of. Raises OSError.

    Somebody may have piped us into `head`; that is no error.
    """
    try:
        sys.stdout.flush()
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if not isinstance(error, BrokenPipeError):
            raise


def is_full(error: OSError) -> bool:
    """True if it is the disk or the device that takes no more, not a file that cannot be opened."""
    return error.filename is None and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO)
