"""decide(): the only place where an experiment wins or loses, and the checks that precede it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from controller.core.events import ClaimMismatch, Quarantined
from controller.core.experiment import Experiment
from controller.core.scoring.exposure import doubtful, exposed
from controller.core.values import (
    REJECT_CAUSES,
    Cause,
    Decision,
    Fresh,
    Frontier,
    Refusal,
    RunOutcome,
    Score,
    Verdict,
)


class Bounds(NamedTuple):
    """Limits within which a score is taken at face value. Shares of a score, not bits per byte."""

    max_gain: float
    """Largest gain in one step, as a share of the frontier's score."""
    claim_tolerance: float
    """Largest difference between the run's claim and its score, as a share of the score."""


UNIFORM_BPB = 8.0
"""The cost of guessing every byte with equal probability: log2(256)."""
AGREEMENT = 1e-3
"""Share by which two scores of one checkpoint may differ. Rounding changes single predictions by a tenth of a
nat at worst, in either direction; over the thousands of predictions in a score this averages out."""


def contends(frontier: Frontier, score: Score, margin: float = 0.0) -> bool:
    """Whether this score would be kept; if so, it needs to be confirmed first.

    `margin`: bits per byte by which it has to be better.
    """
    beaten = frontier.val_bpb is None or score.val_bpb < frontier.val_bpb - margin
    return math.isfinite(score.val_bpb) and beaten


def suspicion(frontier: Frontier, score: Score, bounds: Bounds) -> str | None:
    """Why a score that would be kept is implausible and must be measured again; None if it is plausible."""
    if not contends(frontier, score):
        return None
    if score.val_bpb <= 0.0:
        return "it is not above 0"
    if score.val_bpb > UNIFORM_BPB:
        return f"it is above {UNIFORM_BPB:g} bits per byte, which takes no model"
    if doubtful(score):
        return "it does worse on fresh rows than chance would explain"
    if frontier.val_bpb is None or frontier.val_bpb - score.val_bpb <= bounds.max_gain * frontier.val_bpb:
        return None
    gain = (frontier.val_bpb - score.val_bpb) / frontier.val_bpb
    return f"it is better than the frontier by {gain:.1%} in one step"


def claim_bound(claim: float | None, score: Score, bounds: Bounds) -> float | None:
    """The bound, in bits per byte, that a run's claim exceeds in differing from its score.

    None if the claim is within it, or if there is no claim.
    """
    bound = bounds.claim_tolerance * score.val_bpb
    if claim is None or abs(claim - score.val_bpb) <= bound:  # false for NaN
        return None
    return bound


def oddity(
    experiment: Experiment,
    frontier: Frontier,
    bounds: Bounds,
    lineage: Sequence[Fresh] = (),
    margin: float = 0.0,
) -> ClaimMismatch | Quarantined | None:
    """What to journal about a judged experiment before it is decided, each kind at most once.

    On another slot the frontier may have been measured again, or taken back, since this one was scored: a
    score that would be kept by now and was not confirmed is measured again.
    """
    number, attempt, score = experiment.number, experiment.attempt, experiment.score
    if score is None or experiment.repeats is not None:
        return None
    claim = experiment.outcome.claim.val_bpb if experiment.outcome else None
    bound = claim_bound(claim, score, bounds)
    if claim is not None and bound is not None and experiment.claim_mismatch is None:
        return ClaimMismatch(
            experiment=number, attempt=attempt, claim=claim, score=score.val_bpb, bound=bound
        )
    reason = suspicion(frontier, score, bounds)
    if reason is None and contends(frontier, score, margin) and not score.confirmed:
        reason = "what has to be beaten has risen since it was scored"
    if reason is not None and experiment.quarantine is None and exposed(lineage, score) is None:
        return Quarantined(experiment=number, attempt=attempt, reason=reason, score=score)
    return None


def decide(
    frontier: Frontier,
    outcome: RunOutcome,
    judgement: Score | Refusal | None,
    quarantined: Score | None = None,
    lineage: Sequence[Fresh] = (),
    *,
    is_replicate: bool = False,
    margin: float = 0.0,
) -> Decision:
    """Apply R7 and R9 to one finished experiment.

    `judgement` is None exactly when there was nothing to score: the run crashed, or was ended early.
    `quarantined` is an earlier, implausible score of the same checkpoint. `lineage` is how the kept
    experiments did on fresh rows, the first one first. `margin`: bits per byte by which a keep has to be
    better. The claim inside `outcome` is never read. A score that was never confirmed is not kept; if it is
    the first of all, ValueError is raised, since then the judge was not asked to confirm it, which is a bug
    of ours.
    """
    if outcome.cause is Cause.HOPELESS:
        rule = "R7: it was ended early as hopeless, and has no score"
        return Decision(verdict=Verdict.DISCARD, cause=Cause.HOPELESS, rule=rule)
    if outcome.cause is not None:
        return Decision(verdict=Verdict.CRASH, cause=outcome.cause, rule="R9: the run failed by itself")
    if judgement is None:
        raise ValueError("a run without a cause must have been judged")
    if isinstance(judgement, Refusal):
        return _refused(judgement, outcome)
    if (reason := exposed(lineage, judgement, quarantined)) is not None:
        return Decision(verdict=Verdict.REJECT, cause=Cause.EXPOSED, rule=reason)
    if quarantined is not None and not _agree(quarantined, judgement):
        return Decision(
            verdict=Verdict.REJECT,
            cause=Cause.IMPLAUSIBLE,
            rule=f"scored again, {quarantined.val_bpb:.6f} became {judgement.val_bpb:.6f}",
        )
    return _replicated(judgement) if is_replicate else _scored(frontier, judgement, margin)


def killed(rule: str) -> Decision:
    """What becomes of an experiment that a person has killed: no score, and nothing is learnt of it."""
    return Decision(verdict=Verdict.DISCARD, cause=Cause.KILLED, rule=rule)


def _agree(first: Score, second: Score) -> bool:
    return math.isclose(first.val_bpb, second.val_bpb, rel_tol=AGREEMENT)


def _refused(refusal: Refusal, outcome: RunOutcome) -> Decision:
    if refusal.cause is Cause.NO_CHECKPOINT and outcome.killed_at_limit:
        return Decision(
            verdict=Verdict.CRASH, cause=Cause.TIMEOUT, rule="R4: nothing was saved before the kill"
        )
    if refusal.cause in REJECT_CAUSES:
        return Decision(
            verdict=Verdict.REJECT, cause=refusal.cause, rule="the run broke the rules of the game"
        )
    return Decision(verdict=Verdict.CRASH, cause=refusal.cause, rule="R9: the checkpoint could not be scored")


def _replicated(score: Score) -> Decision:
    if not _is_possible(score):
        return _IMPLAUSIBLE
    return Decision(
        verdict=Verdict.DISCARD, cause=Cause.REPLICATE, rule="R7: a replicate measures chance and is not kept"
    )


_IMPLAUSIBLE = Decision(
    verdict=Verdict.REJECT, cause=Cause.IMPLAUSIBLE, rule="a score must be finite and above 0"
)


def _is_possible(score: Score) -> bool:
    return math.isfinite(score.val_bpb) and score.val_bpb > 0.0


def _scored(frontier: Frontier, score: Score, margin: float) -> Decision:
    if not _is_possible(score):
        return _IMPLAUSIBLE
    if contends(frontier, score, margin) and not score.confirmed and frontier.val_bpb is None:
        raise ValueError("a score that would be kept must have been confirmed")
    if contends(frontier, score, margin) and not score.confirmed:
        rule = "R7: what has to be beaten rose twice since it was scored, and it was never confirmed"
        return Decision(verdict=Verdict.DISCARD, cause=Cause.WORSE, rule=rule)
    if frontier.val_bpb is None:
        return Decision(verdict=Verdict.KEEP, rule="R8: the first verified score is the frontier")
    if contends(frontier, score, margin):
        by = f" by more than {margin:.6f}" if margin else ""
        return Decision(verdict=Verdict.KEEP, rule=f"R7: strictly better than the frontier{by}")
    if score.val_bpb < frontier.val_bpb:
        rule = f"R7: better than the frontier, but not by more than {margin:.6f}"
        return Decision(verdict=Verdict.DISCARD, cause=Cause.MARGIN, rule=rule)
    if score.val_bpb == frontier.val_bpb:
        return Decision(verdict=Verdict.DISCARD, cause=Cause.EQUAL, rule="R7: equal to the frontier")
    return Decision(verdict=Verdict.DISCARD, cause=Cause.WORSE, rule="R7: worse than the frontier")
