"""Validation against hold-out, of kept experiments alone: nobody may choose experiments by the second."""

from __future__ import annotations

from controller.core.experiment import Experiment
from controller.core.values import Verdict

BothScores = tuple[int, float, float, float]
"""Number, val_bpb, the same on fresh rows, and the standard error of that."""


def both_scores(experiment: Experiment) -> BothScores | None:
    """None for what was not kept, or not scored on fresh rows."""
    score = experiment.score
    if experiment.verdict is not Verdict.KEEP or score is None or score.fresh is None:
        return None
    validation, fresh = score.val_bpb, score.on_fresh_rows
    return None if fresh is None else (experiment.number, validation, fresh, score.fresh.fresh_error)
