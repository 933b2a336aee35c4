"""Wait for a container to end, and kill it at its deadline.

Deadlines are kept here, on the monotonic clock, and not left to the engine's own time-outs (docker-py 1966: a
wait that times out raises ConnectionError).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import closing

import docker

from controller.core.errors import GloveboxError, InfrastructureError, Interrupted
from controller.ports import Clock
from controller.sandbox.engine import connection as engine
from controller.sandbox.engine.failures import EngineFault, to_error

_WAIT_SECONDS = 2
"""Time-out of one request that waits for a container; it is then repeated."""
_STOP_SECONDS = 0.1
"""How soon a request to stop is noticed."""
_DEATH_SECONDS = 30.0
"""The longest a container may take to die after SIGKILL."""
_OUTAGE_SECONDS = 10.0
"""How long the engine may be down, for a restart, before a wait gives up."""


def wait_or_kill(
    name: str,
    kill: Callable[[], bool],
    clock: Clock,
    *,
    deadline: float,
    stop: threading.Event,
    tick: Callable[[], None] | None,
) -> float | None:
    """Wait for the container to end, and kill it at `deadline`.

    Returns when, on `clock`, our SIGKILL reached the running container; None if it ended by itself. `kill`
    returns whether the container was running; the rest is as in `ports.Sandbox.wait`.
    """
    waiter = _ExitWaiter(name)
    waiter.start()
    try:
        ticked = clock.monotonic()
        while not waiter.within(min(_STOP_SECONDS, deadline - clock.monotonic())):
            now = clock.monotonic()
            if now >= deadline:
                return _kill_until_dead(waiter, name, kill, clock)
            if stop.is_set():
                raise Interrupted(f"Asked to stop while {name} was running.")
            if tick and now - ticked >= 1.0 and deadline - now > _STOP_SECONDS:
                ticked = now  # not just before the deadline: a slow tick must not delay the kill
                tick()
        return None
    finally:
        waiter.abandon()


def _kill_until_dead(waiter: _ExitWaiter, name: str, kill: Callable[[], bool], clock: Clock) -> float | None:
    """Send SIGKILL until it is dead. Raises InfrastructureError if it does not die."""
    give_up = clock.monotonic() + _DEATH_SECONDS
    sent: float | None = None
    while True:
        now = clock.monotonic()
        try:
            if kill() and sent is None:
                sent = now
        except InfrastructureError:
            if clock.monotonic() > give_up:
                raise
        if waiter.within(1.0):
            return sent
        if clock.monotonic() > give_up:
            raise InfrastructureError(f"The container {name} survived its SIGKILL.")


class _ExitWaiter(threading.Thread):
    """Waits for one container to end, in requests short enough to be abandoned."""

    def __init__(self, name: str) -> None:
        super().__init__(name=f"wait for {name}", daemon=True)
        self._container = name
        self._over = threading.Event()
        self._abandoned = threading.Event()
        self._failure: GloveboxError | None = None

    def within(self, seconds: float) -> bool:
        """True as soon as the container has ended. Raises InfrastructureError if that cannot be known."""
        over = self._over.wait(max(seconds, 0.0))
        if self._failure is not None:
            raise self._failure
        return over

    def abandon(self) -> None:
        self._abandoned.set()

    def run(self) -> None:
        trouble_since: float | None = None
        while not self._abandoned.is_set():
            try:
                with closing(engine.connect()) as client:
                    self._wait(client)
                break
            except engine.FAILURES as error:
                fault, message = engine.diagnose(error)
                if fault is EngineFault.TIMEOUT:
                    trouble_since = None
                    continue
                trouble_since = trouble_since or time.monotonic()
                if fault is EngineFault.GONE or time.monotonic() - trouble_since > _OUTAGE_SECONDS:
                    self._failure = to_error(fault, f"wait for the container {self._container}", message)
                    break
                self._abandoned.wait(_STOP_SECONDS)
        self._over.set()

    def _wait(self, client: docker.APIClient) -> None:
        while not self._abandoned.is_set():
            try:
                client.wait(self._container, timeout=_WAIT_SECONDS)
                return
            except engine.FAILURES as error:
                if engine.diagnose(error)[0] is not EngineFault.TIMEOUT:
                    raise
