"""`ports.Sandbox` through a runner, so that this process needs no access to the engine.

If the runner goes away, the client waits for it: its supervisor restarts it and it finds its containers
again. Idempotent requests are retried. A start is not idempotent: if its container turns out to be running,
the start succeeded; otherwise it is an infrastructure failure.
"""

from __future__ import annotations

import math
import socket
import sys
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from controller.core.containers.orders import (
    TRAINS,
    Ask,
    CreateVolume,
    Describe,
    Follow,
    Leftovers,
    Order,
    Output,
    Remove,
    Start,
    Usage,
    Wait,
)
from controller.core.containers.spec import ContainerSpec
from controller.core.containers.volumes import VolumeSpec
from controller.core.errors import GloveboxError, InfrastructureError, Interrupted, NotReady, UserError
from controller.failpoints import reach
from controller.ports import Clock, Exit
from controller.sandbox.runner import wire
from controller.sandbox.runner.connection import ANSWER_SECONDS, RETRY_SECONDS, Endpoint, Watchdog, value
from controller.system.clock import SystemClock

_READY_SECONDS = 10.0
"""How long to wait for a runner at start-up."""
_SILENCE_SECONDS = 45.0
"""A runner that waits for a container reports every second, except while it kills it."""
_STOP_SECONDS = 0.1
"""How soon a request to stop is noticed."""
_DEAD_SECONDS = 0.5
"""Time for the runner to report that the container has already ended."""
_CLOCK_SECONDS = 5.0
"""How far our monotonic clock and the runner's may differ, round trip included."""


class RunnerSandbox:
    """`ports.Sandbox` on the runner at a socket."""

    def __init__(self, path: Path, clock: Clock, ready_seconds: float = _READY_SECONDS) -> None:
        """`ready_seconds`: how long to wait for a runner at start-up."""
        self._endpoint, self._clock, self._ready_seconds = Endpoint(path), clock, ready_seconds

    def close(self) -> None:
        """Nothing to close: every request has its own connection."""

    def create_volume(self, spec: VolumeSpec) -> None:
        self._endpoint.request(CreateVolume(order=_order(spec), digest=spec.digest()))

    def start(self, spec: ContainerSpec) -> float:
        order, text = _order(spec), b""
        if order.item in TRAINS and spec.train is not None:
            try:
                text = spec.train.read_bytes()
            except OSError as error:
                raise InfrastructureError(f"{spec.train} cannot be read: {error.strerror}.") from error
        request = Start(order=order, digest=spec.digest(), text_bytes=len(text))
        began = self._start(spec.name, request, text)
        reach("start-answered")
        return began

    def _start(self, name: str, request: Start, text: bytes) -> float:
        """A start cannot be retried; if it fails halfway, ask the restarted runner whether it succeeded."""

        def attempt() -> Any:
            with self._endpoint.send(request, text) as connection:
                reach("start-ordered")
                return value(wire.receive_json(connection, ANSWER_SECONDS))

        try:
            return float(self._endpoint.retry(attempt, repeatable=False))
        except wire.Broken as error:
            since = self.running_since(name)
            if since is None:
                raise InfrastructureError(f"The runner went away in the middle: {error}.") from error
            return since

    def follow(
        self, name: str, sink: Callable[[bytes], None], since: float | None = None
    ) -> threading.Thread:
        arguments = name, sink, since
        thread = threading.Thread(target=self._pump, args=arguments, name=f"follow {name}", daemon=True)
        thread.start()
        return thread

    def wait(
        self,
        name: str,
        *,
        deadline: float,
        stop: threading.Event,
        tick: Callable[[], None] | None = None,
    ) -> Exit:
        request = Wait(name=name, deadline=deadline if math.isfinite(deadline) else None)
        watchdog, ticks = Watchdog(), _Ticks(tick or (lambda: None))
        while True:
            try:
                with self._endpoint.send(request) as connection:
                    return Exit(**_await_exit(connection, name, stop, watchdog, ticks))
            except wire.Broken as error:
                watchdog.check(error)
            if stop.wait(RETRY_SECONDS):
                raise Interrupted(f"Asked to stop while {name} was running.")
            ticks.pass_time()

    def running_since(self, name: str) -> float | None:
        since = self._endpoint.request(Ask(verb="running-since", name=name))
        return None if since is None else float(since)

    def alive(self, name: str) -> bool:
        return bool(self._endpoint.request(Ask(verb="alive", name=name)))

    def output(self, name: str, limit: int) -> bytes:
        def attempt() -> bytes:
            with self._endpoint.send(Output(name=name, limit=limit)) as connection:
                value(wire.receive_json(connection, ANSWER_SECONDS))
                return wire.receive(connection, limit, ANSWER_SECONDS)

        return self._endpoint.retry(attempt)

    def begin(self, name: str) -> None:
        self._endpoint.request(Ask(verb="begin", name=name))

    def kill(self, name: str) -> None:
        self._endpoint.request(Ask(verb="kill", name=name))

    def remove(self, *, containers: Sequence[str] = (), volumes: Sequence[str] = ()) -> None:
        self._endpoint.request(Remove(containers=tuple(containers), volumes=tuple(volumes)))

    def leftovers(self, keep: Collection[str] = ()) -> tuple[list[str], list[str]]:
        containers, volumes = self._endpoint.request(Leftovers(keep=tuple(sorted(keep))))
        return list(containers), list(volumes)

    def describe(self) -> Mapping[str, str]:
        told = self._endpoint.request(Describe(verb="describe"), outage_seconds=self._ready_seconds)
        if abs(told.pop("monotonic") - self._clock.monotonic()) > _CLOCK_SECONDS:
            raise NotReady("The runner has a different monotonic clock; it has to run on this machine.")
        return {str(key): str(value) for key, value in told.items()}

    def usage(self, names: Collection[str] = ()) -> Mapping[str, float] | None:
        told = self._endpoint.request(Usage(names=tuple(names)))
        return None if told is None else {str(name): float(used) for name, used in told.items()}

    def devices(self) -> list[Mapping[str, Any]]:
        """Where experiments run, for each slot: see `controller.app.device`. Raises NotReady."""
        told = self._endpoint.request(Describe(verb="devices"), outage_seconds=self._ready_seconds)
        return [dict(one) for one in told]

    def ping(self) -> None:
        """Raises NotReady if no runner answers."""
        self._endpoint.request(Describe(verb="ping"), outage_seconds=self._ready_seconds)

    def _pump(self, name: str, sink: Callable[[bytes], None], since: float | None) -> None:
        """Deliver a container's output until it ends; after a broken connection, resume where it stopped."""
        watchdog = Watchdog()
        while True:
            try:
                with self._endpoint.send(Follow(name=name, since=since)) as connection:
                    value(wire.receive_json(connection, ANSWER_SECONDS))
                    while block := _block(connection):
                        watchdog.reset()
                        sink(block)
                        since = time.time()
                return
            except wire.Broken as error:
                try:
                    watchdog.check(error)
                except GloveboxError:
                    return  # the thread that waits for the container reports it
            except GloveboxError:
                return
            time.sleep(RETRY_SECONDS)


class _Ticks:
    """Calls `tick` about once a second."""

    def __init__(self, tick: Callable[[], None]) -> None:
        self._tick, self._ticked = tick, time.monotonic()

    def pass_time(self) -> None:
        if time.monotonic() - self._ticked >= 1.0:
            self._ticked = time.monotonic()
            self._tick()


def _await_exit(
    connection: socket.socket, name: str, stop: threading.Event, watchdog: Watchdog, ticks: _Ticks
) -> dict[str, Any]:
    """The runner's final report on a container. Raises Broken, Interrupted, or the error it reports."""
    wire.readable(connection, _DEAD_SECONDS)
    while True:
        while not wire.readable(connection, _STOP_SECONDS):
            if stop.is_set():
                raise Interrupted(f"Asked to stop while {name} was running.")
            if watchdog.silence > _SILENCE_SECONDS:
                raise wire.Broken("it fell silent")
            ticks.pass_time()
        answer = wire.receive_json(connection, ANSWER_SECONDS)
        watchdog.reset()
        if answer != {"waiting": True}:
            return dict(value(answer))


def _block(connection: socket.socket) -> bytes:
    """The next block of output, however long it takes; empty at the end. Raises Broken."""
    while not wire.readable(connection, 60.0):
        pass
    return wire.receive(connection, wire.BLOCK_BYTES, ANSWER_SECONDS)


def _order(spec: ContainerSpec | VolumeSpec) -> Order:
    if spec.order is None:
        raise UserError(f"A runner cannot start {spec.name}; do that where the engine is accessible.")
    return spec.order


def main(arguments: list[str]) -> int:
    """Exit 0 if a runner answers at this socket. For health checks."""
    try:
        RunnerSandbox(Path(arguments[0]), SystemClock(), ready_seconds=0.0).ping()
    except GloveboxError as error:
        print(error, file=sys.stderr)
        return error.exit_status
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
