"""Settings of every container."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

MIB = 1024**2
GIB = 1024**3


class Limits(BaseModel):
    """What one container may use. Sizes in bytes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    memory: int = Field(default=16 * GIB, gt=0)
    """Memory, its tmpfs mounts included. There is no swap on top."""
    cpus: float | None = Field(default=None, gt=0)
    """Number of CPUs; none means all."""
    pids: int = Field(default=1024, gt=0)
    """Processes and threads together. torch.compile alone wants some hundred on a large machine."""
    tmp_bytes: int = Field(default=4 * GIB, gt=0)
    """/tmp, executable: the compile cache of torch lives there and dies with the container."""
    shm_bytes: int = Field(default=256 * MIB, gt=0)
    """/dev/shm."""
    file_size_bytes: int = Field(default=8 * GIB, gt=0)
    """Largest single file a process may write."""
    open_files: int = Field(default=4096, gt=0)
    """File descriptors per process."""


CACHES_LIMITS = Limits(
    memory=4 * GIB, pids=16, tmp_bytes=MIB, shm_bytes=MIB, file_size_bytes=MIB, open_files=256
)
"""Of the container that empties the kernel's caches. The memory is for pages of the files that it reads:
beyond its limit, those that it read first would be dropped again."""


class SandboxConfig(BaseModel):
    """Settings of every container. The defaults fit a machine with 16 GiB or more."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    image: str = "glovebox-sandbox:latest"
    """Image of every domain; made by `make image`."""
    runtime: str = "runc"
    """OCI runtime known to the engine, `runsc` for instance."""
    gpu: tuple[str, ...] = ()
    """Ids of the GPUs T and W may use: numbers or UUIDs, also of a slice (MIG). Among the settings none means
    that one is chosen, for containers that they get none."""
    gpu_access: Literal["cdi", "device-request", "runtime"] = "device-request"
    """How a GPU gets into a container: a CDI name, the engine's device request, or `runtime: nvidia`."""
    workspace_bytes: int = Field(default=4 * GIB, gt=0)
    """Everything a run may leave behind: its checkpoint and whatever else it writes to /work."""
    workspace_inodes: int = Field(default=16384, gt=0)
    """Files and folders in the workspace."""
    exchange_bytes: int = Field(default=4 * GIB, gt=0)
    """Each of the two volumes between a worker and the judge."""
    log_bytes: int = Field(default=64 * MIB, gt=0)
    """What the engine keeps of a container's output; the oldest goes first."""
    kill_grace_seconds: float = Field(default=2.0, ge=0)
    """PID 1 of a container ends it this long after the controller should have."""
    empty_caches: bool = True
    """Empty the kernel's caches before an experiment's code starts, so that it finds nothing there that
    earlier code left. Everybody on the machine reads from the disk again after that."""
    workspace_keep_seconds: float = Field(default=3600.0, ge=0)
    """How long a workspace outlives the run's limit, for scoring or for a controller that comes back."""
    trainer: Limits = Limits()
    worker: Limits = Limits()
    judge: Limits = Limits(memory=8 * GIB, pids=256, tmp_bytes=GIB, shm_bytes=64 * MIB)
    holder: Limits = Limits(
        memory=64 * MIB, pids=16, tmp_bytes=MIB, shm_bytes=MIB, file_size_bytes=MIB, open_files=64
    )
    rehearsal: Limits = Limits(memory=6 * GIB, cpus=1, pids=256, tmp_bytes=2 * GIB, shm_bytes=64 * MIB)
    telemetry: Limits = Limits(
        memory=256 * MIB, pids=16, tmp_bytes=MIB, shm_bytes=MIB, file_size_bytes=MIB, open_files=256
    )
    prepare: Limits = Limits(file_size_bytes=64 * GIB)


class SealedConfig(SandboxConfig):
    """The settings and what is none: without it no container can be described."""

    seccomp: str = Field(min_length=1)
