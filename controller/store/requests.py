"""Persons' requests to an effort, as files in the home: one each, until a controller has answered it.

Files, for the reasons that a pause is one: any process that may write to the home can make a request, with
a controller at work or without, and it survives a restart. The loop journals the answer as Steered or
SteeringRefused and removes the file.
"""

from __future__ import annotations

import datetime as dt
import os
import secrets
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import structlog

from controller.core.errors import InfrastructureError, UserError
from controller.core.events import Verb
from controller.core.program.policy import MAX_BYTES
from controller.core.steering_request import SteeringRequest
from controller.core.untrusted import clean_line
from controller.files import sync_folder, write_atomic

FOLDER = "requests"
_SUFFIX, _UNREADABLE = ".json", ".unreadable"
_MAX_BYTES = 8 * MAX_BYTES
"""A program is escaped in JSON."""
_AT_ONCE = 1000
"""Requests that are read at a time."""

log = structlog.stdlib.get_logger(__name__)


def made(verb: Verb, by: str, **fields: Any) -> SteeringRequest:
    """A request of this moment."""
    now = dt.datetime.now(dt.UTC)
    name = f"{now:%Y%m%dT%H%M%S}-{now.microsecond:06d}-{secrets.token_hex(4)}"
    return SteeringRequest(id=name, verb=verb, by=by, at=now.isoformat(timespec="seconds"), **fields)


def submit(home: Path, request: SteeringRequest) -> None:
    """Put a request down for the controller. Raises UserError if it cannot be written."""
    path = home / FOLDER / f"{request.id}{_SUFFIX}"
    try:
        make(home)
        write_atomic(path, request.model_dump_json(ensure_ascii=True).encode("ascii") + b"\n")
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}.") from error


def make(home: Path) -> None:
    """Make the folder. If root asks for something in another account's home, that account's controller has to
    be able to remove the request. Raises OSError.
    """
    folder = home / FOLDER
    if not folder.is_dir():
        folder.mkdir(exist_ok=True)
        sync_folder(home)
    if os.geteuid() == 0:
        owner = home.stat()
        os.chown(folder, owner.st_uid, owner.st_gid)


def read(home: Path) -> tuple[SteeringRequest, ...]:
    """Those that wait for an answer, oldest first. One that cannot be read is renamed for a person to see."""
    return tuple(_readable(home / FOLDER, _set_aside))


def waiting(home: Path) -> tuple[SteeringRequest, ...]:
    """The same for those who only look: nothing is renamed."""
    return tuple(_readable(home / FOLDER, lambda path, error: None))


def names(home: Path) -> list[str]:
    """Of the files that wait, oldest first."""
    try:
        found = sorted(path.name for path in (home / FOLDER).iterdir() if path.suffix == _SUFFIX)
    except OSError:  # nobody has asked for anything yet
        return []
    return [name for name in found if not name.startswith(".")]


def _readable(folder: Path, spoiled: Callable[[Path, Exception], None]) -> Iterator[SteeringRequest]:
    for name in names(folder.parent)[:_AT_ONCE]:
        try:
            request = SteeringRequest.model_validate_json(read_file(folder / name, _MAX_BYTES))
            if request.id != name.removesuffix(_SUFFIX):
                raise ValueError(f"it calls itself {clean_line(request.id)}")
        except FileNotFoundError:
            continue
        except (OSError, ValueError) as error:
            spoiled(folder / name, error)
            continue
        yield request


def read_file(path: Path, most: int) -> bytes:
    """The beginning of a file that less trusted processes may have put here: no link is followed, and no pipe
    is waited for. Raises OSError."""
    with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError("it is no file")
        return file.read(most)


def _set_aside(path: Path, error: Exception) -> None:
    log.warning("request_unreadable", file=clean_line(path.name), error=clean_line(str(error), 300))
    try:
        path.rename(path.with_suffix(_UNREADABLE))
    except OSError:
        log.warning("request_not_renamed", file=clean_line(path.name))


def remove(home: Path, request: str) -> None:
    """Remove an answered request. Idempotent. Raises InfrastructureError."""
    path = home / FOLDER / f"{request}{_SUFFIX}"
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise InfrastructureError(f"{path} cannot be removed: {error.strerror}.") from error
