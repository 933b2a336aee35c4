"""Which rows are scored and which are fresh, and what their comparison finds."""

import json
import math
from pathlib import Path
from typing import Any

import fresh
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tests.harness.scoring import LENGTH, make_data, rows_of


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_data(tmp_path_factory.mktemp("data"))


def as_set(rows: NDArray[np.int64]) -> set[bytes]:
    return {row.tobytes() for row in rows}


# --- which rows ------------------------------------------------------------------


def test_scored_rows_are_the_same_in_every_scoring(data: Path) -> None:
    first = rows_of(data).scored
    assert first.shape == (40, LENGTH + 1)
    for scoring in (1, 7, 500, None):
        assert (rows_of(data, scoring).scored == first).all()


def test_no_row_is_fresh_twice_until_all_were(data: Path) -> None:
    scored = as_set(rows_of(data).scored)
    given_before: tuple[set[bytes], set[bytes]] = (set(), set())
    for scoring in range(50):
        rows = rows_of(data, scoring)
        for portion, before in zip((rows.first, rows.second), given_before, strict=True):
            now = as_set(portion.rows)
            assert len(now) == len(portion.rows) and not now & scored
            assert bool(now & before) == portion.asked_before
            assert not portion.asked_before or portion.left == 0
            before.update(now)
        assert not given_before[0] & given_before[1]
    assert rows.first.asked_before and rows.second.asked_before


def test_a_try_gets_the_same_rows_each_time_and_no_effort_gets_them(data: Path) -> None:
    tries = as_set(rows_of(data, None).first.rows) | as_set(rows_of(data, None).second.rows)
    assert tries == as_set(rows_of(data, None).first.rows) | as_set(rows_of(data, None).second.rows)
    for scoring in range(30):
        rows = rows_of(data, scoring)
        assert not tries & (as_set(rows.first.rows) | as_set(rows.second.rows))


def test_a_quarter_of_the_text_is_kept_in_reserve(data: Path) -> None:
    rows = rows_of(data, score_tokens=10**6)
    pool = fresh.read_pool(data / "judge", LENGTH, 256, 10**6)
    assert len(rows.scored) == len(pool) - len(pool) // 4


def test_no_text_is_an_error(data: Path, tmp_path: Path) -> None:
    facts = json.loads((data / "judge/manifest.json").read_text())
    with pytest.raises(ValueError, match="no rows"):
        fresh.draw(tmp_path, facts, score_tokens=1, most_fresh_tokens=1, scoring=0, confirmation=0)


def test_a_large_validation_split_is_enough_by_itself(data: Path) -> None:
    small, large = (fresh.read_pool(data / "judge", LENGTH, 256, wanted) for wanted in (1, 10**6))
    assert as_set(small) < as_set(large)


@given(
    portions=st.sampled_from([fresh.SCORING, fresh.CONFIRMATION]),
    size=st.integers(1, 5000),
    most=st.integers(1, 300),
    number=st.integers(0, 300),
)
def test_schedule_goes_on_where_it_was_and_stays_within_its_bounds(
    portions: fresh.Portions, size: int, most: int, number: int
) -> None:
    first, count = fresh.schedule(portions, size, most, number)
    assert 1 <= count <= min(most, size)
    assert fresh.schedule(portions, size, most, number + 1)[0] == first + count


def test_how_long_a_reserve_of_the_cpu_scale_lasts() -> None:
    """6973 rows: what the embedded corpus has beside the 256 that are scored."""
    first, count = fresh.schedule(fresh.SCORING, 1744 - 8, 128, 200)
    assert count == 8 and first + count < 1744
    assert fresh.schedule(fresh.CONFIRMATION, 5229 - 128, 128, 0) == (0, 79)
    first, count = fresh.schedule(fresh.CONFIRMATION, 5229 - 128, 128, 115)
    assert count == 32 and first + count < 5229 - 128


def test_the_result_tells_what_no_worker_was_given_yet(data: Path) -> None:
    drawn = rows_of(data, 0)
    sizes = np.load(data / "judge/token_bytes.npy").astype(np.int64)
    first = np.concatenate([drawn.scored, drawn.first.rows])
    both = np.concatenate([first, drawn.second.rows])
    told = [fresh.result(drawn, rows, np.ones((len(rows), LENGTH)), sizes, seed=1) for rows in (first, both)]
    assert [result["rows"] for result in told] == [
        len(drawn.first.rows),
        len(drawn.first.rows) + len(drawn.second.rows),
    ]
    assert told[0]["left"] - told[1]["left"] == len(drawn.second.rows)
    assert told[1]["left"] == drawn.first.left + drawn.second.left


# --- the comparison --------------------------------------------------------------

SCORED, FRESH = 256, 24


def rows_like_text(random: np.random.Generator, number: int) -> tuple[NDArray[Any], ...]:
    """Nats, bytes and unigram cost of rows that differ much, with a heavy tail."""
    sizes = np.maximum(50, random.normal(600, 190, number)).astype(np.int64)
    costs = sizes * 3.0 * np.exp(0.1 * random.standard_normal(number))
    nats = 0.5 * costs * np.exp(0.15 * random.standard_t(4, number))
    return nats, sizes, costs


def compared(random: np.random.Generator, known: float) -> fresh.Comparison:
    """Of a model that knows so large a share of each scored row."""
    nats, sizes, costs = rows_like_text(random, SCORED + FRESH)
    is_fresh = np.arange(SCORED + FRESH) >= SCORED
    nats = np.where(is_fresh, nats, nats * (1 - known))
    return fresh.compare(nats, sizes.astype(np.int64), costs, is_fresh, seed=int(random.integers(2**60)))


def test_p_values_of_the_honest_are_uniform() -> None:
    random = np.random.default_rng(0)
    values = np.sort([compared(random, 0.0).p_value for _ in range(300)])
    # Kolmogorov and Smirnov's distance, one-sided: too many small p-values would be false alarms.
    assert (np.arange(1, 301) / 300 - values).max() < 1.63 / math.sqrt(300)


def test_who_knows_the_scored_rows_does_worse_on_fresh_ones() -> None:
    random = np.random.default_rng(1)
    found = [compared(random, known=0.4) for _ in range(5)]
    assert all(comparison.p_value < 5e-5 for comparison in found)
    assert all(comparison.gap > 4 * comparison.fresh_error for comparison in found)


def test_the_errors_are_those_of_the_gap() -> None:
    random = np.random.default_rng(2)
    found = [compared(random, 0.0) for _ in range(400)]
    told = np.mean([c.fresh_error**2 + c.scored_error**2 for c in found])
    assert np.var([c.gap for c in found]) == pytest.approx(told, rel=0.25)


@settings(deadline=None, max_examples=50)
@given(
    nats=st.lists(st.floats(0, 1e38), min_size=4, max_size=40),
    count=st.integers(1, 3),
    seed=st.integers(0, 2**62),
)
def test_whatever_a_worker_says_the_result_is_a_number(nats: list[float], count: int, seed: int) -> None:
    number = len(nats)
    sizes, costs = np.arange(1, number + 1), np.arange(number) * 2.0
    found = fresh.compare(np.array(nats), sizes, costs, np.arange(number) >= number - count, seed)
    assert all(math.isfinite(value) for value in found)
    assert 0 < found.p_value <= 1
