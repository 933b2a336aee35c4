"""The connection to the container engine, and what its failures mean."""

from __future__ import annotations

import datetime as dt
from types import TracebackType

import docker
import docker.errors
import docker.utils
import requests
import urllib3

from controller.core.engine_failure import EngineFault, classify, to_error

ANSWER_SECONDS = 20
"""For any one answer of the engine, those apart that wait for a container."""
FAILURES = (docker.errors.DockerException, requests.RequestException, urllib3.exceptions.HTTPError, OSError)
"""All that the SDK raises when it is not our bug."""


def connect(answer_seconds: int = ANSWER_SECONDS) -> docker.APIClient:
    """The engine that the environment names (DOCKER_HOST, or the usual socket). Raises FAILURES."""
    return docker.APIClient(**docker.utils.kwargs_from_env(), timeout=answer_seconds)


class asked_to:
    """A block that talks to the engine: SDK errors become ours, the faults in `forgive` are swallowed."""

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
        fault, message = diagnose(error)
        if fault in self._forgive:
            return True
        raise to_error(fault, self._doing, message, starting_up=self._starting_up) from error


def diagnose(error: BaseException) -> tuple[EngineFault, str]:
    """What kind of failure one of FAILURES is, and the engine's words for it; those are not safe to print."""
    if isinstance(error, docker.errors.APIError) and error.response is not None:
        message = str(error.explanation or error)
        return classify(error.response.status_code, message), message
    message = f"{type(error).__name__}: {error}"
    return classify(None, message), message


def time_of(stamp: str) -> dt.datetime:
    """RFC 3339 with up to nine digits of a second, as the engine writes it."""
    whole, _, fraction = stamp.removesuffix("Z").partition(".")
    micros = int(fraction[:6].ljust(6, "0")) if fraction else 0
    return dt.datetime.fromisoformat(whole).replace(microsecond=micros, tzinfo=dt.UTC)
