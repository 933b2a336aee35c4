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
from typing import Any, TypeVar

from pydantic import BaseModel

from controller.clock import SystemClock
from controller.core.container_spec import ContainerSpec
from controller.core.model import GloveboxError, InfrastructureError, Interrupted, NotReady, UserError
from controller.core.orders import (
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
from controller.core.untrusted import clean_line
from controller.core.volumes import VolumeSpec
from controller.failpoints import reach
from controller.ports import Clock, Exit
from controller.runner import wire

_ANSWER_SECONDS = 120.0
"""For one answer: a start asks the engine half a dozen things, and each may take it twenty seconds."""
_PATIENCE_SECONDS = 30.0
"""How long a runner may be away, restarting, before we give up."""
_READY_SECONDS = 10.0
"""The same when we start up."""
_SILENCE_SECONDS = 45.0
"""A runner that sees a container through says so every second, except while it kills one."""
_RETRY_SECONDS = 0.2
_STOP_SECONDS = 0.1
"""How soon a request to stop is noticed."""
_DEAD_SECONDS = 0.5
"""For the runner to say that a container had ended before we asked."""
_CLOCK_SECONDS = 5.0

_ERRORS: Mapping[str, type[GloveboxError]] = {
    kind.__name__: kind for kind in (InfrastructureError, NotReady, UserError)
}
Result = TypeVar("Result")


class _Away(wire.Broken):
    """Nobody answers; nothing was said yet."""


class RunnerSandbox:
    """`ports.Sandbox` on the runner at a socket."""

    def __init__(self, path: Path, clock: Clock, ready_seconds: float = _READY_SECONDS) -> None:
        """`ready_seconds`: how long a runner is waited for when we start up."""
        self._path, self._clock, self._ready_seconds = path, clock, ready_seconds

    def close(self) -> None:
        """Nothing is held: every request has a connection of its own."""

    def create_volume(self, spec: VolumeSpec) -> None:
        self._ask(CreateVolume(order=_order(spec), digest=spec.digest()))

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
            with self._say(request, text) as connection:
                reach("start-ordered")
                return _value(wire.receive_json(connection, _ANSWER_SECONDS))

        try:
            return float(self._patiently(once, again=False))
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
        patience, ticks = _Patience(), _Ticks(tick or (lambda: None))
        while True:
            try:
                with self._say(request) as connection:
                    return Exit(**_see_through(connection, name, stop, patience, ticks))
            except wire.Broken as error:
                patience.endure(error)
            if stop.wait(_RETRY_SECONDS):
                raise Interrupted(f"Asked to stop while {name} was running.")
            ticks.pass_time()

    def running_since(self, name: str) -> float | None:
        since = self._ask(Ask(verb="running-since", name=name))
        return None if since is None else float(since)

    def alive(self, name: str) -> bool:
        return bool(self._ask(Ask(verb="alive", name=name)))

    def output(self, name: str, limit: int) -> bytes:
        def once() -> bytes:
            with self._say(Output(name=name, limit=limit)) as connection:
                _value(wire.receive_json(connection, _ANSWER_SECONDS))
                return wire.receive(connection, limit, _ANSWER_SECONDS)

        return self._patiently(once)

    def kill(self, name: str) -> None:
        self._ask(Ask(verb="kill", name=name))

    def remove(self, *, containers: Sequence[str] = (), volumes: Sequence[str] = ()) -> None:
        self._ask(Remove(containers=tuple(containers), volumes=tuple(volumes)))

    def leftovers(self, keep: Collection[str] = ()) -> tuple[list[str], list[str]]:
        containers, volumes = self._ask(Leftovers(keep=tuple(sorted(keep))))
        return list(containers), list(volumes)

    def describe(self) -> Mapping[str, str]:
        told = self._ask(Describe(verb="describe"), patience=self._ready_seconds)
        if abs(told.pop("monotonic") - self._clock.monotonic()) > _CLOCK_SECONDS:
            raise NotReady("The runner has another monotonic clock; it has to run on this very machine.")
        return {str(key): str(value) for key, value in told.items()}

    def usage(self) -> Mapping[str, float] | None:
        told = self._ask(Describe(verb="usage"))
        return None if told is None else {str(name): float(used) for name, used in told.items()}

    def device(self) -> Mapping[str, Any]:
        """Where experiments run: `scale`, `name`, `driver`, `gpu`. Raises NotReady."""
        told = self._ask(Describe(verb="device"), patience=self._ready_seconds)
        return dict(told)

    def ping(self) -> None:
        """Raises NotReady if no runner answers."""
        self._ask(Describe(verb="ping"), patience=self._ready_seconds)

    # --- talking -------------------------------------------------------------------------------

    def _ask(
        self,
        request: BaseModel,
        *,
        patience: float = _PATIENCE_SECONDS,
    ) -> Any:
        def once() -> Any:
            with self._say(request) as connection:
                return _value(wire.receive_json(connection, _ANSWER_SECONDS))

        return self._patiently(once, patience=patience)

    def _patiently(
        self, once: Callable[[], Result], *, again: bool = True, patience: float = _PATIENCE_SECONDS
    ) -> Result:
        """`again`: false if it must not be asked again once it was; then raises Broken, too."""
        enduring = _Patience(patience)
        while True:
            try:
                return once()
            except wire.Broken as error:
                if not again and not isinstance(error, _Away):
                    raise
                enduring.endure(error)
            time.sleep(_RETRY_SECONDS)

    def _say(self, request: BaseModel, text: bytes = b"") -> socket.socket:
        """A connection on which the request was made. Raises Broken, _Away, NotReady."""
        connection = socket.socket(socket.AF_UNIX)
        try:
            connection.settimeout(_ANSWER_SECONDS)
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
            raise _Away(f"nobody answers at {self._path}: {error.strerror or error}") from error

    def _pump(self, name: str, sink: Callable[[bytes], None], since: float | None) -> None:
        """Deliver a container's output until it ends; after a break, go on where it was."""
        patience = _Patience()
        while True:
            try:
                with self._say(Follow(name=name, since=since)) as connection:
                    _value(wire.receive_json(connection, _ANSWER_SECONDS))
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
            time.sleep(_RETRY_SECONDS)


class _Patience:
    """How long a runner that does not answer is put up with."""

    def __init__(self, seconds: float = _PATIENCE_SECONDS) -> None:
        self._seconds = seconds
        self.reset()

    def reset(self) -> None:
        """It answered."""
        self._heard = time.monotonic()

    @property
    def silence(self) -> float:
        return time.monotonic() - self._heard

    def endure(self, error: wire.Broken) -> None:
        """Raises NotReady or InfrastructureError once it is over."""
        if self.silence < self._seconds:
            return
        sentence = f"The runner does not answer: {clean_line(str(error))}"
        if self._seconds < _PATIENCE_SECONDS:
            raise NotReady(f"{sentence}; `make up` or `glovebox runner` starts it.") from error
        raise InfrastructureError(f"{sentence}.") from error


class _Ticks:
    """Calls `tick` about once a second."""

    def __init__(self, tick: Callable[[], None]) -> None:
        self._tick, self._ticked = tick, time.monotonic()

    def pass_time(self) -> None:
        if time.monotonic() - self._ticked >= 1.0:
            self._ticked = time.monotonic()
            self._tick()


def _see_through(
    connection: socket.socket, name: str, stop: threading.Event, patience: _Patience, ticks: _Ticks
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
        answer = wire.receive_json(connection, _ANSWER_SECONDS)
        patience.reset()
        if answer != {"waiting": True}:
            return dict(_value(answer))


def _block(connection: socket.socket) -> bytes:
    """The next piece of output, however long that takes; empty at the end. Raises Broken."""
    while not wire.readable(connection, 60.0):
        pass
    return wire.receive(connection, wire.BLOCK_BYTES, _ANSWER_SECONDS)


def _order(spec: ContainerSpec | VolumeSpec) -> Order:
    if spec.order is None:
        raise UserError(f"A runner does not start {spec.name}; do that where the engine can be used.")
    return spec.order


def _value(answer: Mapping[str, Any]) -> Any:
    """What the runner answered; raises what it says went wrong."""
    if "value" in answer:
        return answer["value"]
    if "refused" in answer:
        raise UserError(f"The runner refuses: {clean_line(str(answer['refused']), 500)}.")
    kind = _ERRORS.get(str(answer.get("error")), InfrastructureError)
    raise kind(clean_line(str(answer.get("message")), 1000))


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
