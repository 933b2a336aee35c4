"""Where experiments run: for each slot a GPU that torch has calculated on in the image, or CPUs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any

import structlog

from controller.core.containers.config import SealedConfig
from controller.core.errors import GloveboxError, InfrastructureError, NotReady, UserError
from controller.core.hardware import gpu_listing, gpu_probe
from controller.core.hardware.gpu_listing import ListedGpu
from controller.core.hardware.gpu_probe import Gpu
from controller.core.hardware.slots import MOST_SLOTS, SlotConfig, difference
from controller.core.untrusted import clean_line
from controller.sandbox.engine.docker_sandbox import DockerSandbox
from controller.sandbox.engine.failures import EngineFault, to_error
from controller.sandbox.inputs import sealed
from controller.sandbox.runner.client import RunnerSandbox
from controller.settings import PROJECT, Settings
from controller.store import data
from controller.system.clock import SystemClock

log = structlog.stdlib.get_logger(__name__)

_UNLISTED = "the engine does not list the GPUs, so there is one slot; name them in slots"
_PROGRAM = PROJECT / "harness" / "gpu_probe.py"


@dataclass(frozen=True)
class Device:
    """Where the experiments of one slot run."""

    scale: data.Scale
    sandbox: SealedConfig
    gpu: Gpu | None = None
    """None: the CPU."""
    notes: tuple[str, ...] = ()
    """Sentences for people: why it is the CPU, which other GPUs there are."""

    @property
    def name(self) -> str:
        """`cpu`, or the GPU's name as its driver tells it."""
        return self.gpu.name if self.gpu else "cpu"

    def told(self) -> dict[str, Any]:
        """What a runner tells of it; the containers' other settings its callers have themselves."""
        return {
            "scale": self.scale,
            "name": self.name,
            "ids": self.sandbox.gpu,
            "cpus": self.sandbox.cpus,
            "gpu": self.gpu.model_dump() if self.gpu else None,
            "notes": self.notes,
        }

    @classmethod
    def hear(cls, told: Mapping[str, Any], containers: SealedConfig) -> Device:
        """What was told, on containers with our own settings."""
        return cls(
            told["scale"],
            containers.model_copy(update={"gpu": tuple(told["ids"]), "cpus": told["cpus"]}),
            None if told["gpu"] is None else Gpu.model_validate(told["gpu"]),
            tuple(told["notes"]),
        )

    def sentence(self) -> str:
        return "; ".join((self.gpu.sentence() if self.gpu else "cpu", *self.notes))

    def place(self) -> str:
        """Which part of the machine a slot has: `GPU 1, CPUs 0-3`."""
        parts = [f"GPU {' and '.join(self.sandbox.gpu)}"] if self.sandbox.gpu else []
        return ", ".join([*parts, f"CPUs {self.sandbox.cpus}" if self.sandbox.cpus else "all CPUs"])


def sentence(devices: Sequence[Device]) -> str:
    """All slots, for people."""
    if len(devices) == 1:
        return devices[0].sentence()
    places = "; ".join(f"slot {number}: {device.place()}" for number, device in enumerate(devices))
    kind = devices[0].gpu.sentence() if devices[0].gpu else "cpu"
    notes = dict.fromkeys(note for device in devices for note in device.notes)
    return "; ".join((f"{len(devices)} slots ({places}), each: {kind}", *notes))


def resolve_devices(config: Settings) -> list[Device]:
    """Where each slot's experiments run, found out by asking for GPUs, or the runner that has asked for them.

    Raises NotReady if a GPU was demanded and there is none, if there is one that torch cannot use, whatever
    was demanded, if there are fewer CPUs than were named, or if the runner does not answer; UserError if the
    slots have different devices.
    """
    containers = sealed(config.sandbox)
    if config.runner is not None:
        told = RunnerSandbox(config.runner, SystemClock()).devices()
        return [Device.hear(one, containers) for one in told]
    devices = _resolve(config, containers)
    if reason := difference([device.gpu for device in devices]):
        raise UserError(reason)
    return devices


def _resolve(config: Settings, containers: SealedConfig) -> list[Device]:
    slots = config.slots
    if isinstance(slots, tuple) and slots:
        return _named(config, containers, slots)
    if config.device == "cpu":
        return [Device("cpu", containers.model_copy(update={"gpu": ()}))]
    listed = _list(config, containers)
    ids = gpu_listing.every(listed) if slots == "auto" else ()
    if len(ids) > MOST_SLOTS:
        raise UserError(f"There are {len(ids)} GPUs and slices, but at most {MOST_SLOTS} slots; name some.")
    each = [(one,) for one in ids] if len(ids) > 1 else [containers.gpu]
    found = _with_gpus(config, [containers.model_copy(update={"gpu": wanted}) for wanted in each], listed)
    if slots == "auto" and not listed and found[0].gpu is not None:
        return [replace(found[0], notes=(*found[0].notes, _UNLISTED))]
    return found


def _named(config: Settings, containers: SealedConfig, slots: tuple[SlotConfig, ...]) -> list[Device]:
    ids = [one for slot in slots for one in slot.gpu]
    listed = _list(config, containers) if ids else ()
    if (twice := gpu_listing.named_twice(listed, ids)) is not None:
        raise UserError(f"The slots name one GPU twice, the second time as {clean_line(twice)}.")
    with closing(_engine(config, containers)) as sandbox:
        for number, slot in enumerate(slots):
            if slot.cpus:
                sandbox.require_cpus(number, slot.cpus)
    ours = [containers.model_copy(update={"gpu": slot.gpu, "cpus": slot.cpus}) for slot in slots]
    if not ids:
        notes = ("the slots name no GPU",) if config.device == "auto" else ()
        return [Device("cpu", one, notes=notes) for one in ours]
    return _with_gpus(config, ours, listed)


def _with_gpus(config: Settings, slots: Sequence[SealedConfig], listed: Sequence[ListedGpu]) -> list[Device]:
    """All at a time: each takes as long as importing torch."""
    with ThreadPoolExecutor(len(slots)) as pool:
        found = [pool.submit(_with_gpu, config, one, listed, number) for number, one in enumerate(slots)]
        return [device.result() for device in found]


def _with_gpu(config: Settings, containers: SealedConfig, listed: Sequence[ListedGpu], slot: int) -> Device:
    choice = gpu_listing.choose(listed, containers.gpu)
    wanted = containers.model_copy(update={"gpu": choice.ids})
    try:
        return Device("gpu", wanted, _probe(config, wanted, slot), choice.notes)
    except _NoGpu as error:
        if config.device == "auto" and not listed and config.slots in ((), "auto"):
            log.info("no_gpu", reason=str(error))
            return Device("cpu", containers.model_copy(update={"gpu": ()}), notes=(f"no GPU: {error}",))
        raise NotReady(str(error)) from error


class _NoGpu(Exception):
    """The engine hands out none, or nvidia-smi shows none."""


def _list(config: Settings, containers: SealedConfig) -> tuple[ListedGpu, ...]:
    """Nothing if the engine cannot hand out all GPUs at once; asking for one says why, or works."""
    with closing(_engine(config, containers)) as sandbox:
        try:
            return gpu_listing.parse(sandbox.gpus())
        except (InfrastructureError, NotReady) as error:
            log.debug("no_list_of_gpus", reason=str(error))
            return ()


def _engine(config: Settings, containers: SealedConfig) -> DockerSandbox:
    """For what runs our code only, and beside an effort perhaps: it leaves the kernel's caches alone."""
    alone = containers.model_copy(update={"empty_caches": False})
    return DockerSandbox(alone, config.home, SystemClock())


def _probe(config: Settings, containers: SealedConfig, slot: int) -> Gpu:
    """Raises _NoGpu, NotReady, InfrastructureError, UserError."""
    try:
        program = _PROGRAM.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"A file of the harness cannot be read: {error}.") from error
    with closing(_engine(config, containers)) as sandbox:
        try:
            said, status = sandbox.gpu(program, slot)
        except (InfrastructureError, NotReady) as error:
            if sentence := gpu_probe.broken(str(error)):
                raise NotReady(sentence) from error
            raise _NoGpu(_sentence(error)) from error
    gpu = gpu_probe.read(said, status)
    if gpu is None:
        raise _NoGpu(str(to_error(EngineFault.NO_GPU, "", f"nvidia-smi ended with status {status}")))
    return gpu


def _sentence(error: GloveboxError) -> str:
    if isinstance(error, NotReady):
        return str(error)  # says what to do
    return f"A GPU was asked for but the probe for one failed: {error}"
