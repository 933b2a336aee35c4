"""Which programs are not run again, whatever the frontier."""

from __future__ import annotations

from dataclasses import replace

import pytest

from controller.core.events import Quarantined
from controller.core.experiment import Experiment
from controller.core.program.policy import digest
from controller.core.program.suspicion import Suspicion, suspected, suspicion
from controller.core.values import Cause, Decision, Refusal, Score, Verdict
from tests.support.experiments import an_experiment

PROGRAM = "model = 1\n"
SCORE = Score(val_bpb=1.0, bytes=1, tokens=1)


def ended(verdict: Verdict, cause: Cause | None, refusal: Refusal | None = None) -> Experiment:
    decision = Decision(verdict=verdict, cause=cause, rule="")
    return an_experiment(12, digest=digest(PROGRAM), decision=decision, judgement=refusal)


OOM = Refusal(cause=Cause.OOM)


@pytest.mark.parametrize(
    ("experiment", "remembered"),
    [
        (ended(Verdict.KEEP, None), False),
        (ended(Verdict.DISCARD, Cause.WORSE), False),
        (ended(Verdict.CRASH, Cause.OOM), False),
        (ended(Verdict.CRASH, Cause.OOM, OOM), False),
        (ended(Verdict.CRASH, Cause.OOM, OOM.model_copy(update={"confirming": True})), True),
        (ended(Verdict.REJECT, Cause.NON_CAUSAL), True),
        (ended(Verdict.REJECT, Cause.UNCONFIRMED), True),
    ],
)
def test_what_was_rejected_or_failed_in_its_confirmation(experiment: Experiment, remembered: bool) -> None:
    assert (suspicion(experiment) is not None) == remembered


def test_what_failed_when_it_was_scored_once_more() -> None:
    quarantine = Quarantined(experiment=12, attempt=1, reason="", score=SCORE)
    experiment = replace(ended(Verdict.CRASH, Cause.FORWARD), quarantine=quarantine)
    assert suspicion(experiment) == Suspicion(12, Verdict.CRASH, Cause.FORWARD)
    assert suspicion(replace(experiment, decision=Decision(verdict=Verdict.KEEP, rule=""))) is None


def test_the_agent_is_told_which_experiment_it_was() -> None:
    suspects = {digest(PROGRAM): Suspicion(12, Verdict.REJECT, Cause.UNCONFIRMED)}
    found = suspected("# another comment\n" + PROGRAM, suspects)
    assert found is not None and found.cause == "suspect"
    assert found.detail == "the same program was rejected in experiment 12 (unconfirmed) and is not run again"
    assert suspected("model = 2\n", suspects) is None
