"""The containers of an experiment: what each of them runs, mounts and may write to. Pure.

The controller describes a container with these functions, and so does a runner that is asked for one. With
the same settings both get the same description, to the last byte. `domains` has the table of what each trust
domain may see, `spec` what is the same for all containers, and `service_builders` those that serve no
experiment.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from controller.core.containers.config import MIB, SealedConfig
from controller.core.containers.domains import HARNESS, USERS, Domain
from controller.core.containers.limits import limits
from controller.core.containers.names import ContainerNames
from controller.core.containers.orders import Item
from controller.core.containers.spec import ContainerSpec, Mount
from controller.core.containers.volumes import EXCHANGES, FIRST, SECOND, Exchange, holder_life
from controller.core.decision import Bounds
from controller.core.hardware import nvidia_smi
from controller.core.scoring.config import LEAK_REACH, MISS_PROBABILITY, START_SECONDS, JudgeConfig
from controller.core.values import Draw

TELEMETRY_SECONDS = 1
"""Time between two samples of a GPU."""
TELEMETRY_LIFE_SECONDS = 6 * 3600.0
"""How long one container samples the GPU, in addition to the budget of one training."""

_WITH_GPU = (Domain.TRAINER, Domain.WORKER, Domain.TELEMETRY)
_ON_SLOT = (Domain.HOLDER, Domain.TRAINER, Domain.WORKER, Domain.JUDGE, Domain.TELEMETRY)
"""What runs on the CPUs of its slot; anything else runs wherever a CPU is idle."""


@dataclass(frozen=True)
class Files:
    """Where the files that containers mount lie on the host."""

    harness: Path
    """Folder with the files of the harness."""
    data: Path
    """Folder with the prepared data, the public and the judge's half."""
    sealed: Path | None = None
    """Folder of a runner's own copies of train.py; None: the attempt's own file is mounted."""

    def train(self, names: ContainerNames, given: Path) -> Path:
        """The train.py to mount; `given` is the attempt's own."""
        if self.sealed is None:
            return given
        return self.sealed / f"{names.experiment}-{names.attempt}" / "train.py"


def holder(config: SealedConfig, names: ContainerNames, budget_seconds: float) -> ContainerSpec:
    """Keeps the workspace mounted from before T's start until after W's end."""
    return replace(
        base(config, names, Domain.HOLDER, holder_life(config, budget_seconds), "hold"),
        mounts=(Mount(names.name(Item.WORKSPACE), "/work", volume=True),),
        order=names.order(Item.HOLDER),
    )


def trainer(
    config: SealedConfig,
    names: ContainerNames,
    files: Files,
    *,
    train: Path,
    budget_seconds: float,
    seed: int,
) -> ContainerSpec:
    """T: runs the proposal. `train` is the attempt's train.py, `seed` what it finds as `prepare.SEED`."""
    life = budget_seconds + config.kill_grace_seconds
    return replace(
        base(config, names, Domain.TRAINER, life, "train"),
        streamed=True,
        working_dir="/work",
        environment={
            "GLOVEBOX_DATA": "/data",
            "GLOVEBOX_BUDGET_SECONDS": str(budget_seconds),
            "GLOVEBOX_OUT": "/work",
            "GLOVEBOX_SEED": str(seed),
        },
        mounts=(
            Mount(names.name(Item.WORKSPACE), "/work", read_only=False, volume=True),
            Mount(str(files.train(names, train)), "/glovebox/train.py"),
            Mount(str(files.data / "public"), "/data"),
            *harness_mounts(Domain.TRAINER, files.harness, "/work"),
        ),
        order=names.order(Item.TRAINER, seed),
        train=train,
    )


def worker(
    config: SealedConfig,
    names: ContainerNames,
    files: Files,
    judging: JudgeConfig,
    exchange: Exchange,
    *,
    train: Path,
    seed: int,
) -> ContainerSpec:
    """W: the agent's model code in a fresh process. Of the public data it sees the tokenizer.

    `seed` is that of the training: a model may have parts that are drawn anew instead of saved.
    """
    waits = _waits(config, judging)
    # The second worker may have to wait for everything that the first one does.
    limit = judging.judge_seconds if waits else judging.worker_seconds
    argument: dict[str, Any] = {
        "compact": bool(config.gpu),
        "waits": waits,
        "train": "/glovebox/train.py",
        "checkpoint": "/out/checkpoint.safetensors",
        "requests": "/requests",
        "replies": "/replies",
        "total_seconds": judging.worker_seconds,
        "max_checkpoint_bytes": config.workspace_bytes,
    }
    life = _waiting_seconds(config, judging) + limit + config.kill_grace_seconds
    return replace(
        _script(config, names, Domain.WORKER, life, "worker.py", argument, waits=waits),
        name=names.name(exchange.worker),
        streamed=True,
        environment={"GLOVEBOX_DATA": "/data", "GLOVEBOX_OUT": "/tmp", "GLOVEBOX_SEED": str(seed)},
        mounts=(
            *_model_mounts(Domain.WORKER, files, files.train(names, train)),
            Mount(names.name(Item.WORKSPACE), "/out", volume=True),
            Mount(names.name(exchange.requests), "/requests", volume=True),
            Mount(names.name(exchange.replies), "/replies", read_only=False, volume=True),
        ),
        order=names.order(exchange.worker, seed),
    )


def judge(
    config: SealedConfig,
    names: ContainerNames,
    files: Files,
    judging: JudgeConfig,
    *,
    seed: int,
    draw: Draw | None,
    row_tokens: int,
) -> ContainerSpec:
    """J: our code only, and never a GPU. `row_tokens`: tokens in a row of the prepared data."""
    waits = _waits(config, judging)
    argument: dict[str, Any] = {
        "compact": bool(config.gpu),
        "waits": waits,
        "data": "/judge",
        "requests": f"/{FIRST.requests}",
        "replies": f"/{FIRST.replies}",
        "second_requests": f"/{SECOND.requests}",
        "second_replies": f"/{SECOND.replies}",
        "seed": seed,
        "scoring": draw.scoring if draw else None,
        "confirmation": draw.confirmation if draw else None,
        "batch_rows": max(judging.batch_tokens // row_tokens, 1),
        "leak_reach": LEAK_REACH,
        "miss_probability": MISS_PROBABILITY,
        **judging.model_dump(exclude={"batch_tokens", "work_share", "ahead_seconds", *Bounds._fields}),
    }
    requests = [exchange.requests for exchange in EXCHANGES]
    replies = [exchange.replies for exchange in EXCHANGES]
    life = scoring_seconds(config, judging)
    return replace(
        _script(config, names, Domain.JUDGE, life, "judge.py", argument, waits=waits),
        mounts=(
            *harness_mounts(Domain.JUDGE, files.harness),
            Mount(str(files.data / "judge"), "/judge"),
            *(Mount(names.name(item), f"/{item}", read_only=False, volume=True) for item in requests),
            *(Mount(names.name(item), f"/{item}", volume=True) for item in replies),
        ),
        order=names.order(Item.JUDGE, seed, draw),
    )


def scoring_seconds(config: SealedConfig, judging: JudgeConfig) -> float:
    """How long the judge may live, and the exchange is needed: waiting, scoring and confirmation."""
    return _waiting_seconds(config, judging) + judging.judge_seconds + config.kill_grace_seconds


def _waits(config: SealedConfig, judging: JudgeConfig) -> bool:
    """Whether workers and judge are started before a training ends."""
    return judging.ahead(bool(config.gpu)) > 0


def _waiting_seconds(config: SealedConfig, judging: JudgeConfig) -> float:
    """The longest that they may wait for its end."""
    ahead = judging.ahead(bool(config.gpu))
    return ahead + config.kill_grace_seconds + START_SECONDS if ahead else 0.0


def rehearsal(
    config: SealedConfig, names: ContainerNames, files: Files, *, train: Path, limit_seconds: float
) -> ContainerSpec:
    """One training step of a proposal, at `train`. Of the public data it sees the tokenizer.

    It runs beside an experiment and must not slow it down: no GPU, and one CPU at a low weight.
    """
    argument = {
        "train": "/glovebox/train.py",
        "out": "/tmp",
        "gpu": bool(config.gpu),
        "max_checkpoint_bytes": config.workspace_bytes,
    }
    life = limit_seconds + config.kill_grace_seconds
    return replace(
        _script(config, names, Domain.REHEARSAL, life, "rehearse.py", argument),
        background=True,
        log_bytes=min(MIB, config.log_bytes),
        environment={"GLOVEBOX_DATA": "/data", "GLOVEBOX_OUT": "/tmp"},
        mounts=_model_mounts(Domain.REHEARSAL, files, files.train(names, train)),
        order=names.order(Item.REHEARSAL),
        train=train,
    )


def telemetry(config: SealedConfig, names: ContainerNames, budget_seconds: float) -> ContainerSpec:
    """Samples the GPU's driver all through a session of trainings. It cannot compute on the GPU."""
    life = budget_seconds + TELEMETRY_LIFE_SECONDS + config.kill_grace_seconds
    command = nvidia_smi.command(TELEMETRY_SECONDS)
    return replace(
        base(config, names, Domain.TELEMETRY, life, "exec", "--", *command),
        streamed=True,
        gpu_capabilities=("utility",),
        log_bytes=min(MIB, config.log_bytes),
        order=names.order(Item.TELEMETRY),
    )


def base(
    config: SealedConfig,
    names: ContainerNames,
    domain: Domain,
    life: float,
    verb: str,
    *arguments: str,
    owner: tuple[int, int] | None = None,
) -> ContainerSpec:
    """What every container of a domain has; it mounts nothing yet.

    `verb` and `arguments` go to the image's PID 1, which ends the container after `life` seconds. `owner` is
    the uid and gid to run as; None: those of the domain.
    """
    uid, gid = owner or (USERS[domain], USERS[domain])
    return ContainerSpec(
        name=names.name(domain),
        domain=domain,
        image=config.image,
        command=(verb, "--limit", str(life), *arguments),
        user=f"{uid}:{gid}",
        limits=limits(config, domain),
        seccomp=config.seccomp,
        life_seconds=life,
        log_bytes=config.log_bytes,
        labels=names.labels(domain),
        runtime=config.runtime,
        gpu=config.gpu if domain in _WITH_GPU else (),
        cpus=config.cpus if domain in _ON_SLOT else "",
        gpu_access=config.gpu_access,
    )


def harness_mounts(domain: Domain, folder: Path, target: str = "/glovebox") -> tuple[Mount, ...]:
    """The files of the harness that a domain is given."""
    return tuple(Mount(str(folder / name), f"{target}/{name}") for name in HARNESS[domain])


def _model_mounts(domain: Domain, files: Files, train: Path) -> tuple[Mount, ...]:
    """What the agent's model code sees while it does not train."""
    public = files.data / "public"
    return (
        *harness_mounts(domain, files.harness),
        Mount(str(train), "/glovebox/train.py"),
        *(Mount(str(public / name), f"/data/{name}") for name in ("manifest.json", "tokenizer")),
    )


def _script(
    config: SealedConfig,
    names: ContainerNames,
    domain: Domain,
    life: float,
    script: str,
    argument: Mapping[str, Any],
    waits: bool = False,
) -> ContainerSpec:
    """A container that runs a script of the harness, with one JSON argument."""
    command = ("python", f"/glovebox/{script}", json.dumps(argument, sort_keys=True))
    arguments = ("--waits", "--", *command) if waits else ("--", *command)
    return replace(base(config, names, domain, life, "exec", *arguments), waits=waits)
