"""What of everything that carries our labels is due to be killed or removed. Pure."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Found:
    """A container or volume of some experiment of some home."""

    id: str
    whose: tuple[str, str]
    """Home and experiment, as labelled."""
    due: float
    """When it has outlived its deadline, on a clock that never steps."""
    running: bool = False


class Deadlines:
    """Remembers when what was seen is due, so that setting the wall clock afterwards changes nothing."""

    def __init__(self) -> None:
        self._due: dict[str, float] = {}

    def __contains__(self, name: str) -> bool:
        return name in self._due

    def of(self, name: str, label: str, wall: float, now: float) -> float:
        """When `name` is due: as remembered, or as its label says, which is not remembered for that.

        The label holds Unix seconds, as `wall` does; what is no number there is due. `now` is the same moment
        on the clock that never steps, on which the answer is.
        """
        return self._due[name] if name in self._due else _due(label, wall, now)

    def remember(self, name: str, label: str, wall: float, now: float, late: float = 0.0) -> None:
        """See `of`. `late`: how long after the label was written its life began, in seconds."""
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
    """Ids of what still runs and must not any more."""
    return [found.id for found in containers if found.running and found.due <= now]


def to_remove(things: Iterable[Found], running: Collection[tuple[str, str]], now: float) -> list[str]:
    """Ids of what is over and of no use to anybody.

    A run that has ended stays while anything of its experiment runs: its holder does for as long as a
    controller that comes back may want to score it.
    """
    return [
        found.id for found in things if not found.running and found.due <= now and found.whose not in running
    ]
