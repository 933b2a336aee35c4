"""Student's t and chi-square: distribution functions and quantiles. Pure.

The core needs no SciPy for four functions; in the tests SciPy is what they are compared with.
"""

from __future__ import annotations

import math
from collections.abc import Callable

_ENOUGH = 1e-17
"""A term of a series with positive, falling terms that no longer changes the sum."""

_EXACT = 1e-15
"""Relative change of a continued fraction that is rounding."""
_CLOSE = 1e-12
"""Relative error of a quantile."""


def student_cdf(t: float, df: float) -> float:
    """P(T ≤ t) for Student's distribution with `df` degrees of freedom; precise in the lower tail, too.

    Abramowitz and Stegun (1964), 26.7.1 with 26.5.27: P(T ≤ -|t|) = I_x(df/2, 1/2) / 2 at x = df / (df + t²).
    """
    tail = _beta(df / (df + t * t), 0.5 * df, 0.5, t * t / (df + t * t)) / 2.0
    return tail if t <= 0 else 1.0 - tail


def student_quantile(p: float, df: float) -> float:
    """The t with P(T ≤ t) = p, for 0 < p < 1."""
    if p > 0.5:
        return -student_quantile(1.0 - p, df)
    reach = 1.0
    while student_cdf(-reach, df) > p:
        reach *= 2.0
    return _root(lambda t: student_cdf(t, df) - p, -reach, 0.0)


def chi_square_cdf(x: float, df: float) -> float:
    """P(X ≤ x) for the chi-square distribution: 26.4.6, a series with positive terms."""
    if x <= 0.0:
        return 0.0
    a, half = 0.5 * df, 0.5 * x
    first = math.exp(a * math.log(half) - half - math.lgamma(a + 1.0))
    return min(1.0, first * _series(lambda k: half / (a + k)))


def chi_square_quantile(p: float, df: float) -> float:
    """The x with P(X ≤ x) = p, for 0 < p < 1."""
    reach = 1.0
    while chi_square_cdf(reach, df) < p:
        reach *= 2.0
    return _root(lambda x: chi_square_cdf(x, df) - p, 0.0, reach)


def _beta(x: float, p: float, q: float, rest: float) -> float:
    """The regularised incomplete beta function I_x(p, q); `rest` is 1 - x without its rounding error.

    26.5.8, a continued fraction, evaluated by Lentz's method; of x and 1 - x it takes the one for which it
    converges within about √max(p, q) steps.
    """
    if x <= 0.0:
        return 0.0
    if rest <= 0.0:
        return 1.0
    if x > (p + 1.0) / (p + q + 2.0):
        return 1.0 - _beta(rest, q, p, x)
    log_first = p * math.log(x) + q * math.log(rest) - math.log(p) + _log_gamma_ratio(p, q)
    value = above = 1.0
    below, step = 0.0, 0
    while True:
        step += 1
        m = step // 2
        if step % 2:
            term = -(p + m) * (p + q + m) * x / ((p + 2 * m) * (p + 2 * m + 1))
        else:
            term = m * (q - m) * x / ((p + 2 * m - 1) * (p + 2 * m))
        below = 1.0 / (1.0 + term * below)
        above = 1.0 + term / above
        value *= above * below
        if abs(above * below - 1.0) < _EXACT:
            return math.exp(log_first) / value


def _log_gamma_ratio(p: float, q: float) -> float:
    """-log B(p, q)."""
    return math.lgamma(p + q) - math.lgamma(p) - math.lgamma(q)


def _series(ratio: Callable[[int], float]) -> float:
    """1 + r(1) + r(1) r(2) + …, until a term no longer matters."""
    total, term, k = 1.0, 1.0, 0
    while term > _ENOUGH * total:
        k += 1
        term *= ratio(k)
        total += term
    return total


def _root(rises: Callable[[float], float], low: float, high: float) -> float:
    """Where a rising function is 0, by halving."""
    while high - low > _CLOSE * max(abs(low), abs(high)):
        middle = 0.5 * (low + high)
        low, high = (low, middle) if rises(middle) > 0.0 else (middle, high)
    return 0.5 * (low + high)
