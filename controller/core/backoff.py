"""How long to wait before the next try."""

from __future__ import annotations


def backoff(failures: int, first: float, longest: float) -> float:
    """Exponential backoff: `first` seconds after one failure, doubled after each further one, up to `longest`.

    `failures` counts the failures in a row, from 1.
    """
    return min(first * 2.0 ** min(failures - 1, 60), longest)
