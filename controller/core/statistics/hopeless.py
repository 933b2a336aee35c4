"""Runs that are ended early, because they train so much worse than any program that was ever kept. Pure.

A loss in the middle of a run says little about the score at its end: a larger model learns more slowly at
first, and a later decay of the learning rate looks bad until it comes. docs/decisions/early-end.md has what
was measured. No run is ranked by its loss; one that is ended early has no score.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from controller.core.scoring.curve import POINTS
from controller.core.statistics.replicates import LEAST_DF
from controller.core.values import Curve

SIGMAS = 6.0
"""Standard deviations of an incumbent's loss, from one of its runs to the next, by which it is exceeded."""
BEHIND = 0.5
"""A run is compared with what the incumbents had reached in this share of its time: it needs more than twice
the time for the same loss."""
FIRST = POINTS // 4
"""Before a quarter of the budget nothing is hopeless: start-up and warm-up differ."""
PERSISTS = 4
"""So many points in a row, a sixteenth of the budget; a loss that jumps may come back."""

Limits = tuple[float | None, ...]
"""For each point of a curve the loss that it must not exceed, nats per token; None: any will do."""


@dataclass(frozen=True)
class _Part:
    """What all incumbents reported in one part of the budget."""

    worst: float | None = None
    squares: float = 0.0
    """Of the differences from the mean of the same program's runs, over all programs."""
    df: int = 0
    """Degrees of freedom of them."""

    @property
    def limit(self) -> float | None:
        if self.worst is None or self.df < LEAST_DF:
            return None
        return self.worst + SIGMAS * math.sqrt(self.squares / self.df)


@dataclass(frozen=True)
class Yardstick:
    """The training loss of every run of a kept program, at equal time; kept up to date run by run."""

    parts: tuple[_Part, ...] = (_Part(),) * POINTS
    means: Mapping[int, tuple[tuple[float, int], ...]] = field(default_factory=dict)
    """By program: for each part, the mean of its runs and how many there are."""

    def adding(self, program: int, curve: Curve) -> Yardstick:
        """With one more run of a kept program, which got to its end."""
        means = [*self.means.get(program, ((0.0, 0),) * POINTS)]
        parts = [*self.parts]
        for place, loss in enumerate(curve.losses):
            if loss is None:
                continue
            (mean, runs), part = means[place], parts[place]
            change = loss - mean
            means[place] = (mean + change / (runs + 1), runs + 1)
            parts[place] = _Part(
                worst=loss if part.worst is None else max(part.worst, loss),
                squares=part.squares + change * change * runs / (runs + 1),
                df=part.df + (runs > 0),
            )
        return Yardstick(tuple(parts), {**self.means, program: tuple(means)})

    def limits(self, behind: float = BEHIND) -> Limits:
        """What a run must not exceed at each point."""
        limits = [part.limit for part in self.parts]
        return tuple(limits[int(behind * place)] if place >= FIRST else None for place in range(len(limits)))


def hopeless(curve: Curve, limits: Limits) -> str | None:
    """Why a run with this curve is ended, in words; None if it goes on. Once true, it stays true.

    The last point does not count, since it is not complete.
    """
    if curve.broken_at is not None:
        return f"after {curve.broken_at:g} s it reported a training loss that is not a finite number"
    beyond = 0
    for place, (loss, limit) in enumerate(zip(curve.losses[:-1], limits, strict=False)):
        if loss is None:
            continue
        beyond = beyond + 1 if limit is not None and loss > limit else 0
        if beyond == PERSISTS:
            return (
                f"after {(place + 1) / POINTS:.0%} of its time its training loss of {loss:.4f} was above "
                f"{limit:.4f}, which every kept program had passed in {BEHIND:.0%} of that time"
            )
    return None
