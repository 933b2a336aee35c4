"""Writes the journal's events to the operational log, as JSON lines for a log collector."""

from __future__ import annotations

import math
from typing import Any

import structlog

from controller.core.events import (
    AgentAbsent,
    AgentFailed,
    AgentReturned,
    AnyEvent,
    ApiAnswered,
    ApiFailed,
    ApiRequested,
    ClaimMismatch,
    Committed,
    Decided,
    Paused,
    PreparationDropped,
    Prepared,
    ProposalRefused,
    Proposed,
    Quarantined,
    Record,
    Rehearsed,
    Resumed,
    ScoringFinished,
    SessionStarted,
    SessionStopped,
    SlotCalm,
    SlotDisturbed,
    TrainingFinished,
    TrainingStarted,
    Voided,
)
from controller.core.state import ResearchState
from controller.core.untrusted import clean_line

log = structlog.stdlib.get_logger(__name__)

_LOG_EVERY_SECONDS = 60.0


class OperationalLog:
    """Implements `ports.Observer`: one line per event, and one a minute during training."""

    def __init__(self) -> None:
        self._logged: tuple[int, float] | None = None

    def recorded(self, record: Record, state: ResearchState) -> None:
        fields = {name: _loggable(value) for name, value in _fields(record, state).items()}
        if record.experiment is not None:
            fields["experiment"] = record.experiment
        log.info(record.data.event, seq=record.seq, **fields)

    def training(self, experiment: int, elapsed: float, limit: float) -> None:
        if self._logged and self._logged[0] == experiment and elapsed - self._logged[1] < _LOG_EVERY_SECONDS:
            return
        self._logged = (experiment, elapsed)
        log.info("training", experiment=experiment, elapsed=round(elapsed, 1), limit=limit)

    def alive(self) -> None:
        """Not logged."""


def _fields(record: Record, state: ResearchState) -> dict[str, Any]:
    """What is worth a log line; the rest is in the journal."""
    match record.data:
        case SessionStarted() as event:
            return {"agent": event.agent, "budget_seconds": event.budget_seconds, "tag": state.tag}
        case SessionStopped() as event:
            return {"reason": event.reason}
        case ProposalRefused() as event:
            return {"agent": event.agent, "description": event.description, "cause": event.cause}
        case Proposed() as event:
            return {"agent": event.agent, "description": event.description, "parent": event.parent}
        case TrainingStarted() as event:
            return {"attempt": event.attempt, "container": event.container}
        case TrainingFinished(outcome=outcome):
            return {"seconds": outcome.seconds, "exit_code": outcome.exit_code, "cause": outcome.cause}
        case ScoringFinished(score=score, refusal=refusal):
            if score:
                return {"val_bpb": score.val_bpb, "seconds": score.seconds}
            return {"cause": refusal.cause, "detail": refusal.detail} if refusal else {}
        case ClaimMismatch() as event:
            return {"claim": event.claim, "score": event.score, "bound": event.bound}
        case Quarantined() as event:
            return {"val_bpb": event.score.val_bpb, "reason": event.reason}
        case Decided(decision=decision) as event:
            return {"verdict": decision.verdict, "cause": decision.cause, "frontier_bpb": event.frontier_bpb}
        case Committed() as event:
            return {"commit": event.commit}
        case Voided() as event:
            return {"attempt": event.attempt, "cause": event.cause, "reason": event.reason}
        case SlotDisturbed() as event:
            return {"reason": event.disturbance.detail, "until": event.until}
        case SlotCalm() as event:
            return {"seconds": event.seconds}
        case event:
            return _fields_of_agent(event)


def _fields_of_agent(event: AnyEvent) -> dict[str, Any]:
    match event:
        case ApiRequested():
            return {"call": event.call, "for_experiment": event.for_experiment, "model": event.model}
        case ApiAnswered():
            return {"call": event.call, "stop_reason": event.stop_reason, "cost_usd": event.cost_usd}
        case ApiFailed():
            return {"call": event.call, "status": event.status, "error": event.error}
        case Rehearsed():
            return {"for_experiment": event.for_experiment, "result": event.result}
        case Prepared():
            return {"for_experiment": event.for_experiment, "description": event.description}
        case PreparationDropped() | AgentFailed():
            return {"for_experiment": event.for_experiment, "reason": event.reason}
        case AgentAbsent():
            return {"agent": event.agent, "reason": event.reason, "until": event.until}
        case AgentReturned():
            return {"agent": event.agent, "seconds": event.seconds}
        case Paused():
            return {"why": event.why, "reason": event.reason, "by": event.by, "until": event.until}
        case Resumed():
            return {"why": event.why, "by": event.by, "seconds": event.seconds}
        case _:
            return {}


def _loggable(value: Any) -> Any:
    if isinstance(value, str):
        return clean_line(value)
    return None if isinstance(value, float) and not math.isfinite(value) else value
