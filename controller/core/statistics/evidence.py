"""How much evidence runs of two programs give that one is better, however often one looks. Pure.

Runs are grouped in blocks, each of which has an unknown level of its own: slots, for instance. Within block b
the scores of the old program are normal around μ_b + δσ and those of the new one around μ_b, all with one
variance σ², so that δ is the gain in standard deviations of a run. Other runs, which say nothing about these
two programs, give a variance s² pooled over ν degrees of freedom. The hypothesis is that there is no gain,
δ ≤ 0; the alternative is a mixture, a gain with a half-normal density of variance g.

What is found must not depend on where zero is or on the unit, so every μ_b gets a flat prior and σ the prior
dσ/σ, under both. With n_b runs in block b, of which p_b are old and q_b new, the difference of their means
Δ_b, and T_b the sum of squares about the mean of the block,

    w_b = p_b q_b / n_b,   W = Σ w_b,   D = Σ w_b Δ_b,   S = νs² + Σ T_b,   N = ν + Σ (n_b - 1),

and the likelihood, once the levels are integrated out, is proportional to

    σ^(-N) exp(-S / (2σ²) + δD/σ - Wδ²/2).

Integrated over σ it is proportional to E[exp(δDV/√S - Wδ²/2)], where V is chi with N degrees of freedom, and
over the half-normal δ, by completing the square twice, the ratio to the same at δ = 0 is

    e = 2 (1 + gW)^(-1/2) (1 - a)^(-N/2) F_N(sign(D) √(N a / (1 - a))),    a = D² / (S (W + 1/g)),

with F_N Student's distribution function. Under δ = 0 this is a ratio of densities of what is left of the data
without level and unit, and as runs are added a non-negative martingale of mean 1, whatever levels and σ: by
Ville's inequality it ever reaches 1/α with a probability of at most α. Under δ < 0 it is smaller.

Lai (1976), "On confidence sequences", Annals of Statistics 4; Hendriksen, de Heide and Grünwald (2021),
"Optional stopping with Bayes factors", Bayesian Analysis 16; Pérez-Ortiz, Lardy, de Heide and Grünwald
(2024), "E-statistics, group invariance and anytime-valid testing", Annals of Statistics 52.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from controller.core.statistics.distributions import student_cdf, student_quantile
from controller.core.statistics.spread import Spread

PRIOR_VARIANCE = 9.0
"""g. Gains of one to six standard deviations of a run are found soonest."""
_LARGEST = 700.0
"""Natural logarithm of about the largest float."""


class Block(NamedTuple):
    """Scores that share a level, bits per byte."""

    old: Sequence[float]
    new: Sequence[float]


@dataclass(frozen=True)
class Sums:
    """All that the blocks say: see above."""

    weight: float
    """W."""
    moment: float
    """D, bits per byte."""
    squares: float
    """S."""
    df: int
    """N."""

    @property
    def residual(self) -> float:
        """What of the sum of squares the gain does not explain."""
        return max(0.0, self.squares - self.moment**2 / self.weight) if self.weight else self.squares

    @property
    def gain(self) -> float:
        """The most likely gain, bits per byte; positive is better. 0 if there is nothing to compare."""
        return self.moment / self.weight if self.weight else 0.0


def sums(blocks: Sequence[Block], spread: Spread | None = None) -> Sums:
    """`spread` must come from other runs than these; None if there are none."""
    weight, moment = 0.0, 0.0
    squares, df = (spread.df * spread.sigma**2, spread.df) if spread is not None else (0.0, 0)
    for old, new in blocks:
        scores = (*old, *new)
        level = math.fsum(scores) / len(scores)
        squares += math.fsum((score - level) ** 2 for score in scores)
        df += len(scores) - 1
        if old and new:
            share = len(old) * len(new) / len(scores)
            weight += share
            moment += share * (math.fsum(old) / len(old) - math.fsum(new) / len(new))
    return Sums(weight, moment, squares, df)


def e_value(told: Sums, prior_variance: float = PRIOR_VARIANCE) -> float:
    """The evidence for a gain; 1 or less if there is none. Infinite only beyond what a float holds."""
    if told.weight == 0.0 or told.squares == 0.0:
        return 1.0
    a = told.moment**2 / (told.squares * (told.weight + 1.0 / prior_variance))
    t = math.copysign(math.sqrt(told.df * a / (1.0 - a)), told.moment)
    tail = student_cdf(t, told.df)
    if tail == 0.0:
        return 0.0
    log_e = math.log(2.0 * tail)
    log_e -= 0.5 * (math.log1p(prior_variance * told.weight) + told.df * math.log1p(-a))
    return math.exp(min(log_e, _LARGEST))


def interval(told: Sums, level: float = 0.95) -> tuple[float, float]:
    """Student's interval for the gain, bits per byte; infinite if nothing is known of the spread.

    It holds for a number of runs that was fixed beforehand. A series that was stopped because it convinced
    tends to overstate a gain a little; its e-value does not.
    """
    if told.weight == 0.0 or told.df < 2:
        return -math.inf, math.inf
    reach = student_quantile(0.5 + 0.5 * level, told.df - 1)
    reach *= math.sqrt(told.residual / (told.df - 1) / told.weight)
    return told.gain - reach, told.gain + reach


def opposite(told: Sums) -> Sums:
    """The same runs with the programs exchanged: how much speaks for a loss."""
    return Sums(told.weight, -told.moment, told.squares, told.df)
