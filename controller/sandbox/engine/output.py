"""A container's complete output, even across a broken connection to the engine.

The SDK's own streams are not used: they report a broken connection as a normal end, and cannot always be
closed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import closing

import docker.errors
import requests

from controller.core.backoff import backoff
from controller.sandbox.engine import connection as engine
from controller.sandbox.engine.failures import EngineFault
from controller.sandbox.engine.framing import split_frames

_BLOCK_BYTES = 64 * 1024
"""The most that is read from the engine at once."""
_RESUMPTIONS = 6
"""How often a broken stream is resumed."""
_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 0.1, 5.0
_WAIT_SECONDS = 2
"""How long after its stream a container may take to end."""


class Stream:
    """A container's output as the engine sends it: attached, or from its log."""

    def __init__(self, name: str, request: str, **parameters: str | int) -> None:
        """`request` is `attach` or `logs`. Raises engine.FAILURES."""
        self._client = engine.connect()
        method = self._client.post if request == "attach" else self._client.get
        try:
            self._response = method(
                f"{self._client.base_url}/v{self._client.api_version}/containers/{name}/{request}",
                params={"stdout": 1, "stderr": 1, **parameters},
                stream=True,
                timeout=(engine.ANSWER_SECONDS, None),  # a run may be silent for any length of time
            )
            try:
                self._response.raise_for_status()
            except requests.HTTPError as error:
                docker.errors.create_api_error_from_http_exception(error)
        except engine.FAILURES:
            self._client.close()
            raise

    def __iter__(self) -> Iterator[bytes]:
        pending = b""
        while received := self._response.raw.read1(_BLOCK_BYTES):
            payload, pending = split_frames(pending + received)
            if payload:
                yield payload

    def close(self) -> None:
        self._response.close()
        self._client.close()


def pump(name: str, sink: Callable[[bytes], None], attached: Stream | None, since: float | None) -> None:
    """Deliver a container's output until it ends; after a break, resume from the engine's log."""
    for failures in range(1, _RESUMPTIONS + 1):
        try:
            with closing(attached or _log(name, since)) as stream:
                attached = None
                for block in stream:
                    sink(block)
                    since = time.time()
            # The stream also ends when the engine goes down; then this raises and we retry.
            with closing(engine.connect()) as client:
                client.wait(name, timeout=_WAIT_SECONDS)
            return
        except engine.FAILURES as error:
            if engine.diagnose(error)[0] is EngineFault.GONE:
                return
        time.sleep(backoff(failures, _FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS))


def _log(name: str, since: float | None) -> Stream:
    with closing(engine.connect()) as client:
        running = client.inspect_container(name)["State"]["Running"]
    # Following the log of an ended container may never return (docker-py 3084).
    start = {} if since is None else {"since": f"{since:.9f}"}
    return Stream(name, "logs", follow=int(running), **start)
