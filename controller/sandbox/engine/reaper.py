"""Ends containers that have outlived their deadline, even if all our other processes are dead.

Started as `python -m controller.sandbox.engine.reaper [FILE]`.

The last of three safeguards, after the controller (or its runner) and PID 1 of each container. It knows
nothing of settings, homes or experiments, only the labels that every container and volume carries. It polls
the engine every second and retries when that fails. FILE is touched after every sweep, for a health check.
"""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import docker
import docker.errors
import structlog

from controller.core.containers.names import LABEL_DEADLINE, LABEL_EXPERIMENT, LABEL_HOME
from controller.core.containers.reaping import Deadlines, Found, to_kill, to_remove
from controller.core.untrusted import clean_line
from controller.sandbox.engine import connection as engine
from controller.system import logs

log = structlog.stdlib.get_logger(__name__)

PERIOD_SECONDS = 1.0
_ENGINE_SECONDS = 10
_PARALLEL = 16
"""How many containers are killed or removed at a time."""
_NOT_RUNNING = frozenset({"created", "exited", "dead", "removing"})


class Reaper:
    """Watches everything on one engine that carries our labels."""

    def __init__(self) -> None:
        self._deadlines = Deadlines()

    def sweep(self) -> list[str]:
        """Kill and remove what is due; return the ids. Raises what the SDK raises if the engine fails.

        One container that cannot be killed or removed does not hold up the others: everything is tried
        before this raises.
        """
        with closing(engine.connect(_ENGINE_SECONDS)) as client:
            containers, volumes = self._look(client)
            now = time.monotonic()
            running = {found.whose for found in containers if found.running}
            killed = to_kill(containers, now)
            failures = _try_each("killed", killed, _kill)
            removed = to_remove(containers, running, now)
            failures += _try_each("removed", removed, _remove)
            unused = to_remove(volumes, running, now)
            failures += _try_each("removed", unused, _remove_volume)
        if failures:
            raise failures[0]
        return [*killed, *removed, *unused]

    def _look(self, client: docker.APIClient) -> tuple[list[Found], list[Found]]:
        ours = {"label": LABEL_DEADLINE}
        containers = client.containers(all=True, filters=ours)
        volumes = client.volumes(filters=ours)["Volumes"] or []
        self._deadlines.forget_all_but({c["Id"] for c in containers} | {v["Name"] for v in volumes})
        return (
            [found for c in containers if (found := self._container(client, c)) is not None],
            [self._volume(v) for v in volumes],
        )

    def _container(self, client: docker.APIClient, listed: Mapping[str, Any]) -> Found | None:
        """None: it is gone by now."""
        name, labels, running = listed["Id"], listed["Labels"], listed["State"] not in _NOT_RUNNING
        deadline = labels[LABEL_DEADLINE]
        if running and name not in self._deadlines:
            try:
                inspected = client.inspect_container(name)
            except docker.errors.NotFound:
                return None
            except engine.FAILURES as error:  # fall back on the label alone, and go on
                log.warning("cannot_inspect", id=name, error=clean_line(str(error)))
                due = self._deadlines.of(name, deadline, time.time(), time.monotonic())
                return Found(name, _whose(labels), due, running)
            # The deadline was set when it was created; its time counts from its start.
            started, made = inspected["State"]["StartedAt"], inspected["Created"]
            late = (engine.time_of(started) - engine.time_of(made)).total_seconds()
            self._deadlines.remember(name, deadline, time.time(), time.monotonic(), late)
        due = self._deadlines.of(name, deadline, time.time(), time.monotonic())
        return Found(name, _whose(labels), due, running)

    def _volume(self, listed: Mapping[str, Any]) -> Found:
        name, labels = listed["Name"], listed["Labels"]
        seen = name, labels[LABEL_DEADLINE], time.time(), time.monotonic()
        self._deadlines.remember(*seen)
        return Found(name, _whose(labels), self._deadlines.of(*seen))


def watch(stop: threading.Event, alive: Path | None = None) -> None:
    """Sweep until `stop` is set."""
    reaper, trouble = Reaper(), ""
    while not stop.is_set():
        try:
            reaper.sweep()
            trouble = ""
            if alive is not None:
                alive.touch()
        except engine.FAILURES as error:
            if trouble != (trouble := clean_line(str(error))):
                log.warning("engine_fails", error=trouble)
        stop.wait(PERIOD_SECONDS)


def _kill(client: docker.APIClient, name: str) -> None:
    client.kill(name, "SIGKILL")


def _remove(client: docker.APIClient, name: str) -> None:
    client.remove_container(name, force=True, v=True)


def _remove_volume(client: docker.APIClient, name: str) -> None:
    client.remove_volume(name)


def _try_each(
    what: str, names: Sequence[str], act: Callable[[docker.APIClient, str], None]
) -> list[Exception]:
    """Act on each, several at a time: one slow to die must not delay the rest. Returns the failures."""

    def attempt(name: str) -> Exception | None:
        try:
            with closing(engine.connect(_ENGINE_SECONDS)) as client:
                act(client, name)
            log.info(what, id=name)
        except docker.errors.NotFound:
            pass  # already gone
        except docker.errors.APIError as error:
            return None if error.status_code == 409 else error  # 409: in use again, or already ended
        except engine.FAILURES as error:
            return error
        return None

    with ThreadPoolExecutor(_PARALLEL) as pool:
        return [failure for failure in pool.map(attempt, names) if failure is not None]


def _whose(labels: Mapping[str, str]) -> tuple[str, str]:
    return labels.get(LABEL_HOME, ""), labels.get(LABEL_EXPERIMENT, "")


def main(arguments: list[str]) -> int:
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    logs.configure(sys.stderr)
    watch(stop, Path(arguments[0]) if arguments else None)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
