"""The volumes of an attempt: the workspace of T, and those between each worker and the judge."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from controller.core import canonical
from controller.core.containers.config import SandboxConfig
from controller.core.containers.domains import USERS, Domain
from controller.core.containers.engine_info import NOT_MAPPED, IdMap
from controller.core.containers.names import ContainerNames
from controller.core.containers.orders import Item, Order

WORKSPACE_INODES = 16384
"""Files and folders in a workspace. A run needs a few; each takes kernel memory beyond the volume's size."""
WORKSPACE_KEEP_SECONDS = 3600.0
"""How long a workspace outlives its run's time limit. Scoring takes minutes; the rest is for a controller
that died and is started again."""
_EXCHANGE_INODES = 4096
"""Both sides write a handful of files, each of them again and again."""


@dataclass(frozen=True)
class VolumeSpec:
    """A tmpfs volume. Its content is gone when the last container that mounts it ends."""

    name: str
    size_bytes: int
    inodes: int
    owner: int
    life_seconds: float
    labels: Mapping[str, str]
    order: Order | None = None
    """How a runner is asked for it."""

    def digest(self) -> str:
        """sha256 over everything the engine is told, except user ids and the deadline label, which depend on
        the engine and the time."""
        return canonical.digest({"engine": self.to_engine(), "life_seconds": self.life_seconds})

    def to_engine(self, ids: IdMap = NOT_MAPPED) -> dict[str, Any]:
        """Body of the engine's create call for volumes. The host mounts them, so the owner is one of its
        ids."""
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


class Exchange(NamedTuple):
    """A worker and the two volumes between it and the judge, by their names within an attempt.

    The two workers of an attempt share nothing that either can write to. The second must not learn what the
    first answered, and the first has ended before the second starts.
    """

    worker: Item
    requests: Item
    replies: Item


FIRST = Exchange(Item.WORKER, Item.REQUESTS, Item.REPLIES)
"""Answers everything that is scored."""
SECOND = Exchange(Item.WORKER_2, Item.REQUESTS_2, Item.REPLIES_2)
"""Confirms a score that would be kept."""
EXCHANGES = (FIRST, SECOND)
WORKERS = tuple(exchange.worker for exchange in EXCHANGES)
EXCHANGE_VOLUMES = tuple(volume for exchange in EXCHANGES for volume in (exchange.requests, exchange.replies))


def workspace(config: SandboxConfig, names: ContainerNames, budget_seconds: float) -> VolumeSpec:
    """The only folder besides /tmp that T can write to. W reads the checkpoint from it."""
    return VolumeSpec(
        name=names.name(Item.WORKSPACE),
        size_bytes=config.workspace_bytes,
        inodes=WORKSPACE_INODES,
        owner=USERS[Domain.TRAINER],
        life_seconds=holder_life(config, budget_seconds),
        labels=names.labels(Domain.HOLDER),
        order=names.order(Item.WORKSPACE),
    )


def exchange_volumes(
    config: SandboxConfig, names: ContainerNames, exchange: Exchange, limit_seconds: float
) -> tuple[VolumeSpec, VolumeSpec]:
    """Both directions between a worker and the judge: what one writes, the other can only read."""

    def direction(item: Item, writer: Domain) -> VolumeSpec:
        return VolumeSpec(
            name=names.name(item),
            size_bytes=config.exchange_bytes,
            inodes=_EXCHANGE_INODES,
            owner=USERS[writer],
            life_seconds=limit_seconds + config.kill_grace_seconds,
            labels=names.labels(writer),
            order=names.order(item),
        )

    return direction(exchange.requests, Domain.JUDGE), direction(exchange.replies, Domain.WORKER)


def holder_life(config: SandboxConfig, budget_seconds: float) -> float:
    """For how many seconds, at most, the workspace of a run with this budget is kept mounted."""
    return budget_seconds + config.kill_grace_seconds + WORKSPACE_KEEP_SECONDS
