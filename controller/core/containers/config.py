"""Settings of the containers."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

MIB = 1024**2
GIB = 1024**3


class Limits(BaseModel):
    """What one container may use. Sizes in bytes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    memory: int = Field(default=16 * GIB, gt=0)
    """Memory, including the container's tmpfs mounts. There is no swap."""
    cpus: float | None = Field(default=None, gt=0)
    """Number of CPUs; none means all."""
    pids: int = Field(default=1024, gt=0)
    """Processes and threads together. torch.compile alone starts several hundred on a large machine."""
    tmp_bytes: int = Field(default=4 * GIB, gt=0)
    """Size of /tmp, which is executable: torch keeps its compile cache there, for the container's
    lifetime."""
    shm_bytes: int = Field(default=256 * MIB, gt=0)
    """Size of /dev/shm."""
    file_size_bytes: int = Field(default=8 * GIB, gt=0)
    """Largest single file a process may write."""
    open_files: int = Field(default=4096, gt=0)
    """File descriptors per process."""


class SandboxConfig(BaseModel):
    """Settings of the containers. The defaults fit a machine with 16 GiB of memory or more.

    `limits` has what the other domains may use, which is fixed.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    image: str = "glovebox-sandbox:latest"
    """Image of every container; made by `make image`."""
    runtime: str = "runc"
    """OCI runtime known to the engine, for instance `runsc`."""
    gpu: tuple[str, ...] = ()
    """Ids of the GPUs that T and W may use: numbers or UUIDs, also of a slice (MIG). In the user's settings
    none means that one is chosen; in the settings of a container, that it gets no GPU."""
    gpu_access: Literal["cdi", "device-request", "runtime"] = "device-request"
    """How a container is given a GPU: by CDI name, by the engine's device request, or by `runtime:
    nvidia`."""
    workspace_bytes: int = Field(default=4 * GIB, gt=0)
    """Size of /work, which holds everything a run leaves behind, its checkpoint included."""
    exchange_bytes: int = Field(default=4 * GIB, gt=0)
    """Size of each of the two volumes between a worker and the judge."""
    log_bytes: int = Field(default=64 * MIB, gt=0)
    """How much of a container's output the engine keeps; the oldest is dropped first."""
    kill_grace_seconds: float = Field(default=2.0, ge=0)
    """How long after the controller should have ended a container its own PID 1 ends it."""
    empty_caches: bool = True
    """Empty the kernel's caches before an experiment's code starts, so that it finds nothing there that
    earlier code left. All programs on the machine then have to read from the disk again."""
    trainer: Limits = Limits()
    worker: Limits = Limits()
    judge_memory: int = Field(default=8 * GIB, gt=0)
    """Memory of the judge. It grows with `judge.batch_tokens` and the size of the vocabulary."""
    prepare_memory: int = Field(default=16 * GIB, gt=0)
    """Memory for preparing the data. It grows with the corpus and the number of `--workers`."""


class SealedConfig(SandboxConfig):
    """The settings together with the seccomp profile, which is not a setting, and the CPUs of the slot."""

    seccomp: str = Field(min_length=1)
    cpus: str = ""
    """The CPUs of the slot, like `0-3,8`; empty: all."""
