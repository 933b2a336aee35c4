"""Scripts in upstream's shape that ask `kernels` for windowed attention, through real containers."""

from __future__ import annotations

import re

import pytest

from controller.app.trial import Trial
from controller.core.values import Score
from tests.dropin.conftest import Try
from tests.dropin.shapes import WINDOWED

pytestmark = [pytest.mark.engine, pytest.mark.slow]


def test_after_a_slow_start_its_schedule_ends_all_the_same(try_it: Try) -> None:
    """As where compilation takes long: what is left then is less than the estimate it has printed.

    The flat script starts at once, and has its time, too.
    """
    trial = try_it(WINDOWED.replace("START_UP_SECONDS = 0.0", "START_UP_SECONDS = 15.0"), 50.0)
    check(trial)
    trained = trial.outcome.claim.training_seconds
    assert trained is not None and trained < 0.8 * 50 - 3
    assert trial.outcome.seconds > 0.9 * 50


def check(trial: Trial) -> None:
    """Trained to the end of its schedule, saved and evaluated before the kill, and scored as it claims."""
    score, claim = trial.judgement, trial.outcome.claim
    log = (trial.folder / "run.log").read_text()
    assert isinstance(score, Score), trial.as_text()
    assert not trial.outcome.killed_at_limit and claim.num_steps is not None
    counted = claim.num_steps - 11
    assert counted > 0 and float(re.findall(r"\(([\d.]+)%\)", log)[-1]) / 100 > 1 - 3 / counted
    assert claim.val_bpb == pytest.approx(score.val_bpb, abs=0.002), log[-500:]
    assert 1 < score.val_bpb < 4
