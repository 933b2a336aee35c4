"""On real containers, killed at the most dangerous places; `make chaos` does more."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.effort import Effort, prepare
from tests.chaos.plan import Kill
from tests.chaos.runner_kills import torment_runner
from tests.chaos.torment import Tally, torment

KILLS = [
    Kill("place", "container-started-trainer"),
    Kill("training", seconds=0.1),
    Kill("place", "first-worker-done"),
    Kill("place", "branch-moved"),
]

OF_THE_RUNNER = [Kill("place", "order-carried-out-start"), Kill("place", "order-received-wait")]


@pytest.mark.engine
@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_killed_where_it_hurts_most_nothing_is_lost(tmp_path: Path, engine: None) -> None:
    prepare(tmp_path / "data")
    tally = Tally()
    data = tmp_path / "data"
    with Effort.open(tmp_path, data, "replay", budget_seconds=60.0, patience_seconds=300.0) as effort:
        torment(effort, KILLS, tally, "short", more=0)
    assert tally.violations == []
    assert tally.at_place.total() == len(KILLS) - 1, "every place was reached"
    assert tally.experiments == 1 and tally.adopted >= 1 and tally.voided == 1


@pytest.mark.engine
@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_controller_and_the_runner_it_works_through_are_killed(tmp_path: Path, engine: None) -> None:
    prepare(tmp_path / "data")
    tally, data = Tally(), tmp_path / "data"
    with Effort.open(
        tmp_path, data, "replay", through_runner=True, budget_seconds=60.0, patience_seconds=300.0
    ) as effort:
        assert effort.runner is not None
        effort.runner.revive()
        assert effort.die("start-ordered:2"), "the second start is the trainer's"
        assert effort.wrong() == []
        effort.runner.kill()
        torment_runner(effort, OF_THE_RUNNER, tally, "short", more=0)
        reasons = set(effort.story().reasons)
    assert tally.violations == []
    assert tally.at_place.total() == len(OF_THE_RUNNER), "every place was reached"
    # The controller is killed at the end, wherever it is. A start without an answer was found again, twice.
    assert reasons <= {"the controller stopped while the judge was at work"}
