"""Names and labels of containers and volumes: how whoever finds one knows whose it is and when it is due."""

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
"""A container may live this long past the moment at which its own PID 1 should have ended it."""

REHEARSAL_PLACE = "rehearsal"
"""What stands for the experiment in names and labels of a rehearsal: the text is none yet."""
SLOT_PLACE = "slot"
"""The same for a look at a GPU while no experiment runs."""


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

    def order(self, item: Item, seed: int | None = None, draw: Draw | None = None) -> Order:
        """How a runner is asked for a container or volume of this attempt. It does the checking."""
        return Order.model_construct(
            experiment=self.experiment, attempt=self.attempt, item=item, seed=seed, draw=draw
        )

    def labels(self, domain: Domain) -> dict[str, str]:
        return {LABEL_HOME: self.home_id, LABEL_EXPERIMENT: self.experiment, LABEL_DOMAIN: domain.value}
