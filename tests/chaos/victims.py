"""What fails under a controller that lives on: an engine of the test's own, and the runner."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

from controller.core.containers.config import SandboxConfig
from controller.failpoints import VARIABLE
from tests.chaos.texts import BUDGET_SECONDS

_START_SECONDS = 60.0
_LOOK_SECONDS = 0.25


class Victim(Protocol):
    """A process that the controller depends on, in the hands of somebody careless."""

    name: str

    def signal(self, number: signal.Signals) -> None: ...

    def revive(self) -> None:
        """It is as it was, whatever was done to it."""


class Engine:
    """A container engine of our own, whose every file lies in one folder. Nobody else uses it."""

    name = "engine"

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self.host = f"unix://{folder}/engine.sock"
        self.containers = folder / "data" / "containers"
        self._process: subprocess.Popen[bytes] | None = None
        self.lives = 0

    @classmethod
    @contextmanager
    def open(cls, folder: Path) -> Iterator[Engine]:
        """Started, with the sandbox image of the usual engine in it."""
        engine = cls(folder)
        try:
            engine.revive()
            engine._take_image(SandboxConfig().image)
            yield engine
        finally:
            engine.close()

    def signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def revive(self) -> None:
        if self._process is None or _ended(self._process):
            (self._folder / "pid").unlink(missing_ok=True)
            self._process = self._start()
            self.lives += 1
        end = time.monotonic() + _START_SECONDS
        while not self._says("version"):
            if time.monotonic() > end:
                raise RuntimeError(f"the engine in {self._folder} does not start; see its log there")
            time.sleep(_LOOK_SECONDS)

    def close(self) -> None:
        if self._process is None:
            return
        self._process.send_signal(signal.SIGCONT)
        self._process.terminate()
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        data = str(
            self._folder / "data"
        )  # each engine mounts it on itself, and one that is killed leaves that
        while subprocess.run(["mountpoint", "--quiet", data], check=False).returncode == 0:
            subprocess.run(["umount", data], check=True)

    def _start(self) -> subprocess.Popen[bytes]:
        own = {"data-root": "data", "exec-root": "exec", "pidfile": "pid"}
        # Without a bridge an engine removes docker0, so in our network that of the usual engine.
        command = ["unshare", "--net", "dockerd", "--bridge", "none"]
        command += ["--config-file", os.devnull, "--host", self.host]
        command += ["--iptables=false", "--ip6tables=false"]
        command += [word for key, name in own.items() for word in (f"--{key}", str(self._folder / name))]
        with (self._folder / "engine.log").open("ab") as log:
            return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def _says(self, *words: str) -> bool:
        command = ["docker", "--host", self.host, *words]
        with suppress(subprocess.TimeoutExpired):
            return subprocess.run(command, capture_output=True, check=False, timeout=30).returncode == 0
        return False

    def _take_image(self, image: str) -> None:
        if self._says("image", "inspect", image):
            return
        with subprocess.Popen(["docker", "save", image], stdout=subprocess.PIPE) as save:
            load = ["docker", "--host", self.host, "load", "--quiet"]
            subprocess.run(load, stdin=save.stdout, check=True, capture_output=True)


class Runner:
    """`glovebox runner` for one home, on the usual engine."""

    name = "runner"

    def __init__(self, home: Path, socket: Path, environment: Mapping[str, str]) -> None:
        self._home = home
        self._environment = {**environment, "GLOVEBOX_RUNNER": str(socket)}
        self._process: subprocess.Popen[bytes] | None = None
        self._doomed = False
        self.socket = socket
        self.lives = 0

    @classmethod
    @contextmanager
    def open(cls, home: Path, environment: Mapping[str, str]) -> Iterator[Runner]:
        """Not alive yet."""
        with tempfile.TemporaryDirectory(prefix="runner-") as short:  # a socket's address has a limit
            runner = cls(home, Path(short) / "s", environment)
            try:
                yield runner
            finally:
                runner.kill()

    def signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)
        self._doomed = number in (signal.SIGTERM, signal.SIGKILL)

    def kill(self) -> None:
        if self._process is not None:
            self.signal(signal.SIGKILL)
            self._process.wait()

    def died(self, seconds: float) -> bool:
        """True as soon as it is dead by a SIGKILL; False after so many seconds. Raises RuntimeError."""
        assert self._process is not None
        try:
            status = self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return False
        if status != -signal.SIGKILL:
            raise RuntimeError(f"the runner ended with status {status}")
        return True

    def revive(self, place: str | None = None) -> None:
        """Started if it is not alive; then it dies at `place` if one is given."""
        if self._process is not None and not self._doomed and self._process.poll() is None:
            self._process.send_signal(signal.SIGCONT)
            return
        if self._process is not None:
            self._process.wait(_START_SECONDS)  # it was asked to end, and gets the time that takes
        armed = {} if place is None else {VARIABLE: place}
        self._doomed = False
        self.lives += 1
        with (self._home.parent / "runner.log").open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "controller", "runner", "--home", str(self._home)],
                env={**self._environment, **armed},
                cwd=self._home.parent,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def ask(self) -> None:
        """What compose's health check does."""
        command = [sys.executable, "-m", "controller.sandbox.runner.client", str(self.socket)]
        subprocess.run(command, env=self._environment, capture_output=True, check=False, timeout=60)


def _ended(process: subprocess.Popen[bytes]) -> bool:
    """False for one that hung and goes on now; one that was asked to end gets the time that takes."""
    state = Path(f"/proc/{process.pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0]
    if state == "T":
        process.send_signal(signal.SIGCONT)
        return False
    process.wait(_START_SECONDS)
    return True


@dataclass
class _Seen:
    name: str
    first: float
    last: float


class Census:
    """Counts the living by asking the kernel, which answers also while the engine does not.

    A process belongs to a container if the container's id stands in the name of its control group.
    """

    def __init__(self, containers: Path) -> None:
        """`containers` is where the engine keeps a folder for each of its containers."""
        self._containers = containers
        self._seen: dict[str, _Seen] = {}
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._count, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()

    def overdue(self, grace_seconds: float) -> list[str]:
        """Trainers that lived longer than they may."""
        lives = [(seen.name, seen.last - seen.first) for seen in [*self._seen.values()]]
        return [
            f"{name} lived {seconds:.1f} s"
            for name, seconds in lives
            if name.endswith("-trainer") and seconds > BUDGET_SECONDS + grace_seconds
        ]

    @property
    def trainers(self) -> int:
        return sum(seen.name.endswith("-trainer") for seen in self._seen.values())

    def _count(self) -> None:
        while not self._over.wait(_LOOK_SECONDS):
            now = time.monotonic()
            for identity in self._alive():
                seen = self._seen.get(identity)
                if seen is not None:
                    seen.last = now
                elif name := self._name(identity):
                    self._seen[identity] = _Seen(name, now, now)

    def _alive(self) -> set[str]:
        ours = {path.name for path in self._containers.glob("*")}
        alive = set()
        for process in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                for line in (process / "cgroup").read_text().splitlines():
                    alive.add(line.rpartition("/")[2].removeprefix("docker-").removesuffix(".scope"))
        return alive & ours

    def _name(self, identity: str) -> str:
        with suppress(OSError, ValueError, KeyError):
            told = json.loads((self._containers / identity / "config.v2.json").read_bytes())
            return str(told["Name"])
        return ""
