"""The lock of a home: at most one process writes to it at a time."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import socket
from pathlib import Path
from types import TracebackType
from typing import Self

from controller.core.errors import UserError
from controller.core.untrusted import clean_line
from controller.files import make_folder


class HomeLock:
    """Held by the one process that writes to a home. The kernel releases it when that process dies."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self._descriptor: int | None = None

    def __enter__(self) -> Self:
        """Raises UserError if another process holds it or the home cannot be written to."""
        try:
            make_folder(self._home)
            descriptor = os.open(self._home / "lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
        except OSError as error:
            raise not_writable(self._home, error) from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            owner = clean_line(os.pread(descriptor, 200, 0).decode("utf-8", "replace")) or "another process"
            os.close(descriptor)
            raise UserError(
                f"The home {self._home} is in use by {owner}; stop that one or choose another --home."
            ) from error
        self._descriptor = descriptor
        with contextlib.suppress(OSError):  # on a full disk the owner is not recorded; the lock holds
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def home_in_use(home: Path) -> bool:
    """True while some process holds the home's lock."""
    try:
        descriptor = os.open(home / "lock", os.O_RDONLY | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def home_owner(home: Path) -> int | None:
    """The process that last took the home's lock, if it could record that."""
    try:
        with (home / "lock").open("rb") as file:
            found = re.match(rb"process (\d+) ", file.read(200))
    except OSError:
        return None
    return int(found[1]) if found else None


def not_writable(home: Path, error: OSError) -> UserError:
    """The error for a home that cannot be opened for writing."""
    return UserError(
        f"The home {home} cannot be written to ({error.strerror}); "
        "choose another --home or fix its permissions."
    )
