"""`ports.Sandbox` by way of a runner. This process then needs no access to the engine.

A runner that goes away is waited for: it is restarted by whoever keeps it and finds its containers again.
What can be asked twice is asked again. A start cannot; if its container runs all the same, that is the start,
and else it is an infrastructure failure.
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
    Wait,
)
from controller.core.containers.spec import ContainerSpec
from controller.core.containers.volumes import VolumeSpec
from controller.core.errors import GloveboxError, InfrastructureError, Interrupted, NotReady, UserError
from controller.failpoints import reach
from controller.ports import Clock, Exit
from controller.sandbox.runner import wire
from controller.sandbox.runner.connection import ANSWER_SECONDS, RETRY_SECONDS, Line, Patience, value
from controller.system.clock import SystemClock

_READY_SECONDS = 10.0
"""How long a runner is waited for when we start up."""
_SILENCE_SECONDS = 45.0
"""A runner that sees a container through says so every second, except while it kills one."""
_STOP_SECONDS = 0.1
"""How soon a request to stop is noticed."""
_DEAD_SECONDS = 0.5
"""For the runner to say that a container had ended before we asked."""
_CLOCK_SECONDS = 5.0
"""By which our monotonic clock and the runner's may differ, the way there and back included."""


class RunnerSandbox:
    """`ports.Sandbox` on the runner at a socket."""

    def __init__(self, path: Path, clock: Clock, ready_seconds: float = _READY_SECONDS) -> None:
        """`ready_seconds`: how long a runner is waited for when we start up."""
        self._line, self._clock, self._ready_seconds = Line(path), clock, ready_seconds

    def close(self) -> None:
        """Nothing is held: every request has a connection of its own."""

    def create_volume(self, spec: VolumeSpec) -> None:
        self._line.ask(CreateVolume(order=_order(spec), digest=spec.digest()))

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
        """A start cannot be asked for again; whether it came to anything, the next runner knows."""

        def once() -> Any:
            with self._line.say(request, text) as connection:
                reach("start-ordered")
                return value(wire.receive_json(connection, ANSWER_SECONDS))

        try:
            return float(self._line.patiently(once, again=False))
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
        patience, ticks = Patience(), _Ticks(tick or (lambda: None))
        while True:
            try:
                with self._line.say(request) as connection:
                    return Exit(**_see_through(connection, name, stop, patience, ticks))
            except wire.Broken as error:
                patience.endure(error)
            if stop.wait(RETRY_SECONDS):
                raise Interrupted(f"Asked to stop while {name} was running.")
            ticks.pass_time()

    def running_since(self, name: str) -> float | None:
        since = self._line.ask(Ask(verb="running-since", name=name))
        return None if since is None else float(since)

    def alive(self, name: str) -> bool:
        return bool(self._line.ask(Ask(verb="alive", name=name)))

    def output(self, name: str, limit: int) -> bytes:
        def once() -> bytes:
            with self._line.say(Output(name=name, limit=limit)) as connection:
                value(wire.receive_json(connection, ANSWER_SECONDS))
                return wire.receive(connection, limit, ANSWER_SECONDS)

        return self._line.patiently(once)

    def begin(self, name: str) -> None:
        self._line.ask(Ask(verb="begin", name=name))

    def kill(self, name: str) -> None:
        self._line.ask(Ask(verb="kill", name=name))

    def remove(self, *, containers: Sequence[str] = (), volumes: Sequence[str] = ()) -> None:
        self._line.ask(Remove(containers=tuple(containers), volumes=tuple(volumes)))

    def leftovers(self, keep: Collection[str] = ()) -> tuple[list[str], list[str]]:
        containers, volumes = self._line.ask(Leftovers(keep=tuple(sorted(keep))))
        return list(containers), list(volumes)

    def describe(self) -> Mapping[str, str]:
        told = self._line.ask(Describe(verb="describe"), patience=self._ready_seconds)
        if abs(told.pop("monotonic") - self._clock.monotonic()) > _CLOCK_SECONDS:
            raise NotReady("The runner has another monotonic clock; it has to run on this very machine.")
        return {str(key): str(value) for key, value in told.items()}

    def usage(self) -> Mapping[str, float] | None:
        told = self._line.ask(Describe(verb="usage"))
        return None if told is None else {str(name): float(used) for name, used in told.items()}

    def device(self) -> Mapping[str, Any]:
        """Where experiments run: see `controller.app.device`. Raises NotReady."""
        told = self._line.ask(Describe(verb="device"), patience=self._ready_seconds)
        return dict(told)

    def ping(self) -> None:
        """Raises NotReady if no runner answers."""
        self._line.ask(Describe(verb="ping"), patience=self._ready_seconds)

    def _pump(self, name: str, sink: Callable[[bytes], None], since: float | None) -> None:
        """Deliver a container's output until it ends; after a break, go on where it was."""
        patience = Patience()
        while True:
            try:
                with self._line.say(Follow(name=name, since=since)) as connection:
                    value(wire.receive_json(connection, ANSWER_SECONDS))
                    while block := _block(connection):
                        patience.reset()
                        sink(block)
                        since = time.time()
                return
            except wire.Broken as error:
                try:
                    patience.endure(error)
                except GloveboxError:
                    return  # whoever waits for the container's end hears of it
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


def _see_through(
    connection: socket.socket, name: str, stop: threading.Event, patience: Patience, ticks: _Ticks
) -> dict[str, Any]:
    """The runner's last word on a container. Raises Broken, Interrupted and what it says went wrong."""
    wire.readable(connection, _DEAD_SECONDS)
    while True:
        while not wire.readable(connection, _STOP_SECONDS):
            if stop.is_set():
                raise Interrupted(f"Asked to stop while {name} was running.")
            if patience.silence > _SILENCE_SECONDS:
                raise wire.Broken("it fell silent")
            ticks.pass_time()
        answer = wire.receive_json(connection, ANSWER_SECONDS)
        patience.reset()
        if answer != {"waiting": True}:
            return dict(value(answer))


def _block(connection: socket.socket) -> bytes:
    """The next piece of output, however long that takes; empty at the end. Raises Broken."""
    while not wire.readable(connection, 60.0):
        pass
    return wire.receive(connection, wire.BLOCK_BYTES, ANSWER_SECONDS)


def _order(spec: ContainerSpec | VolumeSpec) -> Order:
    if spec.order is None:
        raise UserError(f"A runner does not start {spec.name}; do that where the engine can be used.")
    return spec.order


def main(arguments: list[str]) -> int:
    """Is there a runner at this socket? For health checks."""
    try:
        RunnerSandbox(Path(arguments[0]), SystemClock(), ready_seconds=0.0).ping()
    except GloveboxError as error:
        print(error, file=sys.stderr)
        return error.exit_status
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
