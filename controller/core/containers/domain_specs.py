"""Trust domain + settings → the exact container: what each domain runs, mounts and may write to.

Pure. The table of all of it is in `domains`; what every container is told, whatever its domain, is in `spec`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from controller.core.containers.config import CACHES_LIMITS, MIB, Limits, SealedConfig
from controller.core.containers.domains import HARNESS, USERS, Domain
from controller.core.containers.names import Place
from controller.core.containers.orders import Item
from controller.core.containers.spec import ContainerSpec, Mount
from controller.core.containers.volumes import EXCHANGES, FIRST, Exchange, holder_life
from controller.core.hardware import gpu_listing as gpu_list
from controller.core.hardware import gpu_probe as probe
from controller.core.hardware import nvidia_smi
from controller.core.hardware.gpu_listing import ALL

TELEMETRY_SECONDS = 1
"""Between two looks at a GPU."""

GPU_LISTING_SECONDS = 60.0
"""The longest that listing the GPUs may take."""

CACHES_SECONDS = 60.0
"""The longest that emptying and warming the caches may take."""

# An entry that was used lately outlives the first turn.
_EMPTY = "exec 2>&1; for turn in 1 2 3; do echo 3 > /drop_caches || exit 1; done"
_WARM = (
    r"find /usr/lib/python3* /opt/venv/lib/python3*/site-packages/torch \( -name '*.pyc' -o -name '*.so*' \) "
    "-type f -print0 2> /dev/null | sort -z | xargs -0 -P 4 -n 256 cat > /dev/null"
)

_WITH_GPU = (Domain.TRAINER, Domain.WORKER, Domain.TELEMETRY)

PREPARE_HOME, PREPARE_CORPUS, PREPARE_LINKS = "/home/glovebox", "/corpus", "/links"
"""Where the preparer finds the home, a corpus, and what the links of a corpus lead to."""


def holder(config: SealedConfig, place: Place, limit_seconds: float) -> ContainerSpec:
    """Keeps the workspace mounted from before T's start until after W's end."""
    life = holder_life(config, limit_seconds)
    mounts = (Mount(place.name(Item.WORKSPACE), "/work", volume=True),)
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
        Mount(place.name(Item.WORKSPACE), "/work", read_only=False, volume=True),
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
    waits: bool = False,
) -> ContainerSpec:
    """W: the agent's model code in a fresh process. Of `data`, the public half, it sees the tokenizer."""
    mounts = (
        *_harness(Domain.WORKER, harness),
        Mount(str(train), "/glovebox/train.py"),
        *_tokenizer(data),
        Mount(place.name(Item.WORKSPACE), "/out", volume=True),
        Mount(place.name(names.requests), "/requests", volume=True),
        Mount(place.name(names.replies), "/replies", read_only=False, volume=True),
    )
    life = limit_seconds + config.kill_grace_seconds
    command = _python(life, "/glovebox/worker.py", argument, waits)
    environment = {"GLOVEBOX_DATA": "/data", "GLOVEBOX_OUT": "/tmp"}
    spec = _spec(config, place, Domain.WORKER, command, life, mounts, environment, streamed=True)
    return replace(spec, name=place.name(names.worker), order=place.order(names.worker), waits=waits)


def judge(
    config: SealedConfig,
    place: Place,
    *,
    argument: Mapping[str, Any],
    limit_seconds: float,
    harness: Path,
    data: Path,
    waits: bool = False,
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
    command = _python(life, "/glovebox/judge.py", argument, waits)
    return replace(_spec(config, place, Domain.JUDGE, command, life, mounts), waits=waits)


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
        *_tokenizer(data),
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
    corpus: tuple[Mount, ...] = (),
    network: bool = False,
    ca_bundle: Path | None = None,
    proxies: Mapping[str, str] | None = None,
) -> ContainerSpec:
    """Prepares the data, once. Our code, as the home's `owner` (uid, gid); sees the home at /home/glovebox.

    `arguments` go to prepare.py as they are; `corpus` is what it is to read. `ca_bundle` and `proxies`
    (environment variables) are for a network behind a private CA; they need `network`.
    """
    mounts = [
        Mount(str(place.home), PREPARE_HOME, read_only=False),
        *_harness(Domain.PREPARE, harness),
        *corpus,
    ]
    environment = dict(proxies or {}) if network else {}
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


def caches(config: SealedConfig, place: Place, *, warm: bool = True) -> ContainerSpec:
    """Empties the kernel's caches. Our code, as root without a capability: one file is all it may write to.

    `warm`: it then reads what Python and torch are imported from, always the same files, so
    that an experiment's first seconds are not spent on that.
    """
    command = ("sh", "-c", f"{_EMPTY}; {_WARM}" if warm else _EMPTY)
    mounts = (Mount("/proc/sys/vm/drop_caches", "/drop_caches", read_only=False),)
    return ContainerSpec(
        name=place.name(Domain.CACHES),
        domain=Domain.CACHES,
        image=config.image,
        command=("exec", "--limit", str(CACHES_SECONDS), "--", *command),
        user=f"{USERS[Domain.CACHES]}:{USERS[Domain.CACHES]}",
        limits=CACHES_LIMITS,
        seccomp=config.seccomp,
        life_seconds=CACHES_SECONDS,
        log_bytes=min(MIB, config.log_bytes),
        labels=place.labels(Domain.CACHES),
        mounts=mounts,
    )


def gpu_listing(config: SealedConfig, place: Place) -> ContainerSpec:
    """Lists all GPUs of the machine: nvidia-smi and nothing of an agent's; it can compute on none."""
    every = config.model_copy(update={"gpu": (ALL,)})
    command = ("exec", "--limit", str(GPU_LISTING_SECONDS), "--", *gpu_list.COMMAND)
    spec = _spec(every, place, Domain.TELEMETRY, command, GPU_LISTING_SECONDS, mounts=())
    return replace(spec, gpu_capabilities=("utility",))


def gpu_probe(config: SealedConfig, place: Place, program: str) -> ContainerSpec:
    """Asks, as T would see it, for name and driver of the GPU, then runs harness/gpu_probe.py on it."""
    command = ("exec", "--limit", str(probe.SECONDS), "--", *probe.command(program))
    return _spec(config, place, Domain.TRAINER, command, probe.SECONDS, mounts=())


def _harness(domain: Domain, folder: Path, target: str = "/glovebox") -> list[Mount]:
    return [Mount(str(folder / name), f"{target}/{name}") for name in HARNESS[domain]]


def _tokenizer(data: Path) -> list[Mount]:
    """All that model code may see of the public data while it does not train."""
    return [Mount(str(data / name), f"/data/{name}") for name in ("manifest.json", "tokenizer")]


def _python(life: float, script: str, argument: Mapping[str, Any], waits: bool = False) -> tuple[str, ...]:
    told = ("--waits",) if waits else ()
    return ("exec", "--limit", str(life), *told, "--", "python", script, json.dumps(argument, sort_keys=True))


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
