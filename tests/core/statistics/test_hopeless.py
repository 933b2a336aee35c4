"""Which runs are ended early: only what is far beyond every kept program, for some time, and late enough."""

from __future__ import annotations

from statistics import median, variance

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.core.scoring.curve import POINTS
from controller.core.statistics.hopeless import BEHIND, PERSISTS, QUARTER, SIGMAS, Yardstick, hopeless
from controller.core.values import Curve


def falling(start: float = 4.0, by: float = 0.02, points: int = POINTS, shift: float = 0.0) -> Curve:
    return Curve(losses=tuple(start + shift - by * place for place in range(points)))


def known(*programs: list[Curve]) -> Yardstick:
    yardstick = Yardstick()
    for program, curves in enumerate(programs):
        for curve in curves:
            yardstick = yardstick.adding(program, curve)
    return yardstick


FOUR = [falling(shift=shift) for shift in (0.0, 0.01, 0.02, 0.03)]
SPREAD = variance([0.0, 0.01, 0.02, 0.03]) ** 0.5


def test_the_limit_is_six_deviations_above_the_worst_at_half_the_time() -> None:
    limits = known(FOUR).limits()
    for place in (QUARTER, 40, POINTS - 1):
        half = int(BEHIND * place)
        worst = median(loss for loss in FOUR[3].losses[max(0, half - 15) : half + 1] if loss is not None)
        assert limits[place] == pytest.approx(worst + SIGMAS * SPREAD)


def test_what_goes_on_at_equal_time_goes_on() -> None:
    """Where later text is more difficult, incumbents were better at half the time than they are now."""
    harder = [Curve(losses=(*[2.0 + shift] * 40, *[5.0 + shift] * 24)) for shift in (0.0, 0.01, 0.02, 0.03)]
    yardstick = known(harder)
    for half, equal in zip(yardstick.limits(), yardstick.limits(behind=1.0), strict=True):
        assert half is not None and equal is not None and half >= equal
    assert yardstick.limits()[POINTS - 1] == pytest.approx(5.03 + SIGMAS * SPREAD)
    assert [hopeless(curve, yardstick.limits()) for curve in harder] == [None] * 4


def test_nothing_is_hopeless_before_chance_is_known() -> None:
    assert set(known(FOUR[:3]).limits()) == {None}
    assert set(known([FOUR[0]], [FOUR[1]], [FOUR[2]], [FOUR[3]]).limits()) == {None}


def test_every_kept_program_counts_and_the_worst_of_them_is_the_limit() -> None:
    """So a program that was kept and reports wonders cannot have others ended."""
    alone, wonders = known(FOUR).limits(), known(FOUR, [falling(start=0.1)]).limits()
    assert wonders == alone
    poor = known(FOUR, [falling(shift=1.0)]).limits()
    assert all(a is None or b is None or a < b for a, b in zip(alone, poor, strict=True))


def late(start: int, start_loss: float = 6.9) -> Curve:
    """Nothing until a point, and then as the others do."""
    return Curve(losses=(*[None] * start, *falling(start=start_loss, by=0.05, points=POINTS - start).losses))


def test_what_an_incumbent_had_not_reported_yet_is_no_limit() -> None:
    """A program that compiles for long and was kept all the same is not ended when it runs again."""
    slow, quick = [late(13)] * 4, [late(2)] * 5
    limits = known(slow, quick).limits()
    assert set(limits[:26]) == {None} and limits[30] is not None
    assert hopeless(late(13), limits) is None


def test_an_incumbent_that_reports_nothing_ends_the_rule() -> None:
    assert set(known([Curve()] * 4, FOUR).limits()) == {None}
    assert set(known(FOUR, [Curve()]).limits()) == {None}


def test_a_run_that_starts_late_has_its_time_all_the_same() -> None:
    limits = known([late(4)] * 4).limits()
    assert limits[40] is not None
    steep = Curve(losses=(*[None] * 20, *falling(start=6.9, by=0.15, points=44).losses))
    assert hopeless(steep, limits) is None
    flat = Curve(losses=(*[None] * 20, *[6.9] * 44))
    assert f"after {(20 + QUARTER + PERSISTS) / POINTS:.0%} of its time" in (hopeless(flat, limits) or "")


def test_a_kept_run_that_ends_before_its_time_counts_with_its_last_loss() -> None:
    assert known([falling(points=20)] * 4).limits(behind=1.0)[60] == pytest.approx(falling().losses[19])


def test_programs_that_do_not_run_again_still_count() -> None:
    yardstick = known(FOUR, [falling(shift=1.0)])
    assert yardstick.only({0}).limits() == yardstick.limits()
    assert set(yardstick.only({0}).means) == {0}


def test_a_run_like_the_others_goes_on_and_one_that_does_not_learn_is_ended() -> None:
    limits = known(FOUR).limits()
    assert hopeless(falling(shift=0.05), limits) is None
    reason = hopeless(Curve(losses=(6.9,) * 40), limits)
    assert reason is not None
    assert f"after {(QUARTER + PERSISTS) / POINTS:.0%} of its time" in reason and "6.9000" in reason


def test_a_run_at_half_the_pace_goes_on() -> None:
    """A model that is twice as slow may still be worth its score."""
    slow = Curve(losses=tuple(4.0 - 0.01 * place for place in range(POINTS)))
    assert hopeless(slow, known(FOUR).limits()) is None


@pytest.mark.parametrize(("length", "ended"), [(QUARTER // 2 - 1, False), (QUARTER // 2 + PERSISTS, True)])
def test_a_jump_is_forgiven(length: int, ended: bool) -> None:
    losses: list[float | None] = [*falling().losses]
    losses[30 : 30 + length] = [20.0] * length
    assert (hopeless(Curve(losses=tuple(losses)), known(FOUR).limits()) is not None) == ended


def test_the_last_point_is_not_complete() -> None:
    losses = (*falling().losses[:30], *[20.0] * (QUARTER // 2 + PERSISTS - 1))
    assert hopeless(Curve(losses=losses), known(FOUR).limits()) is None
    assert hopeless(Curve(losses=(*losses, 1.0)), known(FOUR).limits()) is not None


def test_a_loss_that_is_no_number_is_hopeless_without_limits() -> None:
    assert "not a finite number" in (hopeless(Curve(broken_at=3.0), ()) or "")


CURVES = st.builds(
    lambda losses: Curve(losses=tuple(losses)), st.lists(st.none() | st.floats(0, 30), max_size=POINTS)
)


@given(CURVES, st.lists(CURVES, min_size=4, max_size=8), st.integers(0, POINTS))
def test_once_hopeless_always_hopeless(curve: Curve, kept: list[Curve], points: int) -> None:
    """The controller that ended a run may die before it says so; the next one sees the same."""
    limits = known(kept).limits()
    if hopeless(Curve(losses=curve.losses[:points]), limits) is not None:
        assert hopeless(curve, limits) is not None


@given(st.lists(st.tuples(st.integers(0, 2), CURVES), max_size=12))
def test_the_spread_kept_up_to_date_is_the_pooled_one(runs: list[tuple[int, Curve]]) -> None:
    yardstick = Yardstick()
    for program, curve in runs:
        yardstick = yardstick.adding(program, curve)
    for place in (0, 7):
        told = [(p, [loss for loss in c.losses[: place + 1] if loss is not None]) for p, c in runs]
        found = [[median(losses) for p, losses in told if p == program and losses] for program in range(3)]
        squares = sum(variance(group) * (len(group) - 1) for group in found if len(group) > 1)
        part = yardstick.parts[place]
        assert part.df == sum(len(group) - 1 for group in found if group)
        assert part.squares == pytest.approx(squares, abs=1e-9)
        assert part.worst == max((loss for group in found for loss in group), default=None)
        assert part.silent == any(not losses for _, losses in told)
