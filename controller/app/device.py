"""Where experiments run: a GPU that torch has calculated on in the image, or the CPU."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import structlog

from controller.core.containers.config import SealedConfig
from controller.core.errors import GloveboxError, InfrastructureError, NotReady, UserError
from controller.core.hardware import gpu_listing, gpu_probe
from controller.core.hardware.gpu_listing import ListedGpu
from controller.core.hardware.gpu_probe import Gpu
from controller.sandbox.engine.docker_sandbox import DockerSandbox
from controller.sandbox.engine.failures import EngineFault, to_error
from controller.sandbox.inputs import sealed
from controller.sandbox.runner.client import RunnerSandbox
from controller.settings import PROJECT, Settings
from controller.store import data
from controller.system.clock import SystemClock

log = structlog.stdlib.get_logger(__name__)

_PROGRAM = PROJECT / "harness" / "gpu_probe.py"


@dataclass(frozen=True)
class Device:
    """Where experiments run."""

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
            "gpu": self.gpu.model_dump() if self.gpu else None,
            "notes": self.notes,
        }

    @classmethod
    def hear(cls, told: Mapping[str, Any], containers: SealedConfig) -> Device:
        """What was told, on containers with our own settings."""
        return cls(
            told["scale"],
            containers.model_copy(update={"gpu": tuple(told["ids"])}),
            None if told["gpu"] is None else Gpu.model_validate(told["gpu"]),
            tuple(told["notes"]),
        )

    def sentence(self) -> str:
        return "; ".join((self.gpu.sentence() if self.gpu else "cpu", *self.notes))


def resolve_device(config: Settings) -> Device:
    """Where experiments run, found out by asking for a GPU, or the runner that has asked for one.

    Raises NotReady if a GPU was demanded and there is none, if there is one that torch cannot use, whatever
    was demanded, or if the runner does not answer.
    """
    containers = sealed(config.sandbox)
    if config.runner is not None:
        return Device.hear(RunnerSandbox(config.runner, SystemClock()).device(), containers)
    if config.device == "cpu":
        return Device("cpu", containers.model_copy(update={"gpu": ()}))
    listed = _list(config, containers)
    choice = gpu_listing.choose(listed, containers.gpu)
    wanted = containers.model_copy(update={"gpu": choice.ids})
    try:
        return Device("gpu", wanted, _probe(config, wanted), choice.notes)
    except _NoGpu as error:
        if config.device == "auto" and not listed:
            log.info("no_gpu", reason=str(error))
            return Device("cpu", containers.model_copy(update={"gpu": ()}), notes=(f"no GPU: {error}",))
        raise NotReady(str(error)) from error


class _NoGpu(Exception):
    """The engine hands out none, or nvidia-smi shows none."""


def _list(config: Settings, containers: SealedConfig) -> tuple[ListedGpu, ...]:
    """Nothing if the engine cannot hand out all GPUs at once; asking for one says why, or works."""
    with closing(DockerSandbox(containers, config.home, SystemClock())) as sandbox:
        try:
            return gpu_listing.parse(sandbox.gpus())
        except (InfrastructureError, NotReady) as error:
            log.debug("no_list_of_gpus", reason=str(error))
            return ()


def _probe(config: Settings, containers: SealedConfig) -> Gpu:
    """Raises _NoGpu, NotReady, InfrastructureError, UserError."""
    try:
        program = _PROGRAM.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"A file of the harness cannot be read: {error}.") from error
    with closing(DockerSandbox(containers, config.home, SystemClock())) as sandbox:
        try:
            said, status = sandbox.gpu(program)
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
