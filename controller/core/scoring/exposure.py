"""Whether scores say that somebody knows the rows that are scored. Pure.

A worker has to see rows, and there may be unknown ways for a later run to learn what it saw. Such a run does
better on the scored rows, which are the same every time, than on fresh ones, which no worker was given before
(harness/fresh.py). Each score says by how much, as a `Fresh`. Three tests look at that, and an honest run
fails one of them once in `1 / FALSE_ALARM` times, or less often:

* of one run: the judge's permutation test, which is exact;
* of one run that was measured twice, because the first test was near to an alarm and the score would be kept:
  both gaps together, as normal numbers;
* of a lineage, the kept experiments that led to a candidate and the candidate itself: what is known a little
  is known in each of them, so their gaps are averaged. Two things make the mean differ from 0 for honest
  runs. Which rows were fresh: a random walk with normal steps as far as the mean of many rows is normal, so
  the mean stays within the boundary of Robbins's mixture of normals (Howard et al., "Time-uniform,
  nonparametric, nonasymptotic confidence sequences", Annals of Statistics 49 (2021), equation 14) at every
  step with the probability asked for. And which rows are the scored ones: that is drawn once and the same in
  all scorings. What the first scoring found, at which nobody could know anything, tells part of it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import NamedTuple

from controller.core.values import Fresh, Score

FALSE_ALARM = 1e-4
"""Probability that an honest run is taken for one that knows scored rows."""
DOUBT = 0.01
"""A score that would be kept, with a gap as unlikely as this, is measured again with other fresh rows."""
SLACK = 0.01
"""Share of its score by which a lineage may be better on scored rows, for having been chosen by them."""

_LOOK_ALARM = FALSE_ALARM / 4
"""A run is looked at twice: after its first worker, and after the second."""
_TWICE_ALARM = FALSE_ALARM / 4
_WALK_ALARM = _OFFSET_ALARM = FALSE_ALARM / 8


class Lineage(NamedTuple):
    """What the gaps of a lineage come to, bits per byte."""

    scores: int
    """How many gaps the mean is of; that of the first scoring is not among them."""
    gap: float
    """Mean gap beyond what the choice of the scored rows explains."""
    limit: float
    """From here on it is no chance."""


def lineage(gaps: Sequence[Fresh], val_bpb: float) -> Lineage | None:
    """Sum up the gaps of a lineage, those of its first scoring first. None if there is no other.

    `val_bpb`: the score that is in question.
    """
    first, later = gaps[:1], [fresh for fresh in gaps[1:] if fresh.fresh_error > 0]
    if not first or not later or first[0].fresh_error == 0 or first[0].scored_error == 0:
        return None
    # The offset by the choice of the scored rows: normal around 0, seen once with the first scoring's error.
    prior, seen = first[0].scored_error ** 2, first[0].fresh_error ** 2
    offset, offset_variance = first[0].gap * prior / (prior + seen), prior * seen / (prior + seen)
    weights = [1 / fresh.fresh_error**2 for fresh in later]
    information = sum(weights)
    gap = sum(weight * fresh.gap for weight, fresh in zip(weights, later, strict=True)) / information - offset
    walk = _boundary(information, 1 / offset_variance) / information
    chance = NormalDist().inv_cdf(1 - _OFFSET_ALARM) * math.sqrt(offset_variance)
    return Lineage(len(later), gap, SLACK * abs(val_bpb) + walk + chance)


def _boundary(variance: float, tuned: float) -> float:
    """What a normal random walk stays below at all variances but for `_WALK_ALARM`; tightest near `tuned`."""
    return math.sqrt((variance + tuned) * (math.log((variance + tuned) / tuned) - 2 * math.log(_WALK_ALARM)))


def doubtful(score: Score) -> bool:
    """Is the gap hard to explain by chance, though it convicts nobody?"""
    return score.fresh is not None and score.fresh.p_value <= DOUBT


def _twice(first: Fresh, second: Fresh, val_bpb: float) -> str | None:
    """Why two scorings of one model with different fresh rows are no chance together; None if they may be."""
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
    """Why the model of this score must have seen rows that are scored; None if nothing says so.

    `ancestors`: what the kept experiments before it showed, the first one first. `earlier`: another score of
    the same checkpoint.
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
