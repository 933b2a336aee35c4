"""An order and a runner's own settings → the container or volume that was asked for. Pure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from controller.core.containers import builders, volumes
from controller.core.containers.builders import Files
from controller.core.containers.config import SealedConfig
from controller.core.containers.names import REHEARSAL, SLOT, ContainerNames
from controller.core.containers.orders import SEEDED, VOLUMES, Item, Order
from controller.core.containers.spec import ContainerSpec
from controller.core.containers.volumes import EXCHANGES, FIRST, SECOND, VolumeSpec
from controller.core.scoring.config import JudgeConfig


@dataclass(frozen=True)
class Templates:
    """Everything that a runner adds to an order."""

    slots: tuple[SealedConfig, ...]
    """The settings of containers on each slot."""
    home: Path
    """Real path of the home whose containers it starts."""
    files: Files
    judging: JudgeConfig
    budget_seconds: float
    rehearsal_seconds: float

    def volume(self, order: Order) -> VolumeSpec:
        """Raises ValueError with a sentence if the order is not for a volume."""
        names, config = self._names(order), self.slots[order.slot]
        if order.item is Item.WORKSPACE:
            return volumes.workspace(config, names, self.budget_seconds)
        seconds = builders.scoring_seconds(config, self.judging)
        for exchange in EXCHANGES:
            for volume in volumes.exchange_volumes(config, names, exchange, seconds):
                if volume.order == order:
                    return volume
        raise ValueError(f"{order.item} is not a volume")

    def container(self, order: Order, row_tokens: Callable[[], int]) -> ContainerSpec:
        """Raises ValueError with a sentence if the order is not for a container, or lacks something.

        `row_tokens`: tokens in a row of the prepared data, asked for only if they matter.
        """
        names, config, files = self._names(order), self.slots[order.slot], self.files
        train = Path("train.py")  # never mounted: a runner has its own copy
        match order.item:
            case Item.HOLDER:
                return builders.holder(config, names, self.budget_seconds)
            case Item.TRAINER if order.seed is not None:
                budget = self.budget_seconds
                return builders.trainer(
                    config, names, files, train=train, budget_seconds=budget, seed=order.seed
                )
            case Item.WORKER | Item.WORKER_2 if order.seed is not None:
                exchange = FIRST if order.item is Item.WORKER else SECOND
                return builders.worker(
                    config, names, files, self.judging, exchange, train=train, seed=order.seed
                )
            case Item.JUDGE if order.seed is not None:
                return builders.judge(
                    config,
                    names,
                    files,
                    self.judging,
                    seed=order.seed,
                    draw=order.draw,
                    row_tokens=row_tokens(),
                )
            case Item.REHEARSAL:
                limit = self.rehearsal_seconds
                return builders.rehearsal(config, names, files, train=train, limit_seconds=limit)
            case Item.TELEMETRY:
                return builders.telemetry(config, names, self.budget_seconds)
            case _:
                raise ValueError(f"{order.item} is not a container, or its order lacks something")

    def _names(self, order: Order) -> ContainerNames:
        if (order.item is Item.REHEARSAL) != (order.experiment == REHEARSAL):
            raise ValueError("a rehearsal belongs to no experiment, and only a rehearsal is ordered as one")
        if order.slot >= len(self.slots):
            raise ValueError(f"there is no slot {order.slot}")
        if (order.item is Item.TELEMETRY) != (order.experiment == SLOT):
            raise ValueError("a slot is watched across experiments, and only telemetry is ordered for a slot")
        if order.experiment == SLOT and order.attempt != order.slot + 1:
            raise ValueError("each slot has telemetry of its own")
        if order.item is not Item.JUDGE and order.draw is not None:
            raise ValueError("only the judge draws rows")
        if order.item not in SEEDED and order.seed is not None:
            raise ValueError("only trainer, workers and judge have a seed")
        if order.item in VOLUMES and order.experiment == REHEARSAL:
            raise ValueError("a rehearsal has no volume")
        return ContainerNames(self.home, order.experiment, order.attempt, order.slot)
