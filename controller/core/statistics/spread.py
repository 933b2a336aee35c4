"""How much the score of one program differs from run to run, and whether that has changed. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from controller.core.statistics.distributions import chi_square_quantile, student_cdf


@dataclass(frozen=True)
class Spread:
    """The standard deviation of single runs, pooled over programs."""

    sigma: float
    """Bits per byte."""
    df: int
    """Degrees of freedom: runs less programs, at least 1."""

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """The usual interval for a standard deviation: df·s²/σ² is chi-square. Bits per byte."""
        rest = 0.5 * (1.0 - level)
        below, above = (chi_square_quantile(p, self.df) for p in (1.0 - rest, rest))
        return self.sigma * math.sqrt(self.df / below), self.sigma * math.sqrt(self.df / above)


def pooled(groups: Iterable[Sequence[float]]) -> Spread | None:
    """The spread of runs that are grouped by program; None unless a program was run twice.

    s² = Σ_g Σ_i (x_gi - mean_g)² / Σ_g (n_g - 1).
    """
    squares, df = 0.0, 0
    for group in groups:
        if len(group) > 1:
            mean = math.fsum(group) / len(group)
            squares += math.fsum((x - mean) ** 2 for x in group)
            df += len(group) - 1
    return Spread(math.sqrt(squares / df), df) if df else None


def surprise(earlier: Sequence[float], latest: float, spread: Spread) -> float:
    """How rarely chance moves a run so far from earlier ones of the same program: a two-sided p-value.

    t = (x - mean) / (s √(1 + 1/n)) is Student's with the spread's degrees of freedom, if the spread is from
    other runs. `earlier` has at least one run. 0 if runs never differed before.
    """
    mean = math.fsum(earlier) / len(earlier)
    if spread.sigma == 0.0:
        return 1.0 if latest == mean else 0.0
    t = (latest - mean) / (spread.sigma * math.sqrt(1.0 + 1.0 / len(earlier)))
    return 2.0 * student_cdf(-abs(t), spread.df)
