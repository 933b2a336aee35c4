"""decide(): the only place where an experiment wins or loses."""

from __future__ import annotations

import math

from controller.core.model import (
    REJECT_CAUSES,
    Cause,
    Decision,
    Frontier,
    Refusal,
    RunOutcome,
    Score,
    Verdict,
)


def contends(frontier: Frontier, score: Score) -> bool:
    """Would this score be kept? If so it needs to be confirmed first."""
    return math.isfinite(score.val_bpb) and (frontier.val_bpb is None or score.val_bpb < frontier.val_bpb)


def decide(frontier: Frontier, outcome: RunOutcome, judgement: Score | Refusal | None) -> Decision:
    """Apply R7 and R9 to one finished experiment.

    `judgement` is None exactly when the run itself crashed and there was nothing to score.
    The claim inside `outcome` is never read. Raises ValueError if a score would be kept that nobody
    confirmed: the judge was not asked to, and that is our bug.
    """
    if outcome.cause is not None:
        return Decision(verdict=Verdict.CRASH, cause=outcome.cause, rule="R9: the run failed by itself")
    if judgement is None:
        raise ValueError("a run without a cause must have been judged")
    if isinstance(judgement, Refusal):
        return _refused(judgement, outcome)
    return _scored(frontier, judgement)


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


def _scored(frontier: Frontier, score: Score) -> Decision:
    if not math.isfinite(score.val_bpb) or not score.val_bpb > 0.0:
        return Decision(
            verdict=Verdict.REJECT, cause=Cause.IMPLAUSIBLE, rule="a score must be finite and above 0"
        )
    if contends(frontier, score) and not score.confirmed:
        raise ValueError("a score that would be kept must have been confirmed")
    if frontier.val_bpb is None:
        return Decision(verdict=Verdict.KEEP, rule="R8: the first verified score is the frontier")
    if score.val_bpb < frontier.val_bpb:
        return Decision(verdict=Verdict.KEEP, rule="R7: strictly better than the frontier")
    if score.val_bpb == frontier.val_bpb:
        return Decision(verdict=Verdict.DISCARD, cause=Cause.EQUAL, rule="R7: equal to the frontier")
    return Decision(verdict=Verdict.DISCARD, cause=Cause.WORSE, rule="R7: worse than the frontier")
