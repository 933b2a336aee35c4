"""What an attempt needs of this machine, checked to be there: engine or runner, device, image, data, disk."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from controller import __version__
from controller.app.device import Device, resolve_devices
from controller.components import Slot
from controller.core.containers.builders import Files
from controller.core.errors import InfrastructureError, NotReady
from controller.core.values import Provenance
from controller.ports import Clock, Sandbox
from controller.sandbox.engine.docker_sandbox import DockerSandbox
from controller.sandbox.inputs import DataFiles, HarnessFiles, sealed
from controller.sandbox.monitor import CpuCounters, NoiseMonitor
from controller.sandbox.rehearsal import ContainerRehearsal
from controller.sandbox.runner.client import RunnerSandbox
from controller.sandbox.scoring import ContainerJudge
from controller.sandbox.training import ContainerTrainer
from controller.settings import PROJECT, Settings
from controller.store import data
from controller.store.pause import HomeSurroundings
from controller.system.clock import SystemClock

_SEVERAL = 2
"""While it is not known yet how many slots there are."""
_SLOTS_OF_A_REHEARSAL = 4
"""How many slots one rehearsal at a time keeps supplied: each takes some ten seconds, a training minutes."""
RUNNER_FOLDER = "runner"
"""Where a runner keeps its copies of the harness and of each train.py that runs; nobody else writes there."""


@dataclass(frozen=True)
class Machine:
    """Everything that is needed to run one attempt, checked to be there."""

    sandbox: Sandbox
    slots: list[Slot]
    """At least one."""
    rehearsal: ContainerRehearsal
    harness: HarnessFiles
    data_files: DataFiles
    engine_root: Path | None
    """Where the engine keeps its own files, on its machine."""
    provenance: Provenance

    def close_monitors(self) -> None:
        """Idempotent."""
        for slot in self.slots:
            if slot.monitor is not None:
                slot.monitor.close()

    def check_inputs(self) -> None:
        """Raises VerificationFailed if a file that containers mount is not what it was made from."""
        self.harness.verify()
        self.data_files.verify()

    @classmethod
    def assemble(cls, config: Settings) -> Machine:
        """Raises NotReady or UserError with the first thing that is missing, VerificationFailed for data
        that was changed after it was prepared."""
        sandbox_of(config).describe()  # an engine without our image cannot be asked for a GPU either
        devices = resolve_devices(config)
        device = devices[0]
        sandbox = sandbox_of(config, devices)
        engine = sandbox.describe()
        info = data.read(config.home)
        data.require_scale(info, device.scale, config.home)
        require_disk(config)
        harness, files = mounted_files(config)
        data_files = DataFiles(config.home)
        data_files.verify()
        alone = threading.Lock() if len(devices) == 1 else None
        clock = SystemClock()
        common = _Common(sandbox, clock, config, files, CpuCounters(sandbox, clock), alone)
        return cls(
            sandbox=sandbox,
            slots=[common.slot(number, device) for number, device in enumerate(devices)],
            rehearsal=common.rehearsal(device, -(-len(devices) // _SLOTS_OF_A_REHEARSAL)),
            harness=harness,
            data_files=data_files,
            engine_root=Path(engine["root"]) if engine["root"] else None,
            provenance=_provenance(engine, info, harness, device),
        )


@dataclass(frozen=True)
class _Common:
    """What the adapters of all slots have in common."""

    sandbox: Sandbox
    clock: Clock
    config: Settings
    files: Files
    counters: CpuCounters
    alone: threading.Lock | None

    def slot(self, number: int, device: Device) -> Slot:
        config, home = self.config, self.config.home
        monitor = None
        if config.noise.enabled:
            monitor = NoiseMonitor(
                self.sandbox,
                self.clock,
                config=config.noise,
                containers=device.sandbox,
                home=home,
                budget_seconds=config.budget.wall_seconds,
                slot=number,
                counters=self.counters,
            )
        trainer = ContainerTrainer(
            self.sandbox,
            self.clock,
            containers=device.sandbox,
            home=home,
            files=self.files,
            slot=number,
            monitor=monitor,
        )
        judge = ContainerJudge(
            self.sandbox,
            self.clock,
            config=config.judge,
            containers=device.sandbox,
            home=home,
            files=self.files,
            slot=number,
            alone=self.alone,
        )
        return Slot(trainer, judge, monitor)

    def rehearsal(self, device: Device, at_once: int) -> ContainerRehearsal:
        return ContainerRehearsal(
            self.sandbox,
            self.clock,
            config=self.config.rehearsal,
            containers=device.sandbox,
            home=self.config.home,
            files=self.files,
            alone=self.alone,
            at_once=at_once,
        )


def _provenance(
    engine: Mapping[str, str], info: data.DataInfo, harness: HarnessFiles, device: Device
) -> Provenance:
    """Without the hash of program.md, which belongs to the effort."""
    gpu = device.gpu
    return Provenance(
        image=engine["image"],
        data=info.fingerprint,
        prepare=harness.hashes["prepare.py"],
        program="",
        harness=harness.digest,
        scale=device.scale,
        size=info.size,
        device=device.name,
        driver=gpu.driver if gpu else "",
        cuda=gpu.cuda if gpu else "",
        capability=gpu.capability if gpu else "",
        gpu_memory=f"{gpu.total_bytes / 1e9:.1f} GB" if gpu else "",
        engine=engine["engine"],
        runtime=engine["runtime"],
        controller=__version__,
    )


def sandbox_of(config: Settings, devices: Sequence[Device] = ()) -> Sandbox:
    """The runner, if the settings name one, else the engine. Raises NotReady if that cannot be used."""
    if config.runner is not None:
        return RunnerSandbox(config.runner, SystemClock())
    try:
        containers = devices[0].sandbox if devices else sealed(config.sandbox)
        slots = len(devices) or (_SEVERAL if config.slots else 1)
        return DockerSandbox(containers, config.home, SystemClock(), slots)
    except InfrastructureError as error:
        raise NotReady(
            f"The container engine cannot be used; look at it and at DOCKER_HOST: {error}"
        ) from error


def mounted_files(config: Settings) -> tuple[HarnessFiles, Files]:
    """What containers mount and where it lies: copies that we make, or those of the runner.

    Raises UserError, NotReady, InfrastructureError, VerificationFailed.
    """
    source, home = PROJECT / "harness", config.home.resolve()
    if config.runner is None:
        harness = HarnessFiles.materialise(source, home)
        return harness, Files(harness.folder, data.folder(home))
    harness = HarnessFiles.find(source, home / RUNNER_FOLDER)
    return harness, Files(harness.folder, data.folder(home), home / RUNNER_FOLDER / "train")


def require_disk(config: Settings) -> str:
    """Free space of the home. Raises NotReady if it is less than a run needs."""
    folder = existing(config.home)
    if (shortage := HomeSurroundings(folder, config.min_free_bytes).shortage()) is not None:
        raise NotReady(shortage)
    return f"{shutil.disk_usage(folder).free / 1e9:.1f} GB free"


def existing(home: Path) -> Path:
    """The home, or the nearest folder above it that exists."""
    return next(folder for folder in (home, *home.parents) if os.path.exists(folder))
