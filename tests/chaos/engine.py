"""What the engine itself says about the containers of one home, as it happens."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import docker
import docker.errors
import docker.utils
import requests

from controller.core.containers.config import SandboxConfig
from controller.core.containers.domains import Domain
from controller.core.containers.names import LABEL_DEADLINE, LABEL_DOMAIN, LABEL_HOME, ContainerNames
from controller.core.containers.service_builders import CACHES_SECONDS
from controller.core.containers.volumes import SECOND
from controller.sandbox.engine.docker_sandbox import DockerSandbox
from controller.sandbox.inputs import sealed
from controller.system.clock import SystemClock

GRACE_SECONDS = 5.0
"""How long past its deadline a container may live, whoever else is dead."""


def require() -> None:
    """Raises NotReady where there is no engine, or no image."""
    sandbox = DockerSandbox(sealed(SandboxConfig()), Path("home"), SystemClock())
    try:
        sandbox.describe()
    finally:
        sandbox.close()


@dataclass
class Life:
    """One container. Times are the engine's, in seconds since 1970."""

    name: str
    domain: str
    created: float
    deadline: float
    """What its label says, which was written when it was made; its life begins when it is started."""
    started: float | None = None
    died: float | None = None
    gone: bool = False

    @property
    def run(self) -> tuple[int, int]:
        """Experiment and attempt."""
        number, attempt = self.name.split("-")[2:4]
        return int(number), int(attempt)


class Watchman:
    """Follows the engine's events about one home while the context is entered."""

    def __init__(self, home: Path, budget_seconds: float, host: str | None = None) -> None:
        """`host` is another engine than the usual one; of that one, which may be restarted, no events."""
        self._budget_seconds = budget_seconds
        self._ours = f"{LABEL_HOME}={ContainerNames(home.resolve(), '').home_id}"
        self._lives: dict[str, Life] = {}
        self._changed = threading.Condition()
        named = docker.utils.kwargs_from_env({"DOCKER_HOST": host} if host else None)
        self._client = docker.APIClient(**named, timeout=20)
        self._events = self._client.events(decode=True, filters={"label": self._ours, "type": "container"})
        self._thread = threading.Thread(target=self._follow, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with suppress(OSError, requests.RequestException, docker.errors.DockerException):
            self._events.close()
            self._thread.join()
            # The SDK closes the socket, but not what still reads from it: that keeps the descriptor open.
            self._events._response.close()  # type: ignore[attr-defined]
        self._client.close()

    def _follow(self) -> None:
        with suppress(OSError, ValueError, requests.RequestException, docker.errors.DockerException):
            for event in self._events:
                with self._changed:
                    self._hear(event)
                    self._changed.notify_all()

    def _hear(self, event: dict[str, Any]) -> None:
        labels, at = event["Actor"]["Attributes"], event["timeNano"] / 1e9
        if event["Action"] == "create":
            name, domain = labels["name"], labels[LABEL_DOMAIN]
            self._lives[event["Actor"]["ID"]] = Life(name, domain, at, float(labels[LABEL_DEADLINE]))
        life = self._lives.get(event["Actor"]["ID"])
        match event["Action"]:
            case "start" if life:
                life.started = at
            case "die" if life:
                life.died = at
            case "destroy" if life:
                life.gone = True

    def lives(self) -> list[Life]:
        with self._changed:
            return [*self._lives.values()]

    def running(self, domain: Domain) -> list[Life]:
        return [life for life in self.lives() if life.domain == domain and life.started and not life.died]

    def wait_for_nobody(self, domain: Domain, seconds: float) -> bool:
        """True once no container of a domain runs."""
        with self._changed:
            return self._changed.wait_for(
                lambda: (
                    not any(
                        life.domain == domain and life.started and not life.died
                        for life in self._lives.values()
                    )
                ),
                seconds,
            )

    def second_worker(self) -> bool:
        """True while the one runs that confirms a score."""
        names = [one["Names"][0] for one in self._client.containers(filters={"label": self._ours})]
        return any(name.endswith(SECOND.worker) for name in names)

    def leftovers(self) -> list[str]:
        """Names of the containers and volumes that the engine holds of this home.

        A runner that lives on may be emptying the caches: that is waited for, until what did it is removed.
        """
        emptying = {"label": [self._ours, f"{LABEL_DOMAIN}={Domain.CACHES}"]}
        deadline = time.monotonic() + CACHES_SECONDS
        while self._client.containers(all=True, filters=emptying) and time.monotonic() < deadline:
            time.sleep(0.1)
        containers = self._client.containers(all=True, filters={"label": self._ours})
        volumes = self._client.volumes(filters={"label": self._ours})["Volumes"] or []
        return [one["Names"][0] for one in containers] + [one["Name"] for one in volumes]

    def remove_leftovers(self) -> None:
        for one in self._client.containers(all=True, filters={"label": self._ours}):
            self._client.remove_container(one["Id"], force=True)
        for volume in self._client.volumes(filters={"label": self._ours})["Volumes"] or []:
            self._client.remove_volume(volume["Name"], force=True)

    def overdue(self) -> Iterator[str]:
        """Containers that live, or lived, longer than they may."""
        now = time.time()
        for life in self.lives():
            if life.started is not None:
                end = life.died or now
                due = life.deadline + life.started - life.created  # as the reaper reckons
                if life.domain == Domain.TRAINER:
                    due = life.started + self._budget_seconds
                if (late := end - due - GRACE_SECONDS) > 0:
                    yield f"{life.name} lived {late:.1f} s too long"

    def phantoms(self, trained: set[tuple[int, int]]) -> Iterator[str]:
        """Trainers that ran for nothing. `trained` are the (experiment, attempt) that the journal ends."""
        for run in self._starts().keys() - trained:
            yield f"experiment {run[0]}, attempt {run[1]} ran, and the journal has no end of it"

    def doubled(self) -> Iterator[str]:
        for run, times in self._starts().items():
            if times > 1:
                yield f"experiment {run[0]}, attempt {run[1]} was trained {times} times"

    def _starts(self) -> Counter[tuple[int, int]]:
        return Counter(life.run for life in self.lives() if life.domain == Domain.TRAINER and life.started)
