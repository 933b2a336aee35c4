"""Runs that are ended early, because they train so much worse than any program that was ever kept. Pure.

A loss in the middle of a run says little about the score at its end: a larger model learns more slowly at
first, and a later decay of the learning rate looks bad until it comes. docs/decisions/early-end.md has what
was measured. No run is ranked by its loss; one that is ended early has no score.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from statistics import median

from controller.core.scoring.curve import POINTS
from controller.core.statistics.replicates import LEAST_DF
from controller.core.values import Curve

SIGMAS = 6.0
"""Standard deviations of an incumbent's loss, from one of its runs to the next, by which it is exceeded."""
BEHIND = 0.5
"""A run is compared with what the incumbents had reached in this share of its time, too."""
QUARTER = POINTS // 4
"""What is compared is the median of the latest quarter of the budget: steps differ by their text, and a loss
that jumps may come back. A run has so much time from its first report on, since compiling and warm-up
differ, too."""
PERSISTS = 4
"""So many points in a row, a sixteenth of the budget."""

LossLimits = tuple[float | None, ...]
"""For each point of a curve the loss that it must not exceed, nats per token; None: any will do."""


@dataclass(frozen=True)
class _Part:
    """What all incumbents had reported by the end of one part of the budget: medians, as above."""

    worst: float | None = None
    """The highest; None: there is no incumbent."""
    silent: bool = False
    """One of them had not reported anything."""
    squares: float = 0.0
    """Of the differences from the mean of the same program's runs, over all programs."""
    df: int = 0
    """Degrees of freedom of them."""

    @property
    def limit(self) -> float | None:
        if self.worst is None or self.silent or self.df < LEAST_DF:
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
        for place, loss in enumerate(_medians(curve, POINTS)):
            part = parts[place]
            if loss is None:
                parts[place] = _Part(part.worst, True, part.squares, part.df)
                continue
            mean, runs = means[place]
            change = loss - mean
            means[place] = (mean + change / (runs + 1), runs + 1)
            parts[place] = _Part(
                worst=loss if part.worst is None else max(part.worst, loss),
                silent=part.silent,
                squares=part.squares + change * change * runs / (runs + 1),
                df=part.df + (runs > 0),
            )
        return Yardstick(tuple(parts), {**self.means, program: tuple(means)})

    def only(self, programs: Collection[int]) -> Yardstick:
        """Without the means of all programs that will not run again."""
        means = {program: mean for program, mean in self.means.items() if program in programs}
        return Yardstick(self.parts, means)

    def limits(self, behind: float = BEHIND) -> LossLimits:
        """What a run must not exceed at each point: what incumbents had reached then, and earlier.

        The later losses may be the higher ones, where the text becomes more difficult.
        """
        limits = [part.limit for part in self.parts]
        both = [(limits[int(behind * place)], now) for place, now in enumerate(limits)]
        return tuple(max(then, now) if then is not None and now is not None else None for then, now in both)


def _medians(curve: Curve, points: int) -> list[float | None]:
    """At each of so many points the median of what was reported in the quarter before; None: nothing yet.

    Where there is a gap, or where the curve has ended, the latest one.
    """
    medians: list[float | None] = []
    for place in range(points):
        known = [loss for loss in curve.losses[max(0, place + 1 - QUARTER) : place + 1] if loss is not None]
        latest = medians[-1] if medians else None
        medians.append(median(known) if known else latest)
    return medians


def hopeless(curve: Curve, limits: LossLimits) -> str | None:
    """Why a run with this curve is ended, in words; None if it goes on. Once true, it stays true.

    The last point does not count, since it is not complete.
    """
    if curve.broken_at is not None:
        return f"after {curve.broken_at:g} s it reported a training loss that is not a finite number"
    began, beyond = None, 0
    complete = _medians(curve, len(curve.losses) - 1)
    for place, (loss, limit) in enumerate(zip(complete, limits, strict=False)):
        if loss is None:
            continue
        began = place if began is None else began
        late = place - began >= QUARTER
        beyond = beyond + 1 if late and limit is not None and loss > limit else 0
        if beyond == PERSISTS:
            return (
                f"after {(place + 1) / POINTS:.0%} of its time its training loss, {loss:.4f}, was above "
                f"{limit:.4f}; every kept program was below that in {BEHIND:.0%} of this time"
            )
    return None
