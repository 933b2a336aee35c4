"""What of everything that carries our labels is due to be killed or removed. Pure."""

from __future__ import annotations

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
