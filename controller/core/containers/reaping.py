"""Which of the containers and volumes with our labels are due to be killed or removed. Pure."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Found:
    """A container or volume of any experiment in any home."""

    id: str
    whose: tuple[str, str]
    """Home and experiment, from its labels."""
    due: float
    """Its deadline, on the monotonic clock."""
    running: bool = False


class Deadlines:
    """Remembers deadlines on the monotonic clock, so that setting the wall clock later does not move them."""

    def __init__(self) -> None:
        self._due: dict[str, float] = {}

    def __contains__(self, name: str) -> bool:
        return name in self._due

    def of(self, name: str, label: str, wall: float, now: float) -> float:
        """When `name` is due, on the monotonic clock: as remembered, or by its label, without remembering it.

        The label holds Unix seconds; anything else means that it is due. `wall` (Unix seconds) and `now`
        (monotonic) are the same moment.
        """
        return self._due[name] if name in self._due else _due(label, wall, now)

    def remember(self, name: str, label: str, wall: float, now: float, late: float = 0.0) -> None:
        """See `of`. `late`: seconds between writing the label and the start of the container."""
        self._due.setdefault(name, _due(label, wall, now) + max(late, 0.0))

    def forget_all_but(self, there: Collection[str]) -> None:
        self._due = {name: due for name, due in self._due.items() if name in there}


def _due(label: str, wall: float, now: float) -> float:
    try:
        due = float(label) - wall + now
    except ValueError:
        return 0.0
    return due if math.isfinite(due) else 0.0


def to_kill(containers: Iterable[Found], now: float) -> list[str]:
    """Ids of the running containers that are past their deadline."""
    return [found.id for found in containers if found.running and found.due <= now]


def to_remove(things: Iterable[Found], running: Collection[tuple[str, str]], now: float) -> list[str]:
    """Ids of what has ended, is past its deadline and is not needed any more.

    A container that has ended stays while any other of its experiment runs. The holder runs for as long as a
    restarted controller may still score the run.
    """
    return [
        found.id for found in things if not found.running and found.due <= now and found.whose not in running
    ]
