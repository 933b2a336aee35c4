"""Trust domain + settings → the exact container. The whole security posture is on this page.

Pure: builds values and the JSON the engine's create call takes; `controller.sandbox` sends it, and
`controller.core.attestation` compares what the engine made of it.

Every container has no network (but for the one that downloads a corpus), a read-only root, no
capability, no way to gain one, our seccomp profile, private namespaces, no swap, and its own user. What
differs between trust domains is what they mount and who may write to it:

    domain    user   reads                                    writes
    holder    10001  -                                        workspace (only keeps it mounted)
    trainer   10001  train.py, public data                    workspace
    worker    10002  train.py, tokenizer, workspace,          replies
                     requests
    judge     10003  judge's data, replies of both workers    requests to both
    rehearsal 10004  train.py, tokenizer                      -
    telemetry 10005  the GPU's driver                         -
    prepare   owner  a corpus folder                          the home, to put data/ there

Each also reads the files of the harness that `HARNESS` names for it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field

from controller.core import nvidia_smi
from controller.core.engine_info import NOT_MAPPED, IdMap
from controller.core.orders import Item, Order

MIB = 1024**2
GIB = 1024**3

LABEL_HOME = "glovebox.home"
LABEL_EXPERIMENT = "glovebox.experiment"
LABEL_DOMAIN = "glovebox.domain"
LABEL_DEADLINE = "glovebox.deadline"
"""Unix seconds after which anybody may remove the container or volume. Set when it is created."""

THIRD_HAND_SECONDS = 1.0
"""A container may live this long past the moment at which its own PID 1 should have ended it."""


class Domain(StrEnum):
    """The trust domains. They share nothing but what the table above says."""

    HOLDER = "holder"
    TRAINER = "trainer"
    WORKER = "worker"
    JUDGE = "judge"
    REHEARSAL = "rehearsal"
    TELEMETRY = "telemetry"
    PREPARE = "prepare"


USERS: Mapping[Domain, int] = {
    Domain.HOLDER: 10001,
    Domain.TRAINER: 10001,
    Domain.WORKER: 10002,
    Domain.JUDGE: 10003,
    Domain.REHEARSAL: 10004,
    Domain.TELEMETRY: 10005,
}
"""uid = gid of each domain. `prepare` runs as the owner of the home instead."""


HARNESS: Mapping[Domain, tuple[str, ...]] = {
    Domain.TRAINER: ("prepare.py",),
    Domain.WORKER: ("exchange.py", "prepare.py", "worker.py"),
    Domain.JUDGE: ("exchange.py", "judge.py", "plan.py", "prepare.py", "probes.py"),
    Domain.REHEARSAL: ("exchange.py", "prepare.py", "rehearse.py", "worker.py"),
    Domain.PREPARE: ("corpus.py", "dataset.py", "download.py", "prepare.py"),
}
"""The files of the harness that each domain is given, read-only."""


class Limits(BaseModel):
    """What one container may use. Sizes in bytes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    memory: int = Field(default=16 * GIB, gt=0)
    """Memory, its tmpfs mounts included. There is no swap on top."""
    cpus: float | None = Field(default=None, gt=0)
    """Number of CPUs; null means all."""
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


class SandboxConfig(BaseModel):
    """Settings of every container. The defaults fit a machine with 16 GiB or more."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    image: str = "glovebox-sandbox:latest"
    """Image of every domain; made by `make image`."""
    runtime: str = "runc"
    """OCI runtime known to the engine, `runsc` for instance."""
    gpu: tuple[str, ...] = ()
    """Ids of the GPUs T and W may use; none means CPU."""
    gpu_access: Literal["cdi", "device-request", "runtime"] = "device-request"
    """How a GPU gets into a container: a CDI name, the engine's device request, or `runtime: nvidia`."""
    workspace_bytes: int = Field(default=4 * GIB, gt=0)
    """Everything a run may leave behind: its checkpoint and whatever else it writes to /work."""
    workspace_inodes: int = Field(default=16384, gt=0)
    """Files and folders in the workspace."""
    exchange_bytes: int = Field(default=2 * GIB, gt=0)
    """Each of the two volumes between a worker and the judge."""
    log_bytes: int = Field(default=64 * MIB, gt=0)
    """What the engine keeps of a container's output; the oldest goes first."""
    kill_grace_seconds: float = Field(default=2.0, ge=0)
    """PID 1 of a container ends it this long after the controller should have."""
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
    """The seccomp profile of every container, as the JSON that the engine takes."""


@dataclass(frozen=True)
class Mount:
    """A host path or one of our volumes, at a place in the container."""

    source: str
    target: str
    read_only: bool = True
    volume: bool = False


@dataclass(frozen=True)
class VolumeSpec:
    """A tmpfs volume, gone when the last container that mounts it ends."""

    name: str
    size_bytes: int
    inodes: int
    owner: int
    life_seconds: float
    labels: Mapping[str, str]
    order: Order | None = None
    """How a runner is asked for it."""

    def digest(self) -> str:
        """sha256 over everything the engine is told, ids and the label that tells its deadline apart."""
        return _sha256([self.to_engine(), self.life_seconds])

    def to_engine(self, ids: IdMap = NOT_MAPPED) -> dict[str, Any]:
        """Body of the engine's create call for volumes. `ids`: the host mounts them, with its own ids."""
        options = (
            f"size={self.size_bytes},nr_inodes={self.inodes},mode=0755,"
            f"uid={ids.uid + self.owner},gid={ids.gid + self.owner},nosuid,nodev,noexec"
        )
        return {
            "Name": self.name,
            "Driver": "local",
            "DriverOpts": {"type": "tmpfs", "device": "tmpfs", "o": options},
            "Labels": dict(self.labels),
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
        return _sha256(self.to_engine())

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
            # On an engine that maps user ids, nobody in a container is the owner of the home on the host. The
            # preparer has to be, to write there; it runs our code only.
            "UsernsMode": "host" if self.domain is Domain.PREPARE else "",
            "Mounts": [_engine_mount(mount) for mount in self.mounts],
        }


def _sha256(told: Any) -> str:
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


_BACKGROUND_CPU_SHARES = 256
"""A quarter of the usual. With the least, a rehearsal would not end beside a training on all CPUs."""

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
}


def _engine_mount(mount: Mount) -> dict[str, Any]:
    body: dict[str, Any] = {"Source": mount.source, "Target": mount.target, "ReadOnly": mount.read_only}
    if mount.volume:
        # Without NoCopy the engine would fill an empty volume from the image.
        return {"Type": "volume", **body, "VolumeOptions": {"NoCopy": True}}
    return {"Type": "bind", **body, "BindOptions": {"Propagation": "rprivate"}}


@dataclass(frozen=True)
class Place:
    """Which experiment of which home a container belongs to. Gives names and labels."""

    home: Path
    """The home's real path."""
    experiment: str
    """Its number, or `prepare`, or `doctor`."""
    attempt: int = 1

    @property
    def home_id(self) -> str:
        return hashlib.sha256(str(self.home).encode()).hexdigest()[:16]

    @property
    def prefix(self) -> str:
        """What every name of this home begins with."""
        return f"glovebox-{self.home_id[:8]}-"

    @property
    def experiment_prefix(self) -> str:
        """What every name of this experiment begins with, whichever attempt."""
        return f"{self.prefix}{self.experiment}-"

    def name(self, what: str) -> str:
        """Name of a container or volume of this attempt."""
        return f"{self.experiment_prefix}{self.attempt}-{what}"

    def order(self, item: Item, seed: int | None = None) -> Order:
        """How a runner is asked for a container or volume of this attempt. It does the checking."""
        return Order.model_construct(experiment=self.experiment, attempt=self.attempt, item=item, seed=seed)

    def labels(self, domain: Domain) -> dict[str, str]:
        return {LABEL_HOME: self.home_id, LABEL_EXPERIMENT: self.experiment, LABEL_DOMAIN: domain.value}


WORKSPACE = Item.WORKSPACE
"""The volume that T leaves its checkpoint in."""


class Exchange(NamedTuple):
    """A worker and the two volumes between it and the judge, by the names they have within an attempt.

    The workers of one attempt share nothing that either could write to: the second one must not be told
    what the first one answered, and the first one has ended before the second one starts.
    """

    worker: Item
    requests: Item
    replies: Item


FIRST = Exchange(Item.WORKER, Item.REQUESTS, Item.REPLIES)
"""Answers everything that is scored."""
SECOND = Exchange(Item.WORKER_2, Item.REQUESTS_2, Item.REPLIES_2)
"""Confirms a score that would be kept."""
EXCHANGES = (FIRST, SECOND)


def workspace(config: SandboxConfig, place: Place, limit_seconds: float) -> VolumeSpec:
    """T's only writable place besides /tmp; W reads the checkpoint from it."""
    return VolumeSpec(
        name=place.name(WORKSPACE),
        size_bytes=config.workspace_bytes,
        inodes=config.workspace_inodes,
        owner=USERS[Domain.TRAINER],
        life_seconds=_holder_life(config, limit_seconds),
        labels=place.labels(Domain.HOLDER),
        order=place.order(Item.WORKSPACE),
    )


def exchange(
    config: SandboxConfig, place: Place, names: Exchange, limit_seconds: float
) -> tuple[VolumeSpec, VolumeSpec]:
    """Both directions between a worker and the judge: what one writes, the other can only read."""

    def direction(name: Item, writer: Domain) -> VolumeSpec:
        return VolumeSpec(
            name=place.name(name),
            size_bytes=config.exchange_bytes,
            inodes=4096,
            owner=USERS[writer],
            life_seconds=limit_seconds + config.kill_grace_seconds,
            labels=place.labels(writer),
            order=place.order(name),
        )

    return direction(names.requests, Domain.JUDGE), direction(names.replies, Domain.WORKER)


def holder(config: SealedConfig, place: Place, limit_seconds: float) -> ContainerSpec:
    """Keeps the workspace mounted from before T's start until after W's end."""
    life = _holder_life(config, limit_seconds)
    mounts = (Mount(place.name(WORKSPACE), "/work", volume=True),)
    spec = _spec(config, place, Domain.HOLDER, ("hold", "--limit", str(life)), life, mounts)
    return replace(spec, order=place.order(Item.HOLDER))


def trainer(
    config: SealedConfig,
    place: Place,
    *,
    budget_seconds: float,
    train: Path,
    harness: Path,
    data: Path,
) -> ContainerSpec:
    """T: runs the proposal. `train`, `harness` and `data` are host paths; `data` is the public half."""
    life = budget_seconds + config.kill_grace_seconds
    mounts = (
        Mount(place.name(WORKSPACE), "/work", read_only=False, volume=True),
        Mount(str(train), "/glovebox/train.py"),
        Mount(str(data), "/data"),
        *_harness(Domain.TRAINER, harness, "/work"),
    )
    environment = {
        "GLOVEBOX_DATA": "/data",
        "GLOVEBOX_BUDGET_SECONDS": str(budget_seconds),
        "GLOVEBOX_OUT": "/work",
    }
    command = ("train", "--limit", str(life))
    spec = _spec(config, place, Domain.TRAINER, command, life, mounts, environment, "/work", streamed=True)
    return replace(spec, order=place.order(Item.TRAINER))


def worker(
    config: SealedConfig,
    place: Place,
    *,
    argument: Mapping[str, Any],
    limit_seconds: float,
    train: Path,
    harness: Path,
    data: Path,
    names: Exchange = FIRST,
) -> ContainerSpec:
    """W: the agent's model code in a fresh process. Of `data`, the public half, it sees the tokenizer."""
    mounts = (
        *_harness(Domain.WORKER, harness),
        Mount(str(train), "/glovebox/train.py"),
        Mount(str(data / "manifest.json"), "/data/manifest.json"),
        Mount(str(data / "tokenizer"), "/data/tokenizer"),
        Mount(place.name(WORKSPACE), "/out", volume=True),
        Mount(place.name(names.requests), "/requests", volume=True),
        Mount(place.name(names.replies), "/replies", read_only=False, volume=True),
    )
    life = limit_seconds + config.kill_grace_seconds
    command = _python(life, "/glovebox/worker.py", argument)
    environment = {"GLOVEBOX_DATA": "/data", "GLOVEBOX_OUT": "/tmp"}
    spec = _spec(config, place, Domain.WORKER, command, life, mounts, environment, streamed=True)
    return replace(spec, name=place.name(names.worker), order=place.order(names.worker))


def judge(
    config: SealedConfig,
    place: Place,
    *,
    argument: Mapping[str, Any],
    limit_seconds: float,
    harness: Path,
    data: Path,
) -> ContainerSpec:
    """J: our code only. `data` is the judge's half. It never gets a GPU."""
    mounts = (
        *_harness(Domain.JUDGE, harness),
        Mount(str(data), "/judge"),
        *(
            Mount(place.name(names.requests), f"/{names.requests}", read_only=False, volume=True)
            for names in EXCHANGES
        ),
        *(Mount(place.name(names.replies), f"/{names.replies}", volume=True) for names in EXCHANGES),
    )
    life = limit_seconds + config.kill_grace_seconds
    return _spec(config, place, Domain.JUDGE, _python(life, "/glovebox/judge.py", argument), life, mounts)


REHEARSAL_PLACE = "rehearsal"
"""What stands for the experiment in names and labels of a rehearsal: the text is none yet."""


SLOT_PLACE = "slot"
"""The same for a look at a GPU while no experiment runs."""


def rehearsal(
    config: SealedConfig,
    place: Place,
    *,
    argument: Mapping[str, Any],
    limit_seconds: float,
    train: Path,
    harness: Path,
    data: Path,
) -> ContainerSpec:
    """One step on a text that may become an experiment. Of `data`, the public half, it sees the tokenizer.

    It runs beside an experiment and must not be felt there: no GPU, one CPU at a low weight.
    """
    mounts = (
        *_harness(Domain.REHEARSAL, harness),
        Mount(str(train), "/glovebox/train.py"),
        Mount(str(data / "manifest.json"), "/data/manifest.json"),
        Mount(str(data / "tokenizer"), "/data/tokenizer"),
    )
    life = limit_seconds + config.kill_grace_seconds
    command = _python(life, "/glovebox/rehearse.py", argument)
    environment = {"GLOVEBOX_DATA": "/data", "GLOVEBOX_OUT": "/tmp"}
    spec = _spec(config, place, Domain.REHEARSAL, command, life, mounts, environment)
    return replace(spec, background=True, log_bytes=min(MIB, config.log_bytes))


def telemetry(config: SealedConfig, place: Place, limit_seconds: float) -> ContainerSpec:
    """Asks the driver about the GPU, again and again, beside T. It can compute nothing on it."""
    life = limit_seconds + config.kill_grace_seconds
    command = ("exec", "--limit", str(life), "--", *nvidia_smi.command(TELEMETRY_SECONDS))
    spec = _spec(config, place, Domain.TELEMETRY, command, life, mounts=())
    return replace(
        spec,
        gpu_capabilities=("utility",),
        log_bytes=min(MIB, config.log_bytes),
        streamed=True,
        order=place.order(Item.TELEMETRY),
    )


def preparer(
    config: SealedConfig,
    place: Place,
    *,
    arguments: tuple[str, ...],
    limit_seconds: float,
    owner: tuple[int, int],
    harness: Path,
    corpus: Path | None = None,
    network: bool = False,
    ca_bundle: Path | None = None,
    proxies: Mapping[str, str] | None = None,
) -> ContainerSpec:
    """Prepares the data, once. Our code, as the home's `owner` (uid, gid); sees the home at /home/glovebox.

    `arguments` go to prepare.py as they are; a `corpus` folder is at /corpus. `ca_bundle` and `proxies`
    (environment variables) are for a network behind a private CA; they need `network`.
    """
    mounts = [
        Mount(str(place.home), PREPARE_HOME, read_only=False),
        *_harness(Domain.PREPARE, harness),
    ]
    environment = dict(proxies or {}) if network else {}
    if corpus is not None:
        mounts.append(Mount(str(corpus), PREPARE_CORPUS))
    if network and ca_bundle is not None:
        mounts.append(Mount(str(ca_bundle), "/glovebox/ca.pem"))
        environment |= {"SSL_CERT_FILE": "/glovebox/ca.pem", "REQUESTS_CA_BUNDLE": "/glovebox/ca.pem"}
    return ContainerSpec(
        name=place.name(Domain.PREPARE),
        domain=Domain.PREPARE,
        image=config.image,
        command=("exec", "--limit", str(limit_seconds), "--", "python", "/glovebox/prepare.py", *arguments),
        user=f"{owner[0]}:{owner[1]}",
        limits=config.prepare,
        seccomp=config.seccomp,
        life_seconds=limit_seconds,
        log_bytes=config.log_bytes,
        labels=place.labels(Domain.PREPARE),
        runtime=config.runtime,
        network=network,
        environment=environment,
        mounts=tuple(mounts),
    )


def gpu_probe(config: SealedConfig, place: Place) -> ContainerSpec:
    """Asks, as T would see it, for the name and driver version of the GPU."""
    query = ("nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader")
    life = 60.0
    command = ("exec", "--limit", str(life), "--", *query)
    return _spec(config, place, Domain.TRAINER, command, life, mounts=())


TELEMETRY_SECONDS = 1
"""Between two looks at a GPU."""

_WITH_GPU = (Domain.TRAINER, Domain.WORKER, Domain.TELEMETRY)

PREPARE_HOME, PREPARE_CORPUS = "/home/glovebox", "/corpus"
"""Where the preparer finds the home and a corpus folder."""


def _harness(domain: Domain, folder: Path, target: str = "/glovebox") -> list[Mount]:
    return [Mount(str(folder / name), f"{target}/{name}") for name in HARNESS[domain]]


def _holder_life(config: SandboxConfig, limit_seconds: float) -> float:
    return limit_seconds + config.kill_grace_seconds + config.workspace_keep_seconds


def _python(life: float, script: str, argument: Mapping[str, Any]) -> tuple[str, ...]:
    return ("exec", "--limit", str(life), "--", "python", script, json.dumps(argument, sort_keys=True))


def _spec(
    config: SealedConfig,
    place: Place,
    domain: Domain,
    command: tuple[str, ...],
    life: float,
    mounts: tuple[Mount, ...],
    environment: Mapping[str, str] | None = None,
    working_dir: str = "/tmp",
    streamed: bool = False,
) -> ContainerSpec:
    limits: Limits = getattr(config, domain.value)
    return ContainerSpec(
        name=place.name(domain),
        domain=domain,
        image=config.image,
        command=command,
        user=f"{USERS[domain]}:{USERS[domain]}",
        limits=limits,
        seccomp=config.seccomp,
        life_seconds=life,
        log_bytes=config.log_bytes,
        labels=place.labels(domain),
        runtime=config.runtime,
        gpu=config.gpu if domain in _WITH_GPU else (),
        gpu_access=config.gpu_access,
        streamed=streamed,
        working_dir=working_dir,
        environment=environment or {},
        mounts=mounts,
    )
