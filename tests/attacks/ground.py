"""A home where attacks on the machine and on people are tried, with the parts that they are tried on.

What attacks the clock, the memory or the disk needs neither torch nor a judge: it runs as T, by the real
Trainer, with limits small enough to be reached in a moment. Where the controller is what is attacked, its
real process runs.
"""

from __future__ import annotations

import datetime as dt
import functools
import json
import os
import re
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from controller.core.containers.config import MIB, Limits, SandboxConfig
from controller.core.containers.domains import Domain
from controller.core.containers.names import ContainerNames
from controller.core.values import RunOutcome
from controller.ports import Monitor
from controller.sandbox.engine.docker_sandbox import DockerSandbox
from controller.sandbox.inputs import HarnessFiles, sealed
from controller.system.clock import SystemClock
from tests.support.bench import Bench

PROJECT = Path(__file__).parents[2]

SMALL = Limits(
    memory=192 * MIB,
    pids=256,
    tmp_bytes=32 * MIB,
    shm_bytes=8 * MIB,
    file_size_bytes=24 * MIB,
    open_files=256,
)
WORKSPACE_BYTES = 16 * MIB
ENGINE_LOG_BYTES = MIB
LOG_BYTES = MIB // 4
"""Of each end of a run's output, in run.log."""
LATE_SECONDS = 5.0
"""No container lives longer than this past its deadline."""
READY_SECONDS = 10.0
"""After an experiment its slot is usable again within this time."""
HOST_BYTES = 128 * MIB
"""By so much the host's free disk may change while an attack writes more; others write, too."""

HONEST = "print('honest', flush=True)"


@dataclass(frozen=True)
class Ending:
    """What came of one attack."""

    got: str
    detail: str = ""


@dataclass(frozen=True)
class Assault:
    """One attack, and what must come of it."""

    row: str
    """Its row in the table of threats, C1 to C9, A1 to A6 and M14."""
    name: str
    expected: str
    """One or two words for how it ends."""
    why: str
    """What makes it fail."""
    attack: Callable[[Ground], Ending]
    alone: bool = False
    """Whether it needs the machine to itself."""


class Gained(Exception):
    """The attack got something that it must not get; the message says what."""


@dataclass
class Run:
    """A finished run of T and what it left, looked at before its container is removed."""

    outcome: RunOutcome
    log: str
    survivors: list[int]
    """Processes of the container that still live on the host."""
    engine_log_bytes: int | None
    """What the engine kept of its output; None if only root can see that."""
    host_bytes: int
    """By how much the free disk of home and engine has shrunk."""
    next_seconds: float | None = None
    """From its end to the first output of an honest run in the same slot; None: nobody looked."""
    budget: float = 0.0

    @property
    def lateness(self) -> float:
        """Seconds that the container lived past its deadline; negative if it ended before."""
        return self.outcome.seconds - self.budget


@dataclass
class Ground:
    """One slot of the machine."""

    bench: Bench
    shared: dict[str, Any] = field(default_factory=dict)
    """What several attacks are read out of is worked out once, whichever ground comes first."""
    lock: threading.Lock = field(default_factory=threading.Lock)

    def run(
        self, program: str, budget: float = 2.0, *, then_honest: bool = False, monitor: Monitor | None = None
    ) -> Run:
        """Run `program` as T for `budget` seconds at most. Raises Gained if anything outlives it."""
        attempt, trainer = self.bench.attempt(program, budget), self.bench.trainer(LOG_BYTES, monitor)
        name, free = trainer.spec(attempt).name, self._free()
        try:
            outcome = trainer.train(attempt, self.bench.stop, lambda elapsed: None)
            ended = time.monotonic()
            container = self._inspect(name)
            run = Run(
                outcome,
                self.bench.log_text,
                processes_of(container["Id"]),
                _engine_log(container["Id"]),
                free - self._free(),
                budget=budget,
            )
        finally:
            trainer.discard(attempt)
        if then_honest:
            run.next_seconds = self._until_honest(ended)
        if run.survivors:
            raise Gained(f"processes {run.survivors} outlived the container")
        if run.lateness > LATE_SECONDS:
            raise Gained(f"it lived {run.lateness:.1f} s past its deadline")
        if run.next_seconds is not None and run.next_seconds > READY_SECONDS:
            raise Gained(f"the slot was not usable for {run.next_seconds:.1f} s")
        if run.host_bytes > HOST_BYTES:
            raise Gained(f"{run.host_bytes / MIB:.0f} MiB of the host's disk are gone")
        if self.bench.sandbox.leftovers() != ([], []):
            raise Gained(f"left in the engine: {self.bench.sandbox.leftovers()}")
        return run

    def _until_honest(self, since: float) -> float:
        """Raises Gained if an honest run does not come to its end."""
        attempt, trainer = self.bench.attempt(HONEST, 20.0), self.bench.trainer(LOG_BYTES)
        name, heard = trainer.spec(attempt).name, []
        try:
            outcome = trainer.train(attempt, self.bench.stop, lambda elapsed: None)
            state = self._inspect(name)["State"]
            heard.append(time.monotonic() - since)
        finally:
            trainer.discard(attempt)
        if outcome.exit_code != 0 or self.bench.log_text != "honest\n":
            raise Gained(f"the next run ended with {outcome.exit_code}: {self.bench.log_text[-200:]}")
        assert state["Status"] == "exited"
        return heard[0]

    def _free(self) -> int:
        places = [os.statvfs(place) for place in (self.bench.home, engine_folder())]
        return min(place.f_bavail * place.f_frsize for place in places)

    def once(self, key: str, work: Callable[[], Any]) -> Any:
        with self.lock:
            if key not in self.shared:
                self.shared[key] = work()
            return self.shared[key]

    def _inspect(self, name: str) -> dict[str, Any]:
        done = subprocess.run(["docker", "inspect", name], capture_output=True, check=True)
        found: dict[str, Any] = json.loads(done.stdout)[0]
        return found

    def armed(self, program: str, *, then_honest: bool = False) -> Run:
        """As `run`, with a budget in which the program gets as far as to print `armed` on this machine."""
        run = self.run(program, then_honest=then_honest)
        return run if "armed" in run.log else self.run(program, 10.0, then_honest=then_honest)

    def until_dead(self, name: str, deadline: float) -> tuple[float, int]:
        """Seconds the container lived, by the engine's account, and its exit status.

        Raises Gained if it lives at `deadline`.
        """
        while (state := self._inspect(name)["State"])["Running"]:
            if time.monotonic() > deadline:
                raise Gained("it is still alive")
            time.sleep(0.05)
        return _seconds(state["StartedAt"], state["FinishedAt"]), state["ExitCode"]

    def try_command(
        self, program: str, budget: float, prefix: Sequence[str] = (), *, as_json: bool = True
    ) -> subprocess.Popen[str]:
        """`glovebox try` on `program`, in a process of its own; `prefix` is a command that runs it."""
        folder = self.bench.home / "tried"
        folder.mkdir(exist_ok=True)
        (folder / "train.py").write_text(textwrap.dedent(program))
        command = [sys.executable, "-m", "controller", "try", str(folder / "train.py"), "--device", "cpu"]
        return subprocess.Popen(
            [*prefix, *command, "--budget", str(budget), *(["--json"] if as_json else [])],
            env=self.environment(),
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def environment(self) -> dict[str, str]:
        """Of a controller's process: small limits, and nothing of this machine's settings and keys."""
        config, small = self.bench.config, SMALL.model_dump()
        ours = {name: os.environ[name] for name in ("PATH", "LANG", "DOCKER_HOST") if name in os.environ}
        limits = {f"GLOVEBOX_SANDBOX__TRAINER__{key.upper()}": str(v) for key, v in small.items() if v}
        return {
            **ours,
            **limits,
            "PYTHONPATH": str(PROJECT),
            "PYTHONDONTWRITEBYTECODE": "1",
            "GLOVEBOX_HOME": str(self.bench.home),
            "GLOVEBOX_MIN_FREE_BYTES": "0",
            "GLOVEBOX_SANDBOX__WORKSPACE_BYTES": str(config.workspace_bytes),
            "GLOVEBOX_SANDBOX__LOG_BYTES": str(config.log_bytes),
        }

    def tried(self) -> str:
        """Name of the trainer container of `glovebox try`."""
        return ContainerNames(self.bench.home.resolve(), "try").name(Domain.TRAINER)

    def wait_for(self, name: str, process: subprocess.Popen[str]) -> float:
        """Until the container runs; when it was seen to, in CLOCK_MONOTONIC seconds."""
        give_up = time.monotonic() + 60
        while process.poll() is None and time.monotonic() < give_up:
            if self.bench.sandbox.alive(name):
                return time.monotonic()
            time.sleep(0.02)
        raise RuntimeError(f"no container came up: {process.communicate()}")

    def sweep(self) -> None:
        """Remove what a controller that was killed left in the engine."""
        containers, volumes = self.bench.sandbox.leftovers()
        self.bench.sandbox.remove(containers=containers, volumes=volumes)


@contextmanager
def grounds(folder: Path, count: int, data: Path | None = None) -> Iterator[list[Ground]]:
    """`count` homes with the same (linked) data, if there is any. Raises NotReady without engine or image."""
    config = sealed(
        SandboxConfig(
            workspace_bytes=WORKSPACE_BYTES,
            log_bytes=ENGINE_LOG_BYTES,
            empty_caches=False,
            trainer=SMALL,
        )
    )
    shared: dict[str, Any] = {}
    lock = threading.Lock()
    with ExitStack() as stack:
        made = []
        for number in range(count):
            home = folder / f"ground-{number}"
            (home / "data" / "public").mkdir(parents=True)
            if data is not None:
                _link(data, home / "data")
            sandbox = DockerSandbox(config, home, SystemClock())
            stack.callback(sandbox.close)
            sandbox.describe()
            bench = Bench(
                home.resolve(), sandbox, config, HarnessFiles.materialise(PROJECT / "harness", home)
            )
            made.append(Ground(bench, shared, lock))
            stack.callback(made[-1].sweep)
        yield made


def _link(source: Path, target: Path) -> None:
    for path in (path for path in source.rglob("*") if path.is_file()):
        (target / path.relative_to(source)).parent.mkdir(parents=True, exist_ok=True)
        os.link(path, target / path.relative_to(source))


def processes_of(container: str) -> list[int]:
    """Host processes in the cgroup of a container, by its full id."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if container in (entry / "cgroup").read_text():
                found.append(int(entry.name))
        except OSError:
            continue  # it ended meanwhile
    return found


@functools.cache
def engine_folder() -> Path:
    """Where the engine keeps everything."""
    command = ["docker", "info", "--format", "{{.DockerRootDir}}"]
    return Path(subprocess.run(command, capture_output=True, check=True, text=True).stdout.strip())


def _engine_log(container: str) -> int | None:
    folder = engine_folder() / "containers" / container
    try:
        files = [path for path in folder.rglob("*") if "log" in path.name and path.is_file()]
        return sum(path.stat().st_size for path in files)
    except PermissionError:
        return None


def _seconds(start: str, end: str) -> float:
    """Between two times as the engine writes them."""

    def parse(stamp: str) -> dt.datetime:
        return dt.datetime.fromisoformat(re.sub(r"(\.\d{6})\d*Z$", r"\1+00:00", stamp))

    return (parse(end) - parse(start)).total_seconds()
