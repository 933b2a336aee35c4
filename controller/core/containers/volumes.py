"""The volumes of an attempt: the workspace of T, and what lies between each worker and the judge."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from controller.core import canonical
from controller.core.containers.config import SandboxConfig
from controller.core.containers.domains import USERS, Domain
from controller.core.containers.engine_info import NOT_MAPPED, IdMap
from controller.core.containers.names import Place
from controller.core.containers.orders import Item, Order


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
        return canonical.digest({"engine": self.to_engine(), "life_seconds": self.life_seconds})

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
        name=place.name(Item.WORKSPACE),
        size_bytes=config.workspace_bytes,
        inodes=config.workspace_inodes,
        owner=USERS[Domain.TRAINER],
        life_seconds=holder_life(config, limit_seconds),
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


def holder_life(config: SandboxConfig, limit_seconds: float) -> float:
    """Seconds for which the workspace of a run with this limit is kept mounted, at the most."""
    return limit_seconds + config.kill_grace_seconds + config.workspace_keep_seconds
