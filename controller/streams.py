"""Standard streams as a command finds them: they may be closed, and whoever reads them may go away."""

from __future__ import annotations

import errno
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
