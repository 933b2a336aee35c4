"""A person's request to pause or go on, in the home: `glovebox pause` and `glovebox continue`, or a page.

A file, not a signal: any process that may write to the home can create it, it says who asked and why, and it
survives a restart. It lies beside the other requests, so that a page has to be able to write to that folder
alone. The loop journals the result as Paused and Resumed.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import os
import pwd
import shutil
import socket
from pathlib import Path

from controller.core.errors import UserError
from controller.core.rules import Wish
from controller.core.steering_request import SteeringRequest
from controller.core.untrusted import clean_line
from controller.files import write_atomic
from controller.store import requests

NAME = f"{requests.FOLDER}/pause"
"""Without the suffix of those that are answered and removed."""
NO_PAUSE = Wish(paused=False)
_LONGEST = 4096


def read(home: Path) -> Wish:
    """The last request; NO_PAUSE if there is none that can be read."""
    try:
        told = json.loads(requests.read_file(home / NAME, _LONGEST))
        by, reason = clean_line(str(told["by"])), clean_line(str(told["reason"]))
        at = dt.datetime.fromisoformat(told["at"]).astimezone(dt.UTC)
        return Wish(told["paused"] is True, by, reason, at)
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return NO_PAUSE


def write(home: Path, *, paused: bool, reason: str = "", by: str = "") -> None:
    """Replace the last request; `by`: who made it, unless it is the account of this process.

    Raises UserError if it cannot be written.
    """
    now = dt.datetime.now(dt.UTC).isoformat(timespec="microseconds")
    told = {"paused": paused, "by": clean_line(by) or who(), "reason": clean_line(reason), "at": now}
    try:
        requests.make(home)
        write_atomic(home / NAME, json.dumps(told).encode("ascii") + b"\n")
    except OSError as error:
        if not paused:
            with contextlib.suppress(OSError):  # a full disk: no file means go on, too
                (home / NAME).unlink(missing_ok=True)
                return
        raise UserError(f"{home / NAME} cannot be written: {error.strerror}.") from error


def who() -> str:
    """The account and its machine or container, as user@host."""
    try:
        account = pwd.getpwuid(os.getuid()).pw_name
    except KeyError:  # in a container
        account = f"user {os.getuid()}"
    return clean_line(f"{account}@{socket.gethostname()}", 100)


class HomeSurroundings:
    """Implements `ports.Surroundings` for one home and, where visible, the engine's folder."""

    def __init__(self, home: Path, min_free_bytes: int, engine_root: Path | None = None) -> None:
        self._home = home
        self._min_free_bytes = min_free_bytes
        self._folders = [home, *([engine_root] if engine_root else [])]

    def wish(self) -> Wish:
        return read(self._home)

    def requests(self) -> tuple[SteeringRequest, ...]:
        """See ports.Surroundings."""
        return requests.read(self._home)

    def answered(self, request: str) -> None:
        """See ports.Surroundings."""
        requests.remove(self._home, request)

    def shortage(self, share: float = 1.0) -> str | None:
        """See ports.Surroundings."""
        needed = self._min_free_bytes * share
        for folder in self._folders:
            try:
                free = shutil.disk_usage(folder).free
            except OSError:  # the engine's folder is not visible from inside a container
                continue
            if free < needed:
                return (
                    f"{folder} has {free / 1e9:.2f} GB of free disk and a run needs {needed / 1e9:.2f} GB: "
                    "free some, or lower min_free_bytes."
                )
        return None
