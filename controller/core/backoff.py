"""How long to wait before the next try of something that failed. Pure."""

from __future__ import annotations

_MAX_DOUBLINGS = 60
"""Of any wait in seconds this many are far beyond every limit; 2.0**1024 would overflow."""


def backoff(failures: int, first: float, longest: float) -> float:
    """Seconds to wait after that many failures in a row (at least one).

    `first` after the first failure, then twice as long after each further one, but never more than `longest`.
    """
    return min(first * 2.0 ** min(failures - 1, _MAX_DOUBLINGS), longest)
