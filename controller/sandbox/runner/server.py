"""The runner: holds the engine's socket and takes orders over a unix socket of its own.

A client that may connect is trusted with the containers of one home and nothing else: every request is parsed
strictly, every container is built from the runner's own settings, and names of other homes are refused. A
request that is malformed, too long or too slow costs its sender the connection and the runner one log line.
"""

from __future__ import annotations

import dataclasses
import fcntl
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

import structlog

from controller.core.containers import orders
from controller.core.containers.orders import (
    Ask,
    CreateVolume,
    Describe,
    Follow,
    Leftovers,
    Output,
    Remove,
    Request,
    Start,
    Usage,
    Wait,
)
from controller.core.errors import GloveboxError, InfrastructureError, Interrupted, NotReady
from controller.core.untrusted import clean_line
from controller.failpoints import reach
from controller.ports import Sandbox
from controller.sandbox.runner import wire
from controller.sandbox.runner.pending import PendingRequests
from controller.sandbox.runner.specs import SpecBuilder

log = structlog.stdlib.get_logger(__name__)

_REQUEST_SECONDS = 5.0
"""Time for a whole request to arrive."""
_SEND_SECONDS = 30.0
"""How long a client that follows a container may read nothing."""
_CONNECTIONS = 56, 8
"""Most connections at once, and those of each slot: an experiment needs eight."""
_MOST_ALIVE = 18, 6
"""Most containers, and most volumes, of a home at once, and those of each slot: an experiment has six of
each."""
_STOP_SECONDS = 0.5
_SETTLED_SECONDS = 60.0
"""Time for earlier orders to finish or fail."""


class Runner:
    """Serves one home."""

    def __init__(self, sandbox: Sandbox, specs: SpecBuilder, devices: Sequence[Mapping[str, Any]]) -> None:
        """`devices` is what a caller is told about where experiments run, one for each slot."""
        self._sandbox, self._specs, self._devices = sandbox, specs, [*devices]
        self._prefix = specs.names.prefix
        self._connections, self._most_alive = (
            fixed + each * len(devices) for fixed, each in (_CONNECTIONS, _MOST_ALIVE)
        )
        self._room = threading.BoundedSemaphore(self._connections)
        self._pending = PendingRequests()
        self._counting = threading.Lock()
        self._making: tuple[set[str], set[str]] = set(), set()
        """Names of containers (0) and volumes (1) that the engine has not created yet."""
        self._verbs: Mapping[type, Callable[[Any, socket.socket, bytes], Any]] = {
            Start: self._start,
            CreateVolume: self._create_volume,
            Follow: self._follow,
            Wait: self._wait,
            Ask: self._ask,
            Output: self._output,
            Remove: self._remove,
            Leftovers: self._leftovers,
            Usage: self._usage,
            Describe: self._describe,
        }

    def serve(self, path: Path, stop: threading.Event) -> None:
        """Answer until `stop` is set. Raises NotReady if the socket cannot be created or is in use."""
        with _listening(path, self._connections) as listener:
            self._specs.drop_stale_copies(self._sandbox.leftovers()[0])
            log.info("serving", home=str(self._specs.templates.home), device=self._devices[0]["name"])
            reach("runner-serving")
            while not stop.is_set():
                with suppress(TimeoutError):
                    self._admit(listener.accept()[0])

    def _admit(self, connection: socket.socket) -> None:
        connection.settimeout(_SEND_SECONDS)
        if self._room.acquire(blocking=False):
            ticket = self._pending.begin()  # here, so that tickets are in order of arrival
            threading.Thread(target=self._handle, args=(connection, ticket), daemon=True).start()
            return
        with connection, suppress(wire.Broken):
            wire.send_json(connection, {"refused": "the runner is busy with too many requests"})

    def _handle(self, connection: socket.socket, ticket: object) -> None:
        try:
            with connection:
                self._answer(connection, ticket)
        except wire.Broken as error:
            log.info("hung_up", reason=str(error))
        finally:
            self._pending.end(ticket)
            self._room.release()

    def _answer(self, connection: socket.socket, ticket: object) -> None:
        """Handle one request. Whatever it holds and however it ends, the runner keeps serving."""
        try:
            request, text = self._read_request(connection)
            if not isinstance(request, Start | CreateVolume | Remove):
                self._pending.end(ticket)
            reach(f"order-received-{request.verb}")
            value = self._verbs[type(request)](request, connection, text)
            reach(f"order-carried-out-{request.verb}")
            answer = {"value": value}
        except ValueError as error:
            log.warning("refused", reason=clean_line(str(error)), peer=_peer(connection))
            answer = {"refused": clean_line(str(error), 500)}
        except Interrupted:
            return  # the client left while we were waiting for it
        except GloveboxError as error:
            log.warning("failed", error=clean_line(str(error), 500), peer=_peer(connection))
            answer = {"error": type(error).__name__, "message": clean_line(str(error), 1000)}
        except wire.Broken:
            raise
        except Exception as error:
            log.exception("bug")
            answer = {
                "error": "InfrastructureError",
                "message": f"The runner failed: {type(error).__name__}.",
            }
        if answer.get("value") is not _ANSWERED:
            connection.settimeout(_SEND_SECONDS)
            wire.send_json(connection, answer)

    def _read_request(self, connection: socket.socket) -> tuple[Request, bytes]:
        """Raises ValueError for an invalid request, InfrastructureError for one that does not arrive."""
        try:
            request = orders.parse(wire.receive(connection, orders.REQUEST_BYTES, _REQUEST_SECONDS))
            text = b""
            if isinstance(request, Start) and request.text_bytes:
                text = wire.receive(connection, request.text_bytes, _REQUEST_SECONDS)
                if len(text) != request.text_bytes:
                    raise ValueError("a train.py is shorter than announced")
        except wire.Broken as error:
            raise InfrastructureError(f"The runner could not read a request: {error}.") from error
        for name in orders.names(request):
            if not name.startswith(self._prefix):
                raise ValueError(f"{name} does not belong to this home")
        connection.settimeout(_SEND_SECONDS)
        return request, text

    # --- verbs ---------------------------------------------------------------------------------

    def _start(self, request: Start, _: socket.socket, text: bytes) -> float:
        name = self._specs.name(request.order)
        with self._room_for(0, name):
            spec = self._specs.container(request.order, request.digest, text)
            try:
                began = self._sandbox.start(spec)
            except GloveboxError:
                with suppress(GloveboxError):  # if the engine fails here, too, the next start cleans up
                    if name not in self._sandbox.leftovers()[0]:
                        self._specs.drop_copies([name])
                raise
        log.info("started", name=name, digest=request.digest)
        return began

    def _create_volume(self, request: CreateVolume, _: socket.socket, __: bytes) -> None:
        spec = self._specs.volume(request.order, request.digest)
        with self._room_for(1, spec.name):
            self._sandbox.create_volume(spec)
        log.info("created", name=spec.name)

    @contextmanager
    def _room_for(self, kind: int, name: str) -> Iterator[None]:
        """A caller gone mad must not fill the machine with containers (0) or volumes in memory (1).

        What is being made counts, so that asking for many at a time is no way around it.
        """
        with self._counting:
            if name in self._making[kind]:
                raise InfrastructureError(f"{name} is being made already.")
            if len({*self._sandbox.leftovers()[kind], *self._making[kind], name}) > self._most_alive:
                raise InfrastructureError("This home has too many containers or volumes; `glovebox reap`.")
            self._making[kind].add(name)
        try:
            yield
        finally:
            self._making[kind].remove(name)

    def _follow(self, request: Follow, connection: socket.socket, _: bytes) -> object:
        wire.send_json(connection, {"value": None})
        listening = threading.Event()
        listening.set()

        def deliver(block: bytes) -> None:
            """After the client has left, keep draining the output: the container must not block on it."""
            if listening.is_set():
                try:
                    wire.send(connection, block)
                except wire.Broken:
                    listening.clear()

        self._sandbox.follow(request.name, deliver, request.since).join()
        if listening.is_set():
            wire.send(connection, b"")
        return _ANSWERED

    def _wait(self, request: Wait, connection: socket.socket, _: bytes) -> dict[str, Any]:
        gone = threading.Event()

        def tell() -> None:
            try:
                wire.send_json(connection, {"waiting": True})
            except wire.Broken:
                gone.set()

        deadline = float("inf") if request.deadline is None else request.deadline
        end = self._sandbox.wait(request.name, deadline=deadline, stop=gone, tick=tell)
        log.info("ended", name=request.name, exit_code=end.exit_code, killed=end.killed)
        return dataclasses.asdict(end)

    def _ask(self, request: Ask, _: socket.socket, __: bytes) -> float | bool | None:
        match request.verb:
            case "running-since":
                self._await_pending()
                return self._sandbox.running_since(request.name)
            case "alive":
                return self._sandbox.alive(request.name)
            case "begin":
                self._sandbox.begin(request.name)
            case "kill":
                self._sandbox.kill(request.name)
                log.info("killed", name=request.name)
        return None

    def _await_pending(self) -> None:
        """The caller may be a restarted controller whose predecessor's last order is still pending."""
        if not self._pending.settled(_SETTLED_SECONDS):
            raise InfrastructureError("An earlier order is still in progress.")

    def _output(self, request: Output, connection: socket.socket, _: bytes) -> object:
        output = self._sandbox.output(request.name, request.limit)
        wire.send_json(connection, {"value": None})
        wire.send(connection, output)
        return _ANSWERED

    def _remove(self, request: Remove, _: socket.socket, __: bytes) -> None:
        self._sandbox.remove(containers=request.containers, volumes=request.volumes)
        self._specs.drop_copies(request.containers)
        log.info("removed", names=[*request.containers, *request.volumes])

    def _leftovers(self, request: Leftovers, _: socket.socket, __: bytes) -> list[list[str]]:
        self._await_pending()
        return [list(found) for found in self._sandbox.leftovers(request.keep)]

    def _usage(self, request: Usage, _: socket.socket, __: bytes) -> Mapping[str, float] | None:
        return self._sandbox.usage(request.names)

    def _describe(
        self, request: Describe, _: socket.socket, __: bytes
    ) -> Mapping[str, Any] | Sequence[Mapping[str, Any]]:
        match request.verb:
            case "describe":
                return {**self._sandbox.describe(), "monotonic": time.monotonic()}
            case "devices":
                return self._devices
            case "ping":
                return {}


_ANSWERED: Final = object()
"""Returned by verbs that have sent their own answer."""


@contextmanager
def _listening(path: Path, connections: int) -> Iterator[socket.socket]:
    """A socket at `path` for our group; it appears only when it is ready for use. Raises NotReady."""
    with socket.socket(socket.AF_UNIX) as listener:
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o750)
            with path.with_suffix(".lock").open("w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                unseen = path.with_suffix(".new")
                unseen.unlink(missing_ok=True)
                listener.bind(str(unseen))
                unseen.chmod(0o660)
                listener.listen(connections)
                listener.settimeout(_STOP_SECONDS)
                unseen.rename(path)
                yield listener
                path.unlink(missing_ok=True)
        except BlockingIOError:
            raise NotReady(f"Another runner is at work at {path}.") from None
        except OSError as error:
            raise NotReady(f"No socket can be made at {path}: {error}.") from error


def _peer(connection: socket.socket) -> str:
    """Process and user at the other end, according to the kernel."""
    size = struct.calcsize("3i")
    pid, uid, _ = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size))
    return f"pid {pid}, uid {uid}"
