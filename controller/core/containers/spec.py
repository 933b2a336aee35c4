"""One container as the engine is told of it. The security posture that all of them share is on this page.

Pure: builds values and the JSON the engine's create call takes; `sandbox/engine/docker_sandbox.py` sends it,
and `sandbox/engine/attestation.py` compares what the engine made of it.

Every container has no network (but for the one that downloads a corpus), a read-only root, no
capability, no way to gain one, our seccomp profile, private namespaces, no swap, and its own user. What
differs between trust domains is what they mount and who may write to it: the table is in
`domains`, the containers made after it are in `domain_specs`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from controller.core import canonical
from controller.core.containers.config import Limits
from controller.core.containers.domains import Domain
from controller.core.containers.orders import Order


@dataclass(frozen=True)
class Mount:
    """A host path or one of our volumes, at a place in the container."""

    source: str
    target: str
    read_only: bool = True
    volume: bool = False


_BACKGROUND_CPU_SHARES = 256
"""A quarter of the usual. With the least, a rehearsal would not end beside a training on all CPUs."""

MASKED = (
    # the engine's own
    *("/proc/asound", "/proc/acpi", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list"),
    *("/proc/timer_stats", "/proc/sched_debug", "/proc/scsi", "/sys/firmware"),
    "/sys/devices/virtual/powercap",
    # counters of the whole machine, through which one container could tell another one something
    *("/proc/buddyinfo", "/proc/cgroups", "/proc/diskstats", "/proc/interrupts", "/proc/locks"),
    *("/proc/pagetypeinfo", "/proc/partitions", "/proc/pressure", "/proc/schedstat", "/proc/slabinfo"),
    *("/proc/softirqs", "/proc/sys/fs", "/proc/vmstat", "/proc/zoneinfo", "/proc/fs", "/proc/irq"),
    *("/sys/fs/btrfs", "/sys/fs/ext4", "/sys/fs/xfs", "/sys/kernel/irq"),
)
"""What no container sees of /proc and /sys. Training needs none of it."""
_READ_ONLY = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")
"""The engine's own, which it leaves out where masks are given."""

_POSTURE: Mapping[str, Any] = {
    "ReadonlyRootfs": True,
    "Privileged": False,
    "CapDrop": ["ALL"],
    "IpcMode": "private",
    "CgroupnsMode": "private",
    "PidMode": "",
    "UTSMode": "",
    "OomKillDisable": False,
    "Init": False,  # the image's entrypoint is PID 1 and reaps
    "AutoRemove": False,
    "PublishAllPorts": False,
    "RestartPolicy": {"Name": "no", "MaximumRetryCount": 0},
    "MaskedPaths": list(MASKED),
    "ReadonlyPaths": list(_READ_ONLY),
}


@dataclass(frozen=True)
class ContainerSpec:
    """One container, completely."""

    name: str
    domain: Domain
    image: str
    command: tuple[str, ...]
    user: str
    limits: Limits
    seccomp: str
    life_seconds: float
    """Seconds after its start at which its own PID 1 ends it."""
    log_bytes: int
    labels: Mapping[str, str]
    runtime: str = "runc"
    gpu: tuple[str, ...] = ()
    gpu_access: str = "device-request"
    gpu_capabilities: tuple[str, ...] = ("compute", "utility")
    """What of the driver's user side comes along with a GPU; by a CDI name, all of it does."""
    network: bool = False
    streamed: bool = False
    """Every byte it prints is wanted, however fast it prints; somebody has to follow it then."""
    waits: bool = False
    """It reads nothing of an experiment before it is given the word, see `ports.Sandbox.begin`."""
    background: bool = False
    """Where the CPUs are all in use it gets little of them, so that a training next to it hardly notices."""
    working_dir: str = "/tmp"
    environment: Mapping[str, str] = field(default_factory=dict)
    mounts: tuple[Mount, ...] = ()
    order: Order | None = None
    """How a runner is asked for it; None: it never is. Not part of what the engine is told."""
    train: Path | None = None
    """Where its train.py is to be read by whoever asks a runner, which is sent the text and not this path."""

    def to_engine(self) -> dict[str, Any]:
        """Body of the engine's create call for containers, without the label that tells its deadline."""
        return {
            "Image": self.image,
            "Cmd": list(self.command),
            "User": self.user,
            "WorkingDir": self.working_dir,
            "Env": sorted(f"{key}={value}" for key, value in self._environment().items()),
            "Labels": dict(self.labels),
            "Tty": False,
            "OpenStdin": False,
            "HostConfig": {
                **_POSTURE,
                "SecurityOpt": ["no-new-privileges", f"seccomp={self.seccomp}"],
                **self._limits(),
                **self._devices(),
                **self._isolation(),
            },
        }

    def digest(self) -> str:
        """sha256 over everything the engine is told, for the journal."""
        return canonical.digest(self.to_engine())

    def _environment(self) -> dict[str, str]:
        environment = {
            "HOME": "/tmp",
            # Threads that wait for each other sleep: spinning, they take the CPU from whoever they wait for.
            "OMP_WAIT_POLICY": "passive",
            "PYTHONDONTWRITEBYTECODE": "1",
            "PYTHONUNBUFFERED": "1",
            "TORCHINDUCTOR_CACHE_DIR": "/tmp/inductor",
            "TRITON_CACHE_DIR": "/tmp/triton",
            # An image or a default runtime of NVIDIA's hands out every GPU unless told otherwise.
            "NVIDIA_VISIBLE_DEVICES": "void",
        }
        if self.limits.cpus is not None:
            # Libraries count the CPUs of the host, not those of the cgroup, and would start too many threads.
            environment["OMP_NUM_THREADS"] = str(max(1, int(self.limits.cpus)))
        if self.gpu and self.gpu_access == "runtime":
            environment["NVIDIA_VISIBLE_DEVICES"] = ",".join(self.gpu)
            environment["NVIDIA_DRIVER_CAPABILITIES"] = ",".join(self.gpu_capabilities)
        elif self.gpu and self.gpu_access == "device-request":
            del environment["NVIDIA_VISIBLE_DEVICES"]  # the engine sets it from the request
        return environment | dict(self.environment)

    def _limits(self) -> dict[str, Any]:
        limits = self.limits
        return {
            "Memory": limits.memory,
            "MemorySwap": limits.memory,  # equal: no swap
            "NanoCpus": int((limits.cpus or 0) * 1e9),  # 0: all
            "CpuShares": _BACKGROUND_CPU_SHARES if self.background else 0,  # 0: like everybody
            "PidsLimit": limits.pids,
            "ShmSize": limits.shm_bytes,
            "Tmpfs": {"/tmp": f"rw,exec,nosuid,nodev,mode=1777,size={limits.tmp_bytes}"},
            "Ulimits": [
                {"Name": "core", "Soft": 0, "Hard": 0},
                {"Name": "fsize", "Soft": limits.file_size_bytes, "Hard": limits.file_size_bytes},
                {"Name": "nofile", "Soft": limits.open_files, "Hard": limits.open_files},
            ],
            # More than one file, or following stops at a rotation (moby 39235). Compression slows rotation.
            "LogConfig": {
                "Type": "local",
                "Config": {
                    "max-size": str(max(self.log_bytes // 4, 1)),
                    "max-file": "4",
                    "compress": "false",
                },
            },
        }

    def _devices(self) -> dict[str, Any]:
        requests: list[dict[str, Any]] = []
        if self.gpu and self.gpu_access == "cdi":
            requests = [{"Driver": "cdi", "DeviceIDs": [f"nvidia.com/gpu={gpu}" for gpu in self.gpu]}]
        elif self.gpu and self.gpu_access == "device-request":
            capabilities = [["gpu", *self.gpu_capabilities]]
            requests = [{"Driver": "nvidia", "DeviceIDs": list(self.gpu), "Capabilities": capabilities}]
        return {"DeviceRequests": requests, "Devices": []}

    def _isolation(self) -> dict[str, Any]:
        through_runtime = bool(self.gpu) and self.gpu_access == "runtime"
        return {
            "Runtime": "nvidia" if through_runtime else self.runtime,
            "NetworkMode": "bridge" if self.network else "none",
            # On an engine that maps user ids, nobody in a container is the owner of the home on the host, or
            # root there. The preparer has to be the one, to write there, and whoever empties the kernel's
            # caches the other; both run our code only.
            "UsernsMode": "host" if self.domain in (Domain.PREPARE, Domain.CACHES) else "",
            "Mounts": [_engine_mount(mount) for mount in self.mounts],
        }


def _engine_mount(mount: Mount) -> dict[str, Any]:
    body: dict[str, Any] = {"Source": mount.source, "Target": mount.target, "ReadOnly": mount.read_only}
    if mount.volume:
        # Without NoCopy the engine would fill an empty volume from the image.
        return {"Type": "volume", **body, "VolumeOptions": {"NoCopy": True}}
    return {"Type": "bind", **body, "BindOptions": {"Propagation": "rprivate"}}
