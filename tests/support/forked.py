"""Runs the command in a process that is forked from one which has loaded it.

A call takes half a second less than a start of the interpreter, and the suite makes hundreds of them. What
depends on how an interpreter starts (encodings, other users, signals from the first moment on) starts one.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

PRELOADED = ["controller.cli", "tests.chaos.pretended"]
"""By the one process that all others are forked from; it is told before the first of them."""

_PROCESSES = multiprocessing.get_context("forkserver")


def run(
    arguments: Sequence[str], environment: Mapping[str, str], folder: Path, umask: int, timeout: float
) -> tuple[int, str, str]:
    """Exit status, stdout and stderr of the command. Raises subprocess.TimeoutExpired."""
    with TemporaryDirectory() as name:
        out, err = Path(name) / "out", Path(name) / "err"
        streams = (os.devnull, str(out), str(err))
        process = _PROCESSES.Process(
            target=_run, args=([*arguments], dict(environment), str(folder), umask, streams)
        )
        process.start()
        process.join(timeout)
        if process.is_alive():
            process.kill()
            process.join()
            raise subprocess.TimeoutExpired([*arguments], timeout, out.read_bytes(), err.read_bytes())
        assert process.exitcode is not None
        return process.exitcode, _text(out), _text(err)


def _text(path: Path) -> str:
    return path.read_bytes().decode("utf-8").replace("\r\n", "\n") if path.exists() else ""


def _run(
    arguments: list[str], environment: dict[str, str], folder: str, umask: int, streams: Sequence[str]
) -> None:
    """Become the command: everything that it would inherit or be given is as in a process of its own."""
    for number, path in enumerate(streams):
        descriptor = os.open(path, os.O_RDONLY if number == 0 else os.O_WRONLY | os.O_CREAT, 0o600)
        os.dup2(descriptor, number)
        os.close(descriptor)
    sys.stdin = os.fdopen(0, encoding="utf-8", closefd=False)
    sys.stdout = os.fdopen(1, "w", encoding="utf-8", closefd=False)
    sys.stderr = os.fdopen(2, "w", encoding="utf-8", errors="backslashreplace", closefd=False, buffering=1)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    os.umask(umask)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.argv = [os.path.join(os.path.dirname(sys.executable), "glovebox"), *arguments]
    from controller.__main__ import main

    main()
