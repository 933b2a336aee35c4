"""A home with a harness and a data folder, and adapters on the real engine that clean up after themselves."""

from __future__ import annotations

import io
import itertools
import os
import tarfile
import textwrap
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import docker
import docker.utils
import pytest

from controller.core.containers import builders, volumes
from controller.core.containers.builders import Files
from controller.core.containers.config import MIB, Limits, SandboxConfig, SealedConfig
from controller.core.containers.names import ContainerNames
from controller.core.errors import NotReady
from controller.core.values import RunOutcome
from controller.ports import Attempt, Monitor
from controller.sandbox.engine.docker_sandbox import DockerSandbox
from controller.sandbox.inputs import HarnessFiles, sealed
from controller.sandbox.training import ContainerTrainer
from controller.system.clock import SystemClock

HARNESS = Path(__file__).parents[2] / "harness"

SMALL = Limits(
    memory=256 * MIB,
    pids=64,
    tmp_bytes=32 * MIB,
    shm_bytes=8 * MIB,
    file_size_bytes=24 * MIB,
    open_files=128,
)


@dataclass
class Bench:
    """Everything one test needs to run programs as T."""

    home: Path
    sandbox: DockerSandbox
    config: SealedConfig
    harness: HarnessFiles
    clock: SystemClock = field(default_factory=SystemClock)
    stop: threading.Event = field(default_factory=threading.Event)

    @property
    def files(self) -> Files:
        return Files(self.harness.folder, self.home / "data")

    def trainer(self, log_bytes: int = MIB, monitor: Monitor | None = None) -> ContainerTrainer:
        return ContainerTrainer(
            self.sandbox,
            self.clock,
            containers=self.config,
            home=self.home,
            files=self.files,
            monitor=monitor,
            log_bytes=log_bytes,
        )

    def attempt(self, program: str, budget: float, experiment: str = "0") -> Attempt:
        folder = self.home / "runs" / experiment
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "train.py").write_text(textwrap.dedent(program))
        return Attempt(experiment, 1, folder / "train.py", folder / "run.log", budget)

    def run(self, program: str, budget: float = 30.0) -> RunOutcome:
        """Train `program` and clean up; its log stays in `log_text`."""
        attempt, trainer = self.attempt(program, budget), self.trainer()
        try:
            return trainer.train(attempt, self.stop, lambda elapsed: None)
        finally:
            trainer.discard(attempt)

    def start(self, attempt: Attempt) -> None:
        """What a controller has done that dies right after the start of T."""
        place = ContainerNames(self.home, attempt.experiment, attempt.number)
        self.sandbox.create_volume(volumes.workspace(self.config, place, attempt.budget_seconds))
        self.sandbox.start(builders.holder(self.config, place, attempt.budget_seconds))
        self.sandbox.start(self.trainer().spec(attempt))

    @property
    def log_text(self) -> str:
        return (self.home / "runs" / "0" / "run.log").read_text(errors="replace")


_IMAGES = itertools.count()
"""Several tests may have an image with the same programs at a time."""


def engine() -> docker.APIClient:
    """The engine that the environment names, for what only a test asks of it."""
    return docker.APIClient(**docker.utils.kwargs_from_env())


def require_runtime(name: str) -> None:
    """Skips where the engine does not know the OCI runtime."""
    with closing(engine()) as client:
        if name not in client.info()["Runtimes"]:
            pytest.skip(f"the engine knows no runtime called {name}")


@contextmanager
def image_with(**programs: str) -> Iterator[str]:
    """The sandbox image with other programs (`_` is `-`), on an engine whose `nvidia` runtime is runc.

    Skips where it is another one: a GPU, say.
    """
    tag = f"glovebox-stand-in-{'-'.join(programs)}-{os.getpid()}-{next(_IMAGES)}"
    with closing(engine()) as client:
        if Path(client.info()["Runtimes"].get("nvidia", {}).get("path", "")).name != "runc":
            pytest.skip("the engine's runtime called nvidia is not an alias of runc")
        made = client.create_container("glovebox-sandbox:latest", ["true"])
        for name, text in programs.items():
            client.put_archive(made, "/opt/venv/bin", _archive(name.replace("_", "-"), text))
        client.commit(made, repository=tag)
        client.remove_container(made)
        yield tag
        client.remove_image(tag)


def _archive(name: str, text: str) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        entry = tarfile.TarInfo(name)
        entry.size, entry.mode = len(text), 0o755
        tar.addfile(entry, io.BytesIO(text.encode()))
    return packed.getvalue()


@contextmanager
def open_bench(home: Path, config: SealedConfig) -> Iterator[Bench]:
    """A bench on the sandbox image; removes what its tests leave behind. Skips where there is no engine."""
    try:
        sandbox = DockerSandbox(config, home, SystemClock())
    except NotReady as error:
        pytest.skip(str(error))
    try:
        sandbox.describe()
        (home / "data" / "public").mkdir(parents=True, exist_ok=True)
        yield Bench(home, sandbox, config, HarnessFiles.materialise(HARNESS, home))
        containers, volumes = sandbox.leftovers()
        sandbox.remove(containers=containers, volumes=volumes)
    finally:
        sandbox.close()


@pytest.fixture
def make_bench(tmp_path: Path) -> Iterator[Callable[..., Bench]]:
    """Makes benches; settings of SandboxConfig can be overridden."""
    with ExitStack() as opened:

        def make(**overrides: object) -> Bench:
            small = {
                "workspace_bytes": 16 * MIB,
                "trainer": SMALL,
                "empty_caches": False,
            }
            config = sealed(SandboxConfig.model_validate({**small, **overrides}))
            return opened.enter_context(open_bench(tmp_path, config))

        yield make


@pytest.fixture
def bench(make_bench: Callable[..., Bench]) -> Bench:
    return make_bench()
