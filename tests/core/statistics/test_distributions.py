"""Distribution functions and quantiles against SciPy's."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from controller.core.statistics import distributions as ours

DF = st.integers(1, 3000)


@given(st.floats(-60, 60), DF)
def test_students_distribution_function(t: float, df: int) -> None:
    assert ours.student_cdf(t, df) == pytest.approx(stats.t.cdf(t, df), rel=1e-9, abs=1e-300)


@given(st.floats(1e-6, 1 - 1e-6), DF)
def test_students_quantile(p: float, df: int) -> None:
    assert ours.student_quantile(p, df) == pytest.approx(stats.t.ppf(p, df), rel=1e-7, abs=1e-9)


@given(st.floats(1e-3, 5000), DF)
def test_the_chi_square_distribution_function(x: float, df: int) -> None:
    assert ours.chi_square_cdf(x, df) == pytest.approx(stats.chi2.cdf(x, df), rel=1e-9, abs=1e-300)


@given(st.floats(1e-4, 1 - 1e-4), DF)
def test_the_chi_square_quantile(p: float, df: int) -> None:
    assert ours.chi_square_quantile(p, df) == pytest.approx(stats.chi2.ppf(p, df), rel=1e-8)


def test_nothing_lies_below_zero() -> None:
    assert ours.chi_square_cdf(0.0, 3) == 0.0 and ours.chi_square_cdf(-1.0, 3) == 0.0
    assert ours.student_cdf(0.0, 5) == 0.5
