"""Whether scores show that a model knows the scored rows. Pure.

A worker has to see rows, and there may be unknown ways for a later run to learn what it saw. Such a run does
better on the scored rows, which are always the same, than on fresh rows, which no worker was given before
(harness/fresh.py). Each score says by how much, as a `Fresh`. Three tests use that, and an honest run fails
one of them with probability FALSE_ALARM at most:

* on one run: the judge's permutation test, which is exact;
* on one run measured twice, because the first test was close to an alarm and the score would be kept: both
  gaps together, as normal variables;
* on a lineage, the kept experiments that led to a candidate and the candidate itself: partial knowledge shows
  in each of them, so their gaps are averaged. Two things make the mean differ from 0 for honest runs. One is
  which rows were fresh: a random walk with normal steps, as far as the mean of many rows is normal, so
  the mean stays within the boundary of Robbins's mixture of normals (Howard et al., "Time-uniform,
  nonparametric, nonasymptotic confidence sequences", Annals of Statistics 49 (2021), equation 14) at every
  step with the probability asked for. The other is which rows are scored: that is drawn once and is the same
  in all scorings. The first scoring, when nothing could be known yet, reveals part of it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import NamedTuple

from controller.core.values import Fresh, Score

FALSE_ALARM = 1e-4
"""Probability that an honest run is mistaken for one that knows scored rows."""
DOUBT = 0.01
"""A score that would be kept is measured again with other fresh rows if its gap is this unlikely."""
SLACK = 0.01
"""Share of its score by which a lineage may be better on scored rows, because it was selected on them."""

_LOOK_ALARM = FALSE_ALARM / 4
"""A run is tested twice: after its first worker, and after the second."""
_TWICE_ALARM = FALSE_ALARM / 4
_WALK_ALARM = _OFFSET_ALARM = FALSE_ALARM / 8


class Lineage(NamedTuple):
    """The combined gap of a lineage, bits per byte."""

    scores: int
    """How many gaps are averaged; that of the first scoring is not included."""
    gap: float
    """Mean gap beyond what the choice of the scored rows explains."""
    limit: float
    """A gap beyond this is not chance."""


def lineage(gaps: Sequence[Fresh], val_bpb: float) -> Lineage | None:
    """Combine the gaps of a lineage, that of its first scoring first. None if there are no others.

    `val_bpb`: the score in question.
    """
    first, later = gaps[:1], [fresh for fresh in gaps[1:] if fresh.fresh_error > 0]
    if not first or not later or first[0].fresh_error == 0 or first[0].scored_error == 0:
        return None
    # The offset from the choice of scored rows: normal around 0, observed once, with the first scoring's
    # error.
    prior, seen = first[0].scored_error ** 2, first[0].fresh_error ** 2
    offset, offset_variance = first[0].gap * prior / (prior + seen), prior * seen / (prior + seen)
    weights = [1 / fresh.fresh_error**2 for fresh in later]
    information = sum(weights)
    gap = sum(weight * fresh.gap for weight, fresh in zip(weights, later, strict=True)) / information - offset
    walk = _boundary(information, 1 / offset_variance) / information
    chance = NormalDist().inv_cdf(1 - _OFFSET_ALARM) * math.sqrt(offset_variance)
    return Lineage(len(later), gap, SLACK * abs(val_bpb) + walk + chance)


def _boundary(variance: float, tuned: float) -> float:
    """A bound that a normal random walk exceeds at any variance with probability `_WALK_ALARM` at most.

    It is tightest near the variance `tuned`.
    """
    return math.sqrt((variance + tuned) * (math.log((variance + tuned) / tuned) - 2 * math.log(_WALK_ALARM)))


def doubtful(score: Score) -> bool:
    """Whether the gap is hard to explain by chance, though not proof."""
    return score.fresh is not None and score.fresh.p_value <= DOUBT


def _twice(first: Fresh, second: Fresh, val_bpb: float) -> str | None:
    """Why two scorings of one model with different fresh rows cannot both be chance; None if they can."""
    errors = [fresh.fresh_error**2 for fresh in (first, second)]
    if min(errors) == 0:
        return None
    information = sum(1 / error for error in errors)
    gap = (first.gap / errors[0] + second.gap / errors[1]) / information
    chance = NormalDist().inv_cdf(1 - _TWICE_ALARM) * math.hypot(information**-0.5, second.scored_error)
    if gap <= SLACK * abs(val_bpb) + chance:
        return None
    return (
        f"measured twice, it does worse on {first.rows + second.rows} fresh rows than on those that are"
        f" scored by {gap:.3f} bits per byte, where {chance:.3f} may be chance: it knows rows that are scored"
    )


def exposed(ancestors: Sequence[Fresh], score: Score, earlier: Score | None = None) -> str | None:
    """Why the model of this score must have seen scored rows; None if there is no evidence.

    `ancestors`: the results of the kept experiments before it, the first one first. `earlier`: another score
    of the same checkpoint.
    """
    fresh = score.fresh
    if fresh is None:
        return None
    if fresh.p_value <= _LOOK_ALARM:
        return (
            f"it does worse on {fresh.rows} fresh rows than on those that are scored by {fresh.gap:.3f} bits"
            f" per byte, chance {fresh.p_value:.0e}: it knows rows that are scored"
        )
    before = earlier.fresh if earlier is not None else None
    if before is not None and (reason := _twice(before, fresh, score.val_bpb)) is not None:
        return reason
    found = lineage([*ancestors, fresh], score.val_bpb)
    if found is not None and found.gap > found.limit:
        return (
            f"it and the {found.scores - 1} kept before it do worse on fresh rows than on those that are"
            f" scored by {found.gap:.3f} bits per byte, where {found.limit:.3f} may be chance: they know rows"
            " that are scored"
        )
    return None
