"""Persons' requests to an effort, as files in the home: one each, until a controller has answered it.

Files, for the reasons that pause.json is one: any process that may write to the home can make a request, with
a controller at work or without, and it survives a restart. The loop journals the answer as Steered or
SteeringRefused and removes the file.
"""

from __future__ import annotations

import datetime as dt
import os
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import structlog
from pydantic import ValidationError

from controller.core.errors import InfrastructureError, UserError
from controller.core.events import Verb
from controller.core.program.policy import MAX_BYTES
from controller.core.steering_request import SteeringRequest
from controller.core.untrusted import clean_line
from controller.files import make_folder, write_atomic

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
        make_folder(path.parent)
        _give_to_owner(home, path.parent)
        write_atomic(path, request.model_dump_json(ensure_ascii=True).encode("ascii") + b"\n")
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}.") from error


def _give_to_owner(home: Path, folder: Path) -> None:
    """Root may ask for something in another account's home, whose controller has to remove the request."""
    if os.geteuid() == 0:
        owner = home.stat()
        os.chown(folder, owner.st_uid, owner.st_gid)


def read(home: Path) -> tuple[SteeringRequest, ...]:
    """Those that wait for an answer, oldest first. One that cannot be read is renamed for a person to see."""
    return tuple(_readable(home / FOLDER))


def _readable(folder: Path) -> Iterator[SteeringRequest]:
    try:
        paths = [path for path in folder.iterdir() if path.suffix == _SUFFIX and path.name[0] != "."]
    except OSError:  # nobody has asked for anything yet
        return
    for name in sorted(path.name for path in paths)[:_AT_ONCE]:
        try:
            request = SteeringRequest.model_validate_json(_content(folder / name))
            if request.id != name.removesuffix(_SUFFIX):
                raise ValueError(f"it calls itself {clean_line(request.id)}")
        except FileNotFoundError:
            continue
        except (OSError, ValidationError, ValueError) as error:
            _set_aside(folder / name, error)
            continue
        yield request


def _content(path: Path) -> bytes:
    """Of a plain file; anything else might make the controller wait. Raises OSError, ValueError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    with open(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise ValueError("it is no plain file")
        return file.read(_MAX_BYTES)


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
