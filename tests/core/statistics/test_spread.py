"""The spread of single runs, its interval, and what is a surprise."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from controller.core.statistics.spread import Spread, pooled, surprise


def test_it_is_pooled_over_programs() -> None:
    groups = [[1.0, 1.2, 1.4], [2.0, 2.1], [5.0]]
    found = pooled(groups)
    assert found is not None and found.df == 3
    assert found.sigma**2 == pytest.approx((2 * np.var(groups[0], ddof=1) + np.var(groups[1], ddof=1)) / 3)


def test_one_run_of_each_program_says_nothing() -> None:
    assert pooled([[1.0], [2.0]]) is None and pooled([]) is None


def test_its_interval_holds_the_truth_as_often_as_it_says() -> None:
    random = np.random.default_rng(1)
    tries = 2000
    held = 0
    for _ in range(tries):
        found = pooled(random.normal(0, 0.5, (4, 3)).tolist())
        assert found is not None
        low, high = found.interval(0.9)
        held += low <= 0.5 <= high
    assert held / tries == pytest.approx(0.9, abs=0.02)  # three standard errors


def test_a_surprise_is_the_two_sided_test_of_one_more_run() -> None:
    spread = Spread(0.2, 7)
    t = (1.9 - 1.0) / (0.2 * np.sqrt(1 + 1 / 3))
    assert surprise([0.9, 1.0, 1.1], 1.9, spread) == pytest.approx(2 * stats.t.sf(t, 7))


def test_runs_that_never_differed_make_any_difference_a_surprise() -> None:
    assert surprise([1.0], 1.0, Spread(0.0, 4)) == 1.0
    assert surprise([1.0], 1.1, Spread(0.0, 4)) == 0.0
