"""The connection to the container engine, and what its failures mean."""

from __future__ import annotations

import datetime as dt
import functools
import os
from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import docker
import docker.errors
import docker.utils
import requests
import urllib3
from docker.constants import DEFAULT_UNIX_SOCKET
from docker.context import ContextAPI

from controller.core.errors import NotReady
from controller.core.untrusted import clean_line
from controller.sandbox.engine.failures import EngineFault, classify, to_error

ANSWER_SECONDS = 20
"""Time-out of any engine request that does not wait for a container."""
FAILURES = (docker.errors.DockerException, requests.RequestException, urllib3.exceptions.HTTPError, OSError)
"""Everything that the SDK raises for reasons other than a bug of ours."""


_NAMES_AN_ENGINE = (
    "DOCKER_HOST",
    "DOCKER_CONTEXT",
    "DOCKER_CONFIG",
    "HOME",
    "DOCKER_TLS_VERIFY",
    "DOCKER_CERT_PATH",
)
"""Environment variables that determine the address."""


_KEPT = 128
"""Connections that are kept open for further requests; with several slots, many are under way at a time."""


class NoAddress(docker.errors.DockerException):
    """The environment names an engine that we cannot talk to; the message is a sentence for the user."""


@dataclass(frozen=True)
class Address:
    """An engine's address."""

    url: str
    named_by: str
    arguments: Mapping[str, Any]
    """Keyword arguments for the SDK."""

    def __str__(self) -> str:
        return f"{self.url} ({self.named_by})"


def address() -> Address:
    """The address of the engine that the `docker` command talks to: DOCKER_HOST, else the context that
    DOCKER_CONTEXT or the user's Docker configuration names, else the default socket. Raises NoAddress.

    The answer is fixed for the life of the process: `docker context use` in the middle of a run must not send
    the rest of it to another engine.
    """
    return _address(tuple(os.environ.get(name) for name in _NAMES_AN_ENGINE))


@functools.cache
def _address(_environment: tuple[str | None, ...]) -> Address:
    arguments = docker.utils.kwargs_from_env()
    if "base_url" in arguments:
        return Address(arguments["base_url"], "DOCKER_HOST", arguments)
    try:
        context = ContextAPI.get_context(os.environ.get("DOCKER_CONTEXT"))
    except Exception as error:  # the SDK raises a plain Exception for files it cannot read
        raise NoAddress(f"The Docker context cannot be read: {clean_line(str(error))}.") from error
    if context is None:
        raise NoAddress(
            "The Docker context that DOCKER_CONTEXT or the Docker configuration names does not exist; "
            "`docker context ls` shows those that do, `docker context use` chooses one."
        )
    if context.name == "default":
        return Address(DEFAULT_UNIX_SOCKET.removeprefix("http+"), "the usual socket", arguments)
    if str(context.Host).startswith("ssh://"):
        raise NoAddress(
            f"The Docker context {clean_line(context.name)} is an engine on another machine; experiments "
            "need one that sees the files of this one: choose another with `docker context use`, or set "
            "DOCKER_HOST=unix:///var/run/docker.sock."
        )
    of_context = ContextAPI.kwargs_from_context(context.name)
    return Address(
        str(context.Host), f"Docker context {clean_line(context.name)}", {**arguments, **of_context}
    )


def connect(answer_seconds: int = ANSWER_SECONDS) -> docker.APIClient:
    """A connection to the engine at `address()`. Raises FAILURES."""
    return docker.APIClient(**address().arguments, timeout=answer_seconds, max_pool_size=_KEPT)


class engine_call:
    """Context of an engine request: SDK errors become ours, faults in `forgive` are suppressed.

    `doing` completes the sentence "The container engine failed to …".
    """

    def __init__(
        self, doing: str, *, starting_up: bool = False, forgive: frozenset[EngineFault] = frozenset()
    ) -> None:
        self._doing, self._starting_up, self._forgive = doing, starting_up, forgive

    def __enter__(self) -> None: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        if not isinstance(error, FAILURES):
            return False
        if isinstance(error, NoAddress):
            raise NotReady(str(error)) from error
        fault, message = diagnose(error)
        if fault in self._forgive:
            return True
        raise to_error(fault, self._doing, message, starting_up=self._starting_up) from error


def diagnose(error: BaseException) -> tuple[EngineFault, str]:
    """The kind of failure that one of FAILURES is, and the engine's message, which is not safe to print."""
    if isinstance(error, docker.errors.APIError) and error.response is not None:
        message = str(error.explanation or error)
        return classify(error.response.status_code, message), message
    message = f"{type(error).__name__}: {error}"
    return classify(None, message), message


def time_of(stamp: str) -> dt.datetime:
    """Parse the engine's timestamps: RFC 3339 with up to nine digits of a second."""
    whole, _, fraction = stamp.removesuffix("Z").partition(".")
    micros = int(fraction[:6].ljust(6, "0")) if fraction else 0
    return dt.datetime.fromisoformat(whole).replace(microsecond=micros, tzinfo=dt.UTC)
