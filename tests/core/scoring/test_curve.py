"""The curve of training losses, from a run's output: whatever it prints, in whatever pieces it arrives."""

from __future__ import annotations

import time
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.core.scoring.curve import MAX_LINES, POINTS, CurveReader, thinned
from controller.core.values import Curve

BUDGET = 64.0
"""One second for each point."""


def read(*blocks: bytes) -> Curve:
    reader = CurveReader(BUDGET)
    for block in blocks:
        reader.feed(block)
    return reader.curve


def line(seconds: float, loss: object, step: int = 1) -> bytes:
    return f"report: step={step} seconds={seconds:.2f} loss={loss}\n".encode()


def test_a_point_is_the_mean_of_what_was_reported_in_its_part() -> None:
    curve = read(line(0.1, 4.0), line(0.9, 3.0), line(2.5, 2.25, step=17))
    assert curve == Curve(losses=(3.5, None, 2.25), step=17)


@given(st.lists(st.floats(0, 63.9), max_size=20), st.integers(1, 40))
def test_it_does_not_matter_how_the_output_is_cut(moments: list[float], size: int) -> None:
    text = b"begin\nstep 1 | loss 9.9" + b"".join(line(at, 2.0) + b"noise\r" for at in sorted(moments))
    cut = [text[start : start + size] for start in range(0, len(text), size)]
    assert read(*cut) == read(text)
    assert sum(loss is not None for loss in read(text).losses) == len(
        {int(f"{at:.2f}".split(".")[0]) for at in moments}
    )


@pytest.mark.parametrize("loss", ["nan", "inf", "-inf", "NaN", "1e999"])
def test_a_loss_that_is_no_finite_number_ends_the_curve(loss: str) -> None:
    curve = read(line(1.0, 3.0), line(2.0, loss), line(3.0, 2.0))
    assert curve == Curve(losses=(None, 3.0), step=1, broken_at=2.0)


@pytest.mark.parametrize(
    "text",
    [
        b"report: step=1 seconds=1.0 loss=...\n",
        b"report: step=1 seconds=1.0 loss=2.0",
        b"report: step=-1 seconds=1.0 loss=2.0\n",
        b"report: step=1 seconds=nan loss=2.0\n",
        b"report: step=1 seconds=9999999 loss=2.0\n",
        b"report: step=1 seconds=1.0\nloss=2.0\n",
        "report: step=١ seconds=1.0 loss=2.0\n".encode(),
        b"report: step=1 seconds=1.0 loss=" + b"2" * 40 + b"\n",
    ],
)
def test_what_is_no_report_is_none(text: bytes) -> None:
    assert read(text) == Curve()


def test_a_clock_that_goes_back_is_not_followed() -> None:
    assert read(line(5.0, 2.0), line(1.0, 9.0)) == read(line(5.0, 2.0))


def test_absurd_losses_stay_numbers() -> None:
    curve = read(*[line(1.0, "1e308")] * 3, line(2.0, "-1e308"))
    assert curve.losses == (None, 1e6, -1e6)
    assert Curve.model_validate_json(curve.model_dump_json()) == curve


def test_a_flood_costs_little() -> None:
    """Ten gigabytes at this pace would take the controller well under a minute of CPU time."""
    block = line(1.0, 2.0) * 10_000
    reader, began = CurveReader(BUDGET), time.process_time()
    for _ in range(500):
        reader.feed(block)
    assert time.process_time() - began < 0.5
    assert reader.curve.losses == (None, 2.0)
    noise, reader, began = b"report: step=" * 80_000, CurveReader(BUDGET), time.process_time()
    for _ in range(20):
        reader.feed(noise)
    assert time.process_time() - began < 2.0
    assert reader.curve == Curve()


def test_more_reports_than_an_honest_run_makes_are_not_read() -> None:
    reader = CurveReader(BUDGET)
    for number in range(MAX_LINES + 10):
        reader.feed(line(1.0, 2.0, step=number))
    assert reader.curve.step == MAX_LINES - 1


@given(st.lists(st.none() | st.floats(1, 5), max_size=POINTS), st.integers(2, 20))
def test_a_thinned_curve_has_both_ends(losses: list[float | None], points: int) -> None:
    known = [loss for loss in losses if loss is not None]
    thin = thinned(Curve(losses=tuple(losses)), points)
    assert len(thin) == min(points, len(known))
    assert [loss for _, loss in thin[:1] + thin[-1:]] == known[:1] + known[-1:]
    assert all(before < after for (before, _), (after, _) in pairwise(thin))
