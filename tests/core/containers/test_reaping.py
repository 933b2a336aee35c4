"""What is due and what is still of use."""

from __future__ import annotations

import pytest

from controller.core.containers.reaping import Deadlines, Found, to_kill, to_remove

OURS, THEIRS = ("home", "7"), ("home", "8")


@pytest.mark.parametrize(
    ("due", "running", "killed"),
    [(9.0, True, True), (10.0, True, True), (11.0, True, False), (9.0, False, False)],
)
def test_what_runs_past_its_deadline_is_killed(due: float, running: bool, killed: bool) -> None:
    assert to_kill([Found("a", OURS, due, running)], 10.0) == (["a"] if killed else [])


@pytest.mark.parametrize(
    ("found", "running", "removed"),
    [
        (Found("a", OURS, 9.0), set(), True),
        (Found("a", OURS, 11.0), set(), False),
        (Found("a", OURS, 9.0, running=True), set(), False),
        (Found("a", OURS, 9.0), {OURS}, False),  # its holder runs: somebody may still want its result
        (Found("a", OURS, 9.0), {THEIRS, ("other home", "7")}, True),
    ],
)
def test_what_is_over_goes_once_nothing_of_its_experiment_runs(
    found: Found, running: set[tuple[str, str]], removed: bool
) -> None:
    assert to_remove([found], running, 10.0) == (["a"] if removed else [])


WALL = 1_800_000_000.0


@pytest.mark.parametrize("step", [0.0, 3600.0, -3600.0])
def test_setting_the_wall_clock_changes_no_deadline_that_was_seen(step: float) -> None:
    deadlines = Deadlines()
    deadlines.remember("a", f"{WALL + 60}", WALL, 10.0)
    assert "a" in deadlines
    deadlines.remember("a", f"{WALL + 60}", WALL + step + 5, 15.0)
    assert deadlines.of("a", f"{WALL + 60}", WALL + step + 5, 15.0) == 70.0
    deadlines.forget_all_but(["b"])
    assert "a" not in deadlines


def test_a_life_that_began_late_may_last_as_long_as_any() -> None:
    deadlines = Deadlines()
    deadlines.remember("a", f"{WALL + 60}", WALL, 10.0, late=7.5)
    deadlines.remember("b", f"{WALL + 60}", WALL, 10.0, late=-7.5)  # the engine's own clock was set
    assert (deadlines.of("a", "", WALL, 10.0), deadlines.of("b", "", WALL, 10.0)) == (77.5, 70.0)


def test_what_is_not_remembered_goes_by_its_label_and_without_a_number_is_due() -> None:
    deadlines = Deadlines()
    assert deadlines.of("a", f"{WALL + 60}", WALL, 10.0) == 70.0 and "a" not in deadlines
    assert all(deadlines.of("a", label, WALL, 10.0) <= 10.0 for label in ("", "soon", "nan", "inf"))
