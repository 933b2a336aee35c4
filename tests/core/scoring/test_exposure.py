"""Whether what scores say about fresh rows is taken for knowledge of scored ones."""

from __future__ import annotations

import numpy as np
import pytest

from controller.core.decision import Bounds, decide, oddity
from controller.core.events import Quarantined
from controller.core.scoring.exposure import exposed, lineage
from controller.core.values import Cause, Fresh, Frontier, RunOutcome, Score, Verdict
from tests.attacks.lineages import honest, knowing, synthetic
from tests.support.experiments import an_experiment

RAN = RunOutcome(seconds=300.0, exit_code=0)
BASE = Frontier(commit="c0", val_bpb=2.2, experiment=0)


def seen(gap: float, p_value: float = 0.5, error: float = 0.05, scored: float = 0.015) -> Fresh:
    return Fresh(rows=24, left=5000, gap=gap, fresh_error=error, scored_error=scored, p_value=p_value)


def score(fresh: Fresh | None, val_bpb: float = 2.0) -> Score:
    return Score(val_bpb=val_bpb, bytes=1000, tokens=400, fresh=fresh)


FIRST = seen(0.0, error=0.02)


@pytest.mark.parametrize(
    ("ancestors", "fresh", "told"),
    [
        ([], None, False),
        ([], seen(0.0), False),
        ([], seen(0.15, p_value=2e-3), False),  # chance, once in five hundred
        ([], seen(0.9, p_value=1 / 40_001), True),
        ([FIRST], seen(0.9, p_value=1 / 40_001), True),
        ([FIRST], seen(0.1), False),
        ([FIRST, *[seen(0.16)] * 3], seen(0.16), False),
        ([FIRST, *[seen(0.16)] * 30], seen(0.16), True),  # each by itself may be chance, all together not
        ([FIRST, *[seen(0.01)] * 500], seen(0.01), False),  # the scored rows may be easier by that much
        ([FIRST, *[seen(-0.3)] * 30], seen(-0.3), False),  # worse on scored rows: nothing anybody could want
        ([seen(0.16, error=0.02), *[seen(0.16)] * 30], seen(0.16), False),  # as at the first, honest, scoring
    ],
)
def test_exposed(ancestors: list[Fresh], fresh: Fresh | None, told: bool) -> None:
    assert (exposed(ancestors, score(fresh)) is not None) == told


def test_the_limit_falls_with_each_scoring_and_stays_above_what_the_scored_rows_explain() -> None:
    limits = []
    for number in (1, 4, 16, 64, 1024):
        found = lineage([FIRST, *[seen(0.0)] * number], 2.0)
        assert found is not None and found.scores == number
        limits.append(found.limit)
    assert limits == sorted(limits, reverse=True)
    assert limits[-1] > 0.02 + 4 * 0.012  # the slack, and four standard deviations of the offset


def test_a_run_that_knows_scored_rows_is_rejected_with_the_figures() -> None:
    found = decide(BASE, RAN, score(seen(0.9, p_value=1 / 40_001)), None, [FIRST])
    assert (found.verdict, found.cause) == (Verdict.REJECT, Cause.EXPOSED)
    assert "0.900 bits per byte" in found.rule


def test_a_doubtful_score_is_measured_again_and_both_gaps_count() -> None:
    doubted = score(seen(0.3, p_value=3e-4, error=0.08))
    experiment = an_experiment(1, outcome=RAN, judgement=doubted)
    found = oddity(experiment, BASE, Bounds(max_gain=0.5, claim_tolerance=0.15), [FIRST])
    assert isinstance(found, Quarantined) and "fresh rows" in found.reason
    again = score(seen(0.3, p_value=5e-4, error=0.08))
    decision = decide(BASE, RAN, again, doubted, [FIRST])
    assert decision.cause is Cause.EXPOSED and "measured twice" in decision.rule
    luck = score(seen(0.02, p_value=0.3, error=0.08)).model_copy(update={"confirmed": True})
    assert decide(BASE, RAN, luck, doubted, [FIRST]).verdict is Verdict.KEEP


def test_honest_efforts_raise_no_alarm() -> None:
    found = honest(synthetic(np.random.default_rng(1)), lineages=2, experiments=100, seed=7)
    assert found.alarms == 0 and found.kept > 3


def test_efforts_that_know_a_third_of_the_scored_rows_are_found_at_once() -> None:
    assert knowing(synthetic(np.random.default_rng(1)), 0.35, lineages=3, seed=8).at_once == 1.0
