"""The client's connection to a runner: requests, answers, retries and time-outs."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel

from controller.core.errors import GloveboxError, InfrastructureError, NotReady, UserError
from controller.core.untrusted import clean_line
from controller.sandbox.runner import wire

ANSWER_SECONDS = 120.0
"""Time-out of one answer: a start makes half a dozen engine requests of up to twenty seconds each."""
OUTAGE_SECONDS = 30.0
"""How long a runner may be down, for a restart, before we give up."""
RETRY_SECONDS = 0.2
"""Between two attempts to reach a runner."""

_ERRORS: Mapping[str, type[GloveboxError]] = {
    kind.__name__: kind for kind in (InfrastructureError, NotReady, UserError)
}
Result = TypeVar("Result")


class Unreachable(wire.Broken):
    """No runner is listening; no request was sent."""


class Endpoint:
    """The runner at a socket. Every request has its own connection."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def request(self, request: BaseModel, *, outage_seconds: float = OUTAGE_SECONDS) -> Any:
        """Send a request; the answer's value. Retries for `outage_seconds` while the runner is down.

        Raises the error that the runner reports, NotReady, InfrastructureError.
        """

        def attempt() -> Any:
            with self.send(request) as connection:
                return value(wire.receive_json(connection, ANSWER_SECONDS))

        return self.retry(attempt, outage_seconds=outage_seconds)

    def retry(
        self,
        attempt: Callable[[], Result],
        *,
        repeatable: bool = True,
        outage_seconds: float = OUTAGE_SECONDS,
    ) -> Result:
        """Retry `attempt` while the runner is down.

        `repeatable` False: not once the request was sent; then raises Broken, too.
        """
        watchdog = Watchdog(outage_seconds)
        while True:
            try:
                return attempt()
            except wire.Broken as error:
                if not repeatable and not isinstance(error, Unreachable):
                    raise
                watchdog.check(error)
            time.sleep(RETRY_SECONDS)

    def send(self, request: BaseModel, text: bytes = b"") -> socket.socket:
        """Send a request; the connection to read its answer from. Raises Broken, Unreachable, NotReady."""
        connection = socket.socket(socket.AF_UNIX)
        try:
            connection.settimeout(ANSWER_SECONDS)
            self._connect(connection)
            wire.send(connection, request.model_dump_json().encode("utf-8"))
            if text:
                wire.send(connection, text)
        except BaseException:
            connection.close()
            raise
        return connection

    def _connect(self, connection: socket.socket) -> None:
        try:
            connection.connect(str(self._path))
        except PermissionError:
            raise NotReady(f"This user may not speak to the runner at {self._path}.") from None
        except OSError as error:
            raise Unreachable(f"nothing answers at {self._path}: {error.strerror or error}") from error


class Watchdog:
    """Measures how long a runner has not answered."""

    def __init__(self, seconds: float = OUTAGE_SECONDS) -> None:
        self._seconds = seconds
        self.reset()

    def reset(self) -> None:
        """It answered."""
        self._heard = time.monotonic()

    @property
    def silence(self) -> float:
        return time.monotonic() - self._heard

    def check(self, error: wire.Broken) -> None:
        """Raises NotReady or InfrastructureError once the time is up."""
        if self.silence < self._seconds:
            return
        sentence = f"The runner does not answer: {clean_line(str(error))}"
        if self._seconds < OUTAGE_SECONDS:
            raise NotReady(f"{sentence}; `make up` or `glovebox runner` starts it.") from error
        raise InfrastructureError(f"{sentence}.") from error


def value(answer: Mapping[str, Any]) -> Any:
    """The value of an answer; raises the error that it reports."""
    if "value" in answer:
        return answer["value"]
    if "refused" in answer:
        raise UserError(f"The runner refuses: {clean_line(str(answer['refused']), 500)}.")
    kind = _ERRORS.get(str(answer.get("error")), InfrastructureError)
    raise kind(clean_line(str(answer.get("message")), 1000))
