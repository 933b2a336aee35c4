"""TIME_BUDGET, for a script whose own clock starts late. Time passes by being set."""

import itertools
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

import prepare

STEPS_NOT_COUNTED = 11
STEP_TOKENS = 1 << 19


@dataclass
class Run:
    """A run that upstream's loop is played in."""

    left: float
    budget: prepare._TimeBudget

    def pass_time(self, seconds: float) -> None:
        self.left -= seconds

    def train(
        self, startup: float, step_seconds: Callable[[int], float], uncounted: float = 0.0
    ) -> tuple[list[float], float]:
        """Progress in each counted step, and the seconds of its clock. `uncounted` pass between two steps."""
        self.budget.hand_out(STEP_TOKENS)
        self.pass_time(startup)
        clock, progress = 0.0, []
        for step in itertools.count():
            assert self.left > 0, "killed in its training"
            seconds = step_seconds(step)
            self.pass_time(0.9 * seconds)
            self.budget.hand_out(STEP_TOKENS)
            if step > STEPS_NOT_COUNTED:
                progress.append(clock / self.budget)
            self.pass_time(0.1 * seconds)
            if step >= STEPS_NOT_COUNTED:
                clock += seconds
            if step >= STEPS_NOT_COUNTED and clock >= self.budget:
                return progress, clock
            self.pass_time(uncounted)
        raise AssertionError


@pytest.fixture
def run_of(public_data: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[float], Run]:
    def start(wall: float) -> Run:
        monkeypatch.setattr(prepare, "WALL_SECONDS", wall)
        run = Run(wall, prepare._TimeBudget(0.8 * wall - 3))
        monkeypatch.setattr(prepare, "time_left", lambda: run.left)
        return run

    return start


# --- the schedule of a whole run ---


@pytest.mark.parametrize(
    ("wall", "startup", "step", "uncounted"),
    [
        (300, 3, 0.3, 0.0),
        (300, 75, 0.3, 0.001),  # upstream's file on an H200
        (300, 150, 0.3, 0.0),
        (300, 200, 3.0, 0.0),
        (300, 10, 0.3, 0.03),
        (40, 5, 0.01, 0.001),
        (20, 3, 0.02, 0.0),
        (20, 12, 0.1, 0.0),
    ],
)
def test_a_schedule_ends_in_time_whatever_start_up_took(
    run_of: Callable[[float], Run], wall: float, startup: float, step: float, uncounted: float
) -> None:
    run = run_of(wall)
    progress, clock = run.train(startup, lambda _: step, uncounted)
    assert 1.0 <= run.left <= 1.0 + 0.02 * wall + 2 * step, "enough to save, and no more than is needed"
    one = step / clock
    assert progress[0] < 3 * one and progress[-1] > 1 - 2 * one and max(progress) <= 1
    steps = [after - before for before, after in itertools.pairwise(progress)]
    assert min(steps) > 0 and max(steps) < 3 * one + 0.02 * uncounted, "it does not jump"


def test_a_fast_start_gets_more_than_the_estimate(run_of: Callable[[float], Run]) -> None:
    run = run_of(300)
    estimate = float(run.budget)
    _, clock = run.train(5, lambda _: 0.3)
    assert clock > 280 > estimate == 237


@pytest.mark.parametrize("hiccup", [0.5, 5.0, 20.0])
def test_a_hiccup_takes_what_it_took_and_little_more(run_of: Callable[[float], Run], hiccup: float) -> None:
    run = run_of(300)
    progress, _ = run.train(60, lambda step: hiccup if step == 200 else 0.3)
    assert 1.0 <= run.left <= 10
    assert progress[-1] > 0.99
    steps = [after - before for before, after in itertools.pairwise(progress)]
    assert min(steps) >= 0 and max(steps) < 1.5 * hiccup / 230


def test_time_that_its_clock_does_not_count_shortens_it(run_of: Callable[[float], Run]) -> None:
    """An evaluation between steps, say."""
    run = run_of(300)
    progress, clock = run.train(10, lambda _: 1.0, uncounted=0.5)
    assert clock == pytest.approx((300 - 10 - 11 * 1.5) / 1.5, abs=10)
    assert progress[-1] > 0.98


# --- the number ---


@pytest.fixture
def training(run_of: Callable[[float], Run]) -> Run:
    """A run in which ten seconds and two batches are over."""
    run = run_of(100)
    for _ in range(2):
        run.budget.hand_out(STEP_TOKENS)
    run.pass_time(10)
    return run


def test_it_is_an_estimate_until_training_has_begun(run_of: Callable[[float], Run]) -> None:
    run = run_of(100)
    run.pass_time(10)
    run.budget.hand_out(STEP_TOKENS)  # fetched in advance
    assert 5 / run.budget == 5 / 77 and not run.budget <= 9
    assert (float(run.budget), int(run.budget), f"{run.budget:.0f}s", str(run.budget)) == (
        77,
        77,
        "77s",
        "77.0",
    )


def test_a_clock_finds_what_it_will_read_at_the_end(training: Run) -> None:
    at_the_end = 4 + 90 - 2.5  # less the margin
    assert 4.0 / training.budget == pytest.approx(4 / at_the_end, rel=1e-9)
    assert training.budget - 4.0 == pytest.approx(at_the_end - 4, abs=1e-9)
    assert f"{training.budget:.1f}" == f"{at_the_end:.1f}"


@pytest.mark.parametrize("constant", [0, 0.0, 11, 60, 300, 1_700_000_000.0])
def test_what_no_clock_can_read_leaves_it_alone(training: Run, constant: float) -> None:
    assert constant / training.budget == constant / 77
    assert (training.budget > constant) is (constant < 77)
    assert (constant <= training.budget) is (constant <= 77)


def test_both_kinds_of_condition_end_a_training(training: Run) -> None:
    clock, budget = 5.0, training.budget
    assert not clock >= budget and not clock > budget and clock < budget and clock <= budget
    training.pass_time(88)
    assert clock >= budget and clock > budget and not clock < budget and not clock <= budget
    assert clock / budget == 1.0


def test_arithmetic(training: Run) -> None:
    budget: float = training.budget
    assert isinstance(budget, float)
    assert (budget + 1, 1 + budget, budget - 1, 100 - budget) == (78, 78, 76, 23)
    assert (2 * budget, budget * 0.5, budget / 7, max(0, budget), round(budget)) == (154, 38.5, 11, 77, 77)
    assert json.loads(json.dumps({"budget": budget})) == {"budget": 77}
    assert math.floor(budget) == 77 and budget == 77 and len({budget, 77.0}) == 1


def test_numpy_and_torch(training: Run) -> None:
    budget = training.budget
    assert np.float64(2) * budget == 154 and (np.array([77.0, 7.0]) / budget)[0] == 1
    assert np.float64(4) / budget == pytest.approx(4 / 91.5, rel=1e-9)
    assert np.float32(4) < budget and not np.float64(4) >= budget
    assert (torch.tensor(77.0) / budget).item() == 1, "torch takes the estimate"
    assert torch.tensor(budget).item() == 77
