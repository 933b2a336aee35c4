"""What is due and what is still of use."""

from __future__ import annotations

import pytest

from controller.core.reaping import Found, to_kill, to_remove

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
