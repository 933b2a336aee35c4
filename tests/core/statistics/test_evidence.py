"""Evidence against its definition as an integral, against a simulation, and its intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import integrate, stats

from controller.core.statistics.evidence import Block, e_value, interval, opposite, sums
from controller.core.statistics.spread import Spread

SCORES = st.lists(st.floats(-3, 3), min_size=1, max_size=4)
BLOCKS = st.lists(st.builds(Block, SCORES, SCORES), min_size=1, max_size=3)
SPREADS = st.none() | st.builds(Spread, st.floats(0.1, 3), st.integers(1, 40))


def by_integration(blocks: Sequence[Block], spread: Spread | None, variance: float) -> float:
    """The ratio of the two marginal likelihoods, integrated over σ and the gain by SciPy.

    A flat prior on the level of a block leaves the likelihood of its residuals, by definition.
    """

    def likelihood(gain: float, log_sigma: float) -> float:
        sigma = math.exp(log_sigma)
        squares, df = (spread.df * spread.sigma**2, spread.df) if spread else (0.0, 0)
        for old, new in blocks:
            residuals = np.array([score - gain * sigma for score in old] + [*new])
            squares += float(np.sum((residuals - residuals.mean()) ** 2))
            df += len(residuals) - 1
        return math.exp(-df * log_sigma - squares / (2 * sigma**2))

    told = sums(blocks, spread)
    middle = 0.5 * math.log(told.squares / told.df)  # where the likelihood without a gain is highest
    scale = likelihood(0.0, middle)
    bounds = (middle - 6.0, middle + 12.0)

    def over_sigma(gain: float) -> float:
        return float(integrate.quad(lambda s: likelihood(gain, s) / scale, *bounds, limit=400)[0])

    prior = stats.halfnorm(scale=math.sqrt(variance))
    above = integrate.quad(lambda g: over_sigma(g) * prior.pdf(g), 0, 12 * math.sqrt(variance), limit=400)[0]
    return float(above / over_sigma(0.0))


@pytest.mark.parametrize("variance", [1.0, 9.0])
@pytest.mark.parametrize(
    ("blocks", "spread"),
    [
        ([Block([1.2, 1.0], [0.4, 0.5])], None),
        ([Block([1.2, 1.0, 1.1], [0.9])], Spread(0.1, 5)),
        ([Block([0.2], [0.5]), Block([2.1, 2.4], [1.9, 2.0])], Spread(0.3, 2)),
        ([Block([0.0, 0.1], [1.0, 1.2])], Spread(0.5, 8)),
        ([Block([1.2, 1.0], [0.4]), Block([3.0, 3.1], [])], None),
    ],
)
def test_it_is_the_ratio_of_the_marginal_likelihoods(
    blocks: list[Block], spread: Spread | None, variance: float
) -> None:
    expected = by_integration(blocks, spread, variance)
    assert e_value(sums(blocks, spread), variance) == pytest.approx(expected, rel=1e-5)


@given(BLOCKS, SPREADS, st.floats(-5, 5), st.floats(0.1, 10))
def test_neither_the_level_of_a_block_nor_the_unit_matters(
    blocks: list[Block], spread: Spread | None, level: float, unit: float
) -> None:
    moved = [
        Block(*([(score + level * place) * unit for score in side] for side in block))
        for place, block in enumerate(blocks)
    ]
    other = Spread(spread.sigma * unit, spread.df) if spread else None
    if sums(blocks, spread).squares > 1e-6:  # rounding is all there is below
        assert e_value(sums(moved, other)) == pytest.approx(e_value(sums(blocks, spread)), rel=1e-3)


@given(BLOCKS, SPREADS)
def test_it_never_fails_and_a_loss_is_no_evidence(blocks: list[Block], spread: Spread | None) -> None:
    told = sums(blocks, spread)
    found = e_value(told)
    assert found >= 0.0 and math.isfinite(found)
    if told.moment <= 0.0:
        assert found <= 1.0
    assert opposite(opposite(told)) == told


def test_a_great_loss_with_many_runs_leaves_nothing() -> None:
    told = sums([Block([0.0, 0.1] * 200, [5.0, 5.1] * 200)], Spread(0.05, 300))
    assert e_value(told) == pytest.approx(0.0, abs=1e-3)
    assert e_value(opposite(told)) > 1e100


def test_nothing_to_compare_is_no_evidence() -> None:
    assert e_value(sums([], Spread(0.1, 3))) == 1.0
    assert e_value(sums([Block([1.0, 2.0], [])])) == 1.0
    assert e_value(sums([Block([1.0], [1.0])])) == 1.0


@pytest.mark.slow
def test_chance_reaches_it_no_more_often_than_it_says() -> None:
    """Looked at after each of twelve pairs, with a variance that is known badly."""
    random = np.random.default_rng(1)
    tries, level = 4000, 20.0
    reached = 0
    for _ in range(tries):
        spread = Spread(math.sqrt(random.chisquare(3) / 3), 3)
        old, new = random.normal(0, 1, (2, 12)).tolist()
        reached += any(e_value(sums([Block(old[:n], new[:n])], spread)) >= level for n in range(1, 13))
    assert 0 < reached <= tries / level


def test_its_interval_is_that_of_the_two_sample_t_test() -> None:
    old, new = [1.2, 1.0, 1.1, 1.4], [0.9, 0.7, 0.8]
    expected = stats.ttest_ind(old, new).confidence_interval(0.9)
    assert interval(sums([Block(old, new)]), 0.9) == pytest.approx((expected.low, expected.high))


def test_without_degrees_of_freedom_there_is_no_interval() -> None:
    assert interval(sums([Block([1.0], [0.5])])) == (-math.inf, math.inf)
    assert interval(sums([])) == (-math.inf, math.inf)
