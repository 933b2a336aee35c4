"""The rules of keep and discard, as a table."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.core.decision import Bounds, claim_bound, contends, decide, oddity, suspicion
from controller.core.events import Quarantined
from controller.core.experiment import Experiment
from controller.core.values import REJECT_CAUSES, Cause, Claim, Frontier, Refusal, RunOutcome, Score, Verdict
from tests.support.experiments import a_proposal, an_experiment

FINISHED = RunOutcome(seconds=300, exit_code=0)
KILLED = RunOutcome(seconds=300, exit_code=137, killed_at_limit=True)
BASE = Frontier(commit="a", val_bpb=1.0)


def score(val_bpb: float) -> Score:
    return Score(val_bpb=val_bpb, bytes=1, tokens=1, confirmed=True)


@pytest.mark.parametrize(
    ("frontier", "val_bpb", "verdict", "cause"),
    [
        (None, 9.0, Verdict.KEEP, None),
        (1.0, 0.9, Verdict.KEEP, None),
        (1.0, math.nextafter(1.0, 0.0), Verdict.KEEP, None),
        (1.0, 1.0, Verdict.DISCARD, Cause.EQUAL),
        (1.0, 1.1, Verdict.DISCARD, Cause.WORSE),
        (1.0, math.nan, Verdict.REJECT, Cause.IMPLAUSIBLE),
        (1.0, math.inf, Verdict.REJECT, Cause.IMPLAUSIBLE),
        (1.0, -math.inf, Verdict.REJECT, Cause.IMPLAUSIBLE),
        (1.0, 0.0, Verdict.REJECT, Cause.IMPLAUSIBLE),
        (1.0, -0.5, Verdict.REJECT, Cause.IMPLAUSIBLE),
        (None, math.nan, Verdict.REJECT, Cause.IMPLAUSIBLE),
    ],
)
def test_a_score_against_the_frontier(
    frontier: float | None, val_bpb: float, verdict: Verdict, cause: Cause | None
) -> None:
    decision = decide(Frontier(commit="a", val_bpb=frontier), FINISHED, score(val_bpb))
    assert (decision.verdict, decision.cause) == (verdict, cause)


@pytest.mark.parametrize(
    ("frontier", "val_bpb", "expected"),
    [
        (None, 9.0, True),
        (None, math.nan, False),
        (1.0, 0.9, True),
        (1.0, 0.0, True),  # no score at all, but whoever made it may be convicted
        (1.0, 1.0, False),
        (1.0, 1.1, False),
        (1.0, math.nan, False),
        (1.0, -math.inf, False),
    ],
)
def test_what_contends(frontier: float | None, val_bpb: float, expected: bool) -> None:
    assert contends(Frontier(commit="a", val_bpb=frontier), score(val_bpb)) is expected


def test_what_nobody_confirmed_is_never_kept() -> None:
    unconfirmed = Score(val_bpb=0.9, bytes=1, tokens=1)
    with pytest.raises(ValueError, match="confirmed"):
        decide(Frontier(commit="a"), FINISHED, unconfirmed)
    assert decide(BASE, FINISHED, unconfirmed).verdict is Verdict.DISCARD
    worse = unconfirmed.model_copy(update={"val_bpb": 1.1})
    assert decide(BASE, FINISHED, worse).verdict is Verdict.DISCARD


BOUNDS = Bounds(max_gain=0.1, claim_tolerance=0.05)


def judged(val_bpb: float, confirmed: bool, **known: Any) -> Experiment:
    found = Score(val_bpb=val_bpb, bytes=1, tokens=1, confirmed=confirmed)
    return an_experiment(3, attempt=1, outcome=FINISHED, judgement=found, **known)


def test_what_would_be_kept_by_now_is_measured_again() -> None:
    """With several slots the frontier may rise between a score and its verdict."""
    raised = oddity(judged(0.99, confirmed=False), BASE, BOUNDS)
    assert isinstance(raised, Quarantined) and "risen" in raised.reason
    assert oddity(judged(0.99, confirmed=True), BASE, BOUNDS) is None
    assert oddity(judged(0.99, confirmed=False), BASE, BOUNDS, margin=0.02) is None
    assert oddity(judged(0.99, confirmed=False, quarantine=raised), BASE, BOUNDS) is None


def test_a_replicate_is_never_kept_and_never_odd() -> None:
    better = Score(val_bpb=0.1, bytes=1, tokens=1, confirmed=True)
    verdict = decide(BASE, FINISHED, better, is_replicate=True)
    assert (verdict.verdict, verdict.cause) == (Verdict.DISCARD, Cause.REPLICATE)
    assert decide(BASE, FINISHED, score(math.nan), is_replicate=True).cause is Cause.IMPLAUSIBLE
    again = a_proposal(3, repeats=0)
    assert oddity(judged(0.1, confirmed=False, proposal=again), BASE, BOUNDS) is None


@pytest.mark.parametrize(
    ("val_bpb", "verdict", "cause"),
    [
        (0.94, Verdict.KEEP, None),
        (0.95, Verdict.DISCARD, Cause.MARGIN),
        (0.99, Verdict.DISCARD, Cause.MARGIN),
        (1.0, Verdict.DISCARD, Cause.EQUAL),
        (1.01, Verdict.DISCARD, Cause.WORSE),
    ],
)
def test_a_margin(val_bpb: float, verdict: Verdict, cause: Cause | None) -> None:
    found = decide(BASE, FINISHED, score(val_bpb), margin=0.05)
    assert (found.verdict, found.cause) == (verdict, cause)
    assert contends(BASE, score(val_bpb), margin=0.05) is (verdict is Verdict.KEEP)


@pytest.mark.parametrize(
    ("frontier", "val_bpb", "reason"),
    [
        (1.0, 0.95, None),
        (1.0, 0.9, None),
        (1.0, 0.89, "11.0%"),
        (1.0, 0.0, "not above 0"),
        (None, -0.5, "not above 0"),
        (None, 1.0, None),
        (None, 8.0, None),
        (None, 8.1, "above 8"),
        (9.0, 8.1, "above 8"),
        (1.0, 8.1, None),  # not kept anyway
        (1.0, 1.1, None),
        (1.0, math.nan, None),
    ],
)
def test_what_is_measured_twice(frontier: float | None, val_bpb: float, reason: str | None) -> None:
    found = suspicion(Frontier(commit="a", val_bpb=frontier), score(val_bpb), BOUNDS)
    assert (found is None) == (reason is None)
    assert reason is None or reason in str(found)


@pytest.mark.parametrize(
    ("first", "second", "verdict", "cause"),
    [
        (0.5, 0.5, Verdict.KEEP, None),
        (0.5, 0.5004, Verdict.KEEP, None),
        (0.5, 0.501, Verdict.REJECT, Cause.IMPLAUSIBLE),
        (0.5, 0.499, Verdict.REJECT, Cause.IMPLAUSIBLE),
        (0.5, 1.5, Verdict.REJECT, Cause.IMPLAUSIBLE),
        (0.0, 0.0, Verdict.REJECT, Cause.IMPLAUSIBLE),
        (-1.0, -1.0, Verdict.REJECT, Cause.IMPLAUSIBLE),
        (8.5, 8.5, Verdict.DISCARD, Cause.WORSE),
        (0.5, math.nan, Verdict.REJECT, Cause.IMPLAUSIBLE),
    ],
)
def test_a_second_score_must_bear_out_the_first(
    first: float, second: float, verdict: Verdict, cause: Cause | None
) -> None:
    decision = decide(BASE, FINISHED, score(second), quarantined=score(first))
    assert (decision.verdict, decision.cause) == (verdict, cause)


def test_a_second_scoring_may_find_what_the_first_one_missed() -> None:
    decision = decide(BASE, FINISHED, Refusal(cause=Cause.NON_CAUSAL), quarantined=score(0.5))
    assert (decision.verdict, decision.cause) == (Verdict.REJECT, Cause.NON_CAUSAL)


@pytest.mark.parametrize(
    ("claim", "bound"),
    [
        (None, None),
        (2.0, None),
        (2.09, None),
        (1.91, None),
        (2.2, 0.1),
        (1.8, 0.1),
        (0.1, 0.1),
        (0.0, 0.1),
        (-2.0, 0.1),
        (1e300, 0.1),
        (math.nan, 0.1),
        (math.inf, 0.1),
        (-math.inf, 0.1),
    ],
)
def test_a_claim_that_is_too_far_from_the_score(claim: float | None, bound: float | None) -> None:
    assert claim_bound(claim, score(2.0), BOUNDS) == (None if bound is None else pytest.approx(bound))


@pytest.mark.parametrize("cause", list(Cause))
def test_a_refusal_is_a_reject_if_it_broke_the_rules_and_a_crash_otherwise(cause: Cause) -> None:
    decision = decide(BASE, FINISHED, Refusal(cause=cause))
    assert decision.verdict is (Verdict.REJECT if cause in REJECT_CAUSES else Verdict.CRASH)
    assert decision.cause is cause


def test_nothing_saved_before_the_kill_is_a_timeout() -> None:
    assert decide(BASE, KILLED, Refusal(cause=Cause.NO_CHECKPOINT)).cause is Cause.TIMEOUT
    assert decide(BASE, FINISHED, Refusal(cause=Cause.NO_CHECKPOINT)).cause is Cause.NO_CHECKPOINT


def test_a_run_killed_at_the_limit_is_scored_by_what_it_saved() -> None:
    assert decide(BASE, KILLED, score(0.9)).verdict is Verdict.KEEP


def test_a_crash_is_a_crash_whatever_was_measured() -> None:
    crashed = RunOutcome(seconds=1, exit_code=1, cause=Cause.OOM)
    decision = decide(BASE, crashed, score(0.1))
    assert (decision.verdict, decision.cause) == (Verdict.CRASH, Cause.OOM)


def test_a_run_that_was_ended_early_is_discarded_whatever_was_measured() -> None:
    ended = RunOutcome(seconds=90, exit_code=137, cause=Cause.HOPELESS)
    for judgement in (None, score(0.1)):
        decision = decide(BASE, ended, judgement)
        assert (decision.verdict, decision.cause) == (Verdict.DISCARD, Cause.HOPELESS)


def test_a_good_run_must_have_been_judged() -> None:
    with pytest.raises(ValueError, match="judged"):
        decide(BASE, FINISHED, None)


@given(st.floats(), st.floats(allow_nan=False, allow_infinity=False, min_value=0.1))
def test_a_claim_decides_nothing(claimed: float, measured: float) -> None:
    claiming = FINISHED.model_copy(update={"claim": Claim(val_bpb=claimed)})
    assert decide(BASE, claiming, score(measured)) == decide(BASE, FINISHED, score(measured))
