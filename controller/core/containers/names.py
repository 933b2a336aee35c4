"""Names and labels of containers and volumes. They say which home each belongs to and when it may be
removed."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from controller.core.containers.domains import Domain
from controller.core.containers.orders import Item, Order
from controller.core.values import Draw

LABEL_HOME = "glovebox.home"
LABEL_EXPERIMENT = "glovebox.experiment"
LABEL_DOMAIN = "glovebox.domain"
LABEL_DEADLINE = "glovebox.deadline"
"""Unix seconds after which anybody may remove the container or volume. Set when it is created."""

THIRD_HAND_SECONDS = 1.0
"""A container may live this long after the moment at which its own PID 1 should have ended it."""

REHEARSAL = "rehearsal"
"""Used instead of an experiment's number by a rehearsal: its proposal is not an experiment yet."""
SLOT = "slot"
"""Used instead of an experiment's number by what watches a slot or empties the caches between experiments."""


@dataclass(frozen=True)
class ContainerNames:
    """Names and labels of the containers and volumes of one attempt."""

    home: Path
    """The home's real path."""
    experiment: str
    """Its number, or `try`, `rehearsal`, `slot`, `prepare` or `doctor`."""
    attempt: int = 1
    slot: int = 0
    """Where it runs; that is no part of a name."""

    @classmethod
    def of_slot(cls, home: Path, slot: int) -> ContainerNames:
        """What watches a slot across experiments; each slot has names of its own."""
        return cls(home, SLOT, attempt=slot + 1, slot=slot)

    @property
    def home_id(self) -> str:
        return hashlib.sha256(str(self.home).encode()).hexdigest()[:16]

    @property
    def prefix(self) -> str:
        """Start of every name in this home."""
        return f"glovebox-{self.home_id[:8]}-"

    @property
    def experiment_prefix(self) -> str:
        """Start of every name of this experiment, in all its attempts."""
        return f"{self.prefix}{self.experiment}-"

    def name(self, what: str) -> str:
        """Name of a container or volume of this attempt."""
        return f"{self.experiment_prefix}{self.attempt}-{what}"

    def order(self, item: Item, seed: int | None = None, draw: Draw | None = None) -> Order:
        """The order with which a runner is asked for a container or volume. The runner checks it."""
        return Order.model_construct(
            experiment=self.experiment,
            attempt=self.attempt,
            item=item,
            slot=self.slot,
            seed=seed,
            draw=draw,
        )

    def labels(self, domain: Domain) -> dict[str, str]:
        return {LABEL_HOME: self.home_id, LABEL_EXPERIMENT: self.experiment, LABEL_DOMAIN: domain.value}
