"""When an agent that is absent is asked again, on a clock that the test moves."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest

from controller.core.errors import AgentAway, UserError
from controller.core.events import AgentAbsent
from controller.core.rules import AbsenceConfig
from controller.core.values import Change
from controller.ports import Context
from controller.store.journal import read_records
from tests.loop.effort import Effort, start
from tests.loop.slow import Quick, Slow, Step, exhausted, fails, insert
from tests.support.fakes import HandClock, Hasty

CONFIG = AbsenceConfig(retry_seconds=6, max_retry_seconds=36)


def away(retry_seconds: float | None = 0.0) -> Step:
    return fails(AgentAway("The API is overloaded.", retry_seconds))


def effort_of(
    efforts: list[Effort],
    home: Path,
    *steps: Step,
    meanwhile: Callable[[HandClock], None] = lambda clock: None,
) -> Effort:
    """`meanwhile` is called in every wait of the loop."""
    effort, clock = start(efforts, home, Slow([*steps])), HandClock()
    clock.wall = dt.datetime.now(dt.UTC)
    effort.components.clock = clock
    effort.components.stop = Hasty(clock, lambda: meanwhile(clock))
    effort.rule(absence=CONFIG)
    return effort


def asked_at(effort: Effort) -> list[float]:
    """Seconds by the hand clock between two absences: what passed before the agent was asked again."""
    absences = [r.data for r in read_records(effort.home) if isinstance(r.data, AgentAbsent)]
    times = [dt.datetime.fromisoformat(event.until) for event in absences if event.until]
    return [(later - earlier).total_seconds() for earlier, later in pairwise(times)]


def test_without_a_time_of_its_own_the_waits_double_up_to_a_limit(
    tmp_path: Path, efforts: list[Effort]
) -> None:
    effort = effort_of(efforts, tmp_path, *[away()] * 7, exhausted())
    assert "no more ideas" in effort.loop().run()
    assert asked_at(effort) == pytest.approx([12, 24, 36, 36, 36, 36], abs=1.5)


def test_a_time_of_its_own_is_kept_and_later_ones_come_no_sooner(
    tmp_path: Path, efforts: list[Effort]
) -> None:
    effort = effort_of(efforts, tmp_path, away(72.0), away(5.0), away(90.0), exhausted())
    effort.loop().run()
    assert asked_at(effort) == pytest.approx([12, 90], abs=1.5)


def test_who_came_back_is_waited_for_as_little_as_at_first(tmp_path: Path, efforts: list[Effort]) -> None:
    effort = effort_of(efforts, tmp_path, away(), away(), insert(2.9), away(), away(), exhausted())
    effort.loop().run()
    assert asked_at(effort)[0::2] == pytest.approx([12, 12], abs=1.5)


def test_a_wall_clock_that_steps_changes_no_wait(tmp_path: Path, efforts: list[Effort]) -> None:
    def step(clock: HandClock) -> None:
        if 3 <= clock.seconds <= 4:
            clock.wall += dt.timedelta(hours=1)
        elif 5 <= clock.seconds <= 6:
            clock.wall -= dt.timedelta(hours=2)

    effort = effort_of(efforts, tmp_path, away(), away(), away(), exhausted(), meanwhile=step)
    loop = effort.loop()
    loop.run()
    assert isinstance(effort.components.clock, HandClock)
    assert effort.components.clock.seconds == pytest.approx(6 + 12 + 24, abs=3)


def test_a_wait_begins_when_the_answer_fails_and_not_when_the_question_was_asked(
    tmp_path: Path, efforts: list[Effort]
) -> None:
    def long(context: Context) -> Change:
        assert isinstance(effort.components.clock, HandClock)
        effort.components.clock.sleep(1000.0)
        failed_at.append(effort.components.clock.wall)
        raise AgentAway("The API is overloaded.", 0.0)

    failed_at: list[dt.datetime] = []
    effort = effort_of(efforts, tmp_path, long, exhausted())
    effort.loop().run()
    (absence,) = [r.data for r in read_records(tmp_path) if isinstance(r.data, AgentAbsent)]
    assert absence.until is not None
    waited = dt.datetime.fromisoformat(absence.until) - failed_at[0]
    assert waited.total_seconds() == pytest.approx(6, abs=1.5)


def test_a_new_process_waits_for_what_is_left(tmp_path: Path, efforts: list[Effort]) -> None:
    effort = effort_of(efforts, tmp_path, away(72.0), exhausted())
    stop_at = effort_stop(effort, 50.0)
    with pytest.raises(Exception, match="stopped by a person"):
        effort.loop().run()
    effort.restart()
    effort.components.clock, effort.components.stop = stop_at, Hasty(stop_at)
    effort.rule(absence=CONFIG)
    began = stop_at.seconds
    effort.loop().run()
    assert stop_at.seconds - began == pytest.approx(72 - 50, abs=3)


def effort_stop(effort: Effort, seconds: float) -> HandClock:
    """Have a person stop the effort after so many seconds; return its clock."""
    clock = effort.components.clock
    assert isinstance(clock, HandClock)

    def meanwhile() -> None:
        if clock.seconds >= seconds:
            effort.components.stop.set()

    effort.components.stop = Hasty(clock, meanwhile)
    return clock


def test_an_agent_that_is_gone_ends_the_effort_unless_somebody_stands_in(
    tmp_path: Path, efforts: list[Effort]
) -> None:
    effort = effort_of(efforts, tmp_path / "alone", away(None))
    with pytest.raises(UserError, match="overloaded"):
        effort.loop().run()
    effort = effort_of(efforts, tmp_path / "two", away(None))
    effort.stand_in(Quick(insert(2.9)))
    effort.rule(absence=CONFIG.model_copy(update={"understudy_after_seconds": 600.0}))
    loop = effort.loop(experiments=2)
    loop.run()
    assert loop.state.experiments[1].proposal.stands_in_for == "slow"
    assert isinstance(effort.components.clock, HandClock)
    assert 600 <= effort.components.clock.seconds < 603
