"""One container as the engine is told to create it, with the security settings that all containers share.

Pure: builds values and the JSON of the engine's create call. `sandbox/engine/docker_sandbox.py` sends it, and
`sandbox/engine/attestation.py` compares it with the container that the engine created.

Every container has no network (except the one that downloads a corpus), a read-only root, no capability and
no way to gain one, our seccomp profile, private namespaces, no swap, and a user of its own. The trust domains
differ in what they mount and may write to: `domains` has the table, `builders` and `service_builders` the
containers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from controller.core import canonical
from controller.core.containers.config import Limits
from controller.core.containers.domains import Domain
from controller.core.containers.limits import usable_cpus
from controller.core.containers.orders import Order


@dataclass(frozen=True)
class Mount:
    """A host path or one of our volumes, mounted at a path in the container."""

    source: str
    target: str
    read_only: bool = True
    volume: bool = False


_BACKGROUND_CPU_SHARES = 256
"""A quarter of the default. With the minimum, a rehearsal would not end while a training uses all CPUs."""

MASKED = (
    # the engine's own list
    *("/proc/asound", "/proc/acpi", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list"),
    *("/proc/timer_stats", "/proc/sched_debug", "/proc/scsi", "/sys/firmware"),
    "/sys/devices/virtual/powercap",
    # counters of the whole machine, through which one container could send something to another
    *("/proc/buddyinfo", "/proc/cgroups", "/proc/diskstats", "/proc/interrupts", "/proc/locks"),
    *("/proc/pagetypeinfo", "/proc/partitions", "/proc/pressure", "/proc/schedstat", "/proc/slabinfo"),
    *("/proc/softirqs", "/proc/sys/fs", "/proc/vmstat", "/proc/zoneinfo", "/proc/fs", "/proc/irq"),
    *("/sys/fs/btrfs", "/sys/fs/ext4", "/sys/fs/xfs", "/sys/kernel/irq"),
)
"""Parts of /proc and /sys that are hidden from every container. Training needs none of them."""
_READ_ONLY = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")
"""The engine's own list, which it drops if masks are given."""

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
    """Complete description of one container."""

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
    cpus: str = ""
    """The CPUs that it may run on, like `0-3,8`; empty: all."""
    gpu_capabilities: tuple[str, ...] = ("compute", "utility")
    """Which parts of the driver's user side are mounted with a GPU. By CDI name, all of them are."""
    network: bool = False
    streamed: bool = False
    """No output may be lost, however fast it prints; it has to be followed."""
    waits: bool = False
    """It reads nothing of an experiment before the signal to begin, see `ports.Sandbox.begin`."""
    background: bool = False
    """It gets little CPU time while others use all CPUs, so that it hardly slows down a training."""
    working_dir: str = "/tmp"
    environment: Mapping[str, str] = field(default_factory=dict)
    mounts: tuple[Mount, ...] = ()
    order: Order | None = None
    """How a runner is asked for it; None: a runner does not start it. The engine is not told."""
    train: Path | None = None
    """The train.py whose text is sent to a runner, with the request to start this container."""

    def to_engine(self) -> dict[str, Any]:
        """Body of the engine's create call for containers, without the deadline label."""
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
            # Waiting threads sleep. If they spin, they take the CPU from the threads they wait for.
            "OMP_WAIT_POLICY": "passive",
            "PYTHONDONTWRITEBYTECODE": "1",
            "PYTHONUNBUFFERED": "1",
            "TORCHINDUCTOR_CACHE_DIR": "/tmp/inductor",
            "TRITON_CACHE_DIR": "/tmp/triton",
            # NVIDIA's images and runtime make every GPU visible unless told otherwise.
            "NVIDIA_VISIBLE_DEVICES": "void",
        }
        if self.limits.cpus is not None or self.cpus:
            # Libraries count the CPUs of the host, not of the cgroup, and would start too many threads.
            environment["OMP_NUM_THREADS"] = str(max(1, int(usable_cpus(self.limits, self.cpus))))
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
            "CpusetCpus": self.cpus,
            "CpuShares": _BACKGROUND_CPU_SHARES if self.background else 0,  # 0: the default
            "PidsLimit": limits.pids,
            "ShmSize": limits.shm_bytes,
            "Tmpfs": {"/tmp": f"rw,exec,nosuid,nodev,mode=1777,size={limits.tmp_bytes}"},
            "Ulimits": [
                {"Name": "core", "Soft": 0, "Hard": 0},
                {"Name": "fsize", "Soft": limits.file_size_bytes, "Hard": limits.file_size_bytes},
                {"Name": "nofile", "Soft": limits.open_files, "Hard": limits.open_files},
            ],
            # With one file only, following stops at a rotation (moby 39235). Compression slows rotation.
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
            # On an engine that maps user ids, no user in a container is the owner of the home on the host, or
            # root. The preparer has to be the owner, to write there, and the container that empties the
            # kernel's caches has to be root. Both run our code only.
            "UsernsMode": "host" if self.domain in (Domain.PREPARE, Domain.CACHES) else "",
            "Mounts": [_engine_mount(mount) for mount in self.mounts],
        }


def _engine_mount(mount: Mount) -> dict[str, Any]:
    body: dict[str, Any] = {"Source": mount.source, "Target": mount.target, "ReadOnly": mount.read_only}
    if mount.volume:
        # Without NoCopy the engine would fill an empty volume from the image.
        return {"Type": "volume", **body, "VolumeOptions": {"NoCopy": True}}
    return {"Type": "bind", **body, "BindOptions": {"Propagation": "rprivate"}}
