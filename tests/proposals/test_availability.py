"""When an agent that is away is asked again, on a clock that the test moves."""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Iterator
from pathlib import Path

import pytest

from controller.core.errors import AgentAway, AgentError, UserError
from controller.core.state import fold
from controller.proposals.availability import MAX_ERRORS, AbsenceConfig, Attendance
from controller.store.effort import Chronicle
from controller.store.journal import Journal, read_records
from tests.support.fakes import HandClock, Silent

CONFIG = AbsenceConfig(retry_seconds=60, max_retry_seconds=3600, understudy_after_seconds=600)


class Life:
    """An agent's attendance in one process; `again` is the next process, on the same journal."""

    def __init__(self, home: Path, clock: HandClock) -> None:
        self.clock = clock
        self.home = home
        self.journal = Journal(home, clock)
        self.chronicle = Chronicle(self.journal, fold(read_records(home)), Silent())
        self.attendance = Attendance("claude", self.chronicle, clock, CONFIG)

    def again(self) -> Life:
        self.journal.close()
        return Life(self.home, self.clock)

    def away(self, retry_seconds: float | None = 0.0) -> None:
        self.attendance.failed(AgentAway("The API is overloaded.", retry_seconds), 1, costly=True)


@pytest.fixture
def life(tmp_path: Path) -> Iterator[Life]:
    life = Life(tmp_path, HandClock())
    yield life
    life.journal.close()


def test_without_a_time_of_its_own_the_waits_double_up_to_an_hour(life: Life) -> None:
    waits = []
    for _ in range(9):
        life.away()
        waits.append(life.attendance.retry_in)
        life.clock.sleep(waits[-1])
    assert waits == [60, 120, 240, 480, 960, 1920, 3600, 3600, 3600]


def test_a_time_of_its_own_is_kept_and_no_vain_question_comes_sooner(life: Life) -> None:
    life.away(7200.0)
    assert life.attendance.retry_in == 7200
    life.clock.sleep(7200)
    assert life.attendance.retry_in == 0
    life.away(5.0)
    assert life.attendance.retry_in == 120


def test_who_came_back_is_waited_for_as_little_as_at_first(life: Life) -> None:
    for _ in range(4):
        life.away()
    life.attendance.returned()
    life.away()
    assert life.attendance.retry_in == 60


def test_a_new_process_waits_for_what_is_left(life: Life) -> None:
    life.away(7200.0)
    life.clock.sleep(5000)
    again = life.again()
    assert again.attendance.absent
    assert again.attendance.retry_in == pytest.approx(2200, abs=1)
    assert again.attendance.understudy_in == 0
    again.away(0.0)
    assert again.attendance.retry_in == 120
    again.journal.close()


def test_a_wall_clock_that_steps_changes_no_wait(life: Life) -> None:
    life.away(600.0)
    for hours in (1, -2):
        life.clock.wall += dt.timedelta(hours=hours)
        assert life.attendance.retry_in == 600
        assert life.attendance.understudy_in == 600
    life.clock.seconds += 600
    assert life.attendance.retry_in == 0


def test_who_will_never_answer_leaves_hope_only_with_an_understudy(life: Life) -> None:
    life.away(None)
    assert life.attendance.retry_in == math.inf
    life.attendance.require_hope(understudy=True)
    with pytest.raises(UserError, match="overloaded"):
        life.attendance.require_hope(understudy=False)
    again = life.again()  # somebody changed something
    assert again.attendance.retry_in == 0
    again.attendance.require_hope(understudy=False)
    again.journal.close()


def test_a_cheap_agent_may_err_at_once_again_but_not_for_ever(life: Life) -> None:
    for _ in range(MAX_ERRORS):
        life.attendance.require_hope(understudy=False)
        life.attendance.failed(AgentError("nonsense"), 1, costly=False)
        assert life.attendance.retry_in == 0
    with pytest.raises(UserError, match="times in a row"):
        life.attendance.require_hope(understudy=False)
