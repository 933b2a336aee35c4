"""An order and the settings → the exact container or volume. Pure.

Those who run an experiment describe its containers with these functions, and so does a runner that was
asked for one: both get the same description, to the last byte, if and only if they have the same settings.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from controller.core.containers import domain_specs as containers
from controller.core.containers import volumes
from controller.core.containers.config import SealedConfig
from controller.core.containers.names import REHEARSAL_PLACE, SLOT_PLACE, Place
from controller.core.containers.orders import VOLUMES, Item, Order
from controller.core.containers.spec import ContainerSpec
from controller.core.containers.volumes import EXCHANGES, FIRST, SECOND, Exchange, VolumeSpec
from controller.core.decision import Bounds
from controller.core.scoring.config import JudgeConfig
from controller.core.values import Draw

START_SECONDS = 30.0
"""What starting and ending may add to the time that scoring itself is given."""


TELEMETRY_SECONDS = 6 * 3600.0
"""How long a GPU is watched by the same container, besides the budget of a training."""


@dataclass(frozen=True)
class Files:
    """Where on the host lies what containers mount."""

    harness: Path
    """The files of the harness."""
    data: Path
    """The prepared data, public and judge's halves."""
    sealed: Path | None = None
    """A runner's copies of train.py. None: each is mounted from where its attempt has it."""

    def train(self, place: Place, given: Path) -> Path:
        if self.sealed is None:
            return given
        return self.sealed / f"{place.experiment}-{place.attempt}" / "train.py"


def trainer(
    config: SealedConfig, place: Place, files: Files, *, train: Path, budget_seconds: float
) -> ContainerSpec:
    """T. `train` is where its train.py is to be read."""
    spec = containers.trainer(
        config,
        place,
        budget_seconds=budget_seconds,
        train=files.train(place, train),
        harness=files.harness,
        data=files.data / "public",
    )
    return replace(spec, train=train)


def worker(
    config: SealedConfig, place: Place, files: Files, judging: JudgeConfig, names: Exchange, *, train: Path
) -> ContainerSpec:
    """One of the two W."""
    waits = judging.ahead(bool(config.gpu)) > 0
    # The second one may have to wait for all that the first one does.
    life = judge_seconds(judging) if waits else worker_seconds(judging)
    argument: dict[str, Any] = {
        "compact": bool(config.gpu),
        "waits": waits,
        "train": "/glovebox/train.py",
        "checkpoint": "/out/checkpoint.safetensors",
        "requests": "/requests",
        "replies": "/replies",
        "total_seconds": worker_seconds(judging),
        "max_checkpoint_bytes": config.workspace_bytes,
    }
    return containers.worker(
        config,
        place,
        argument=argument,
        limit_seconds=_waiting_seconds(config, judging) + life,
        train=files.train(place, train),
        harness=files.harness,
        data=files.data / "public",
        names=names,
        waits=waits,
    )


def worker_seconds(judging: JudgeConfig) -> float:
    """How long a worker may live once it has begun."""
    return judging.total_seconds + START_SECONDS


def judge_seconds(judging: JudgeConfig) -> float:
    """How long the judge may live once it has begun."""
    return 2 * judging.total_seconds + START_SECONDS


def _waiting_seconds(config: SealedConfig, judging: JudgeConfig) -> float:
    """How long all of them may wait for the end of a training."""
    ahead = judging.ahead(bool(config.gpu))
    return ahead + config.kill_grace_seconds + START_SECONDS if ahead else 0.0


def judge(
    config: SealedConfig,
    place: Place,
    files: Files,
    judging: JudgeConfig,
    *,
    seed: int,
    draw: Draw | None,
    row_tokens: int,
) -> ContainerSpec:
    """J. `row_tokens`: tokens in a row of the prepared data."""
    waits = judging.ahead(bool(config.gpu)) > 0
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
        **judging.model_dump(exclude={"batch_tokens", "work_share", "ahead_seconds", *Bounds._fields}),
    }
    spec = containers.judge(
        config,
        place,
        argument=argument,
        limit_seconds=_waiting_seconds(config, judging) + judge_seconds(judging),
        harness=files.harness,
        data=files.data / "judge",
        waits=waits,
    )
    return replace(spec, order=place.order(Item.JUDGE, seed, draw))


def exchange_seconds(config: SealedConfig, judging: JudgeConfig) -> float:
    """How long the volumes between workers and judge are needed: as long as the judge may live."""
    return _waiting_seconds(config, judging) + judge_seconds(judging) + config.kill_grace_seconds


def rehearsal(
    config: SealedConfig, place: Place, files: Files, *, train: Path, limit_seconds: float
) -> ContainerSpec:
    """One step on a text that may become an experiment; `train` is where that is to be read."""
    argument = {
        "train": "/glovebox/train.py",
        "out": "/tmp",
        "gpu": bool(config.gpu),
        "max_checkpoint_bytes": config.workspace_bytes,
    }
    spec = containers.rehearsal(
        config,
        place,
        argument=argument,
        limit_seconds=limit_seconds,
        train=files.train(place, train),
        harness=files.harness,
        data=files.data / "public",
    )
    return replace(spec, train=train, order=place.order(Item.REHEARSAL))


def telemetry(config: SealedConfig, place: Place, budget_seconds: float) -> ContainerSpec:
    """Asks the driver about the GPU, all through a training and for hours before and after it."""
    return containers.telemetry(config, place, budget_seconds + TELEMETRY_SECONDS)


@dataclass(frozen=True)
class Templates:
    """What a runner adds to an order, all of it from its own settings."""

    containers: SealedConfig
    home: Path
    """Real path of the home whose containers it starts."""
    files: Files
    judging: JudgeConfig
    budget_seconds: float
    rehearsal_seconds: float

    def volume(self, order: Order) -> VolumeSpec:
        """Raises ValueError with a sentence if no volume can be made of the order."""
        place = self._place(order)
        if order.item is Item.WORKSPACE:
            return volumes.workspace(self.containers, place, self.budget_seconds)
        seconds = exchange_seconds(self.containers, self.judging)
        for names in EXCHANGES:
            for volume in volumes.exchange(self.containers, place, names, seconds):
                if volume.order == order:
                    return volume
        raise ValueError(f"{order.item} is no volume")

    def container(self, order: Order, row_tokens: Callable[[], int]) -> ContainerSpec:
        """Raises ValueError with a sentence if no container can be made of the order."""
        place, config = self._place(order), self.containers
        given = Path("train.py")  # never mounted: a runner has its own copy
        match order.item:
            case Item.HOLDER:
                return containers.holder(config, place, self.budget_seconds)
            case Item.TRAINER:
                return trainer(config, place, self.files, train=given, budget_seconds=self.budget_seconds)
            case Item.WORKER | Item.WORKER_2:
                names = FIRST if order.item is Item.WORKER else SECOND
                return worker(config, place, self.files, self.judging, names, train=given)
            case Item.JUDGE if order.seed is not None:
                return judge(
                    config,
                    place,
                    self.files,
                    self.judging,
                    seed=order.seed,
                    draw=order.draw,
                    row_tokens=row_tokens(),
                )
            case Item.REHEARSAL:
                return rehearsal(config, place, self.files, train=given, limit_seconds=self.rehearsal_seconds)
            case Item.TELEMETRY:
                return telemetry(config, place, self.budget_seconds)
            case _:
                raise ValueError(f"{order.item} is no container, or its order lacks something")

    def _place(self, order: Order) -> Place:
        if (order.item is Item.REHEARSAL) != (order.experiment == REHEARSAL_PLACE):
            raise ValueError("a rehearsal is of no experiment, and nothing else is of a rehearsal")
        if (order.item is Item.TELEMETRY) != (order.experiment == SLOT_PLACE):
            raise ValueError("a slot is looked at, all through its experiments, and nothing else is of it")
        if order.item is not Item.JUDGE and (order.seed, order.draw) != (None, None):
            raise ValueError("only the judge has a seed, or draws rows")
        if (order.item in VOLUMES) and order.experiment == REHEARSAL_PLACE:
            raise ValueError("a rehearsal has no volume")
        return Place(self.home, order.experiment, order.attempt)
