"""One experiment on real containers, killed at the most dangerous places; `make chaos` does more."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.effort import Effort, prepare
from tests.chaos.plan import Kill
from tests.chaos.torment import Tally, torment

KILLS = [
    Kill("place", "container-started-trainer"),
    Kill("training", seconds=0.1),
    Kill("place", "first-worker-done"),
    Kill("place", "branch-moved"),
]


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
