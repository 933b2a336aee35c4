"""Waits double from the first one up to the longest one."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.core.backoff import backoff


@pytest.mark.parametrize(
    ("failures", "seconds"),
    [(1, 0.5), (2, 1.0), (3, 2.0), (7, 32.0), (8, 60.0), (9, 60.0), (5000, 60.0)],
)
def test_a_wait_doubles_with_each_failure_up_to_the_longest(failures: int, seconds: float) -> None:
    assert backoff(failures, first=0.5, longest=60.0) == seconds


def test_a_first_wait_beyond_the_longest_is_cut() -> None:
    assert backoff(1, first=10.0, longest=3.0) == 3.0


@given(st.integers(1, 10**9), st.floats(1e-3, 1e3), st.floats(1e-3, 1e6))
def test_another_failure_never_shortens_the_wait(failures: int, first: float, longest: float) -> None:
    wait, next_wait = backoff(failures, first, longest), backoff(failures + 1, first, longest)
    assert 0 < wait <= next_wait <= longest
