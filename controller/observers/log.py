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
    CertificateDecided,
    CertificateOpened,
    CertificateSettled,
    ClaimMismatch,
    Committed,
    Decided,
    ExperimentMoved,
    ExperimentOpened,
    Paused,
    ProposalAsked,
    ProposalDropped,
    ProposalMade,
    ProposalRebased,
    ProposalRefused,
    ProposalRehearsed,
    Quarantined,
    Record,
    Resumed,
    RolledBack,
    ScoringFinished,
    SessionStarted,
    SessionStopped,
    SlotDisturbed,
    SlotReady,
    Steered,
    SteeringRefused,
    TrainingFinished,
    TrainingStarted,
    Voided,
)
from controller.core.experiment import Experiment
from controller.core.state import ResearchState
from controller.core.untrusted import clean_line

log = structlog.stdlib.get_logger(__name__)

_LOG_EVERY_SECONDS = 60.0


class OperationalLog:
    """Implements `ports.Observer`: one line per event, and one a minute during training."""

    def __init__(self) -> None:
        self._logged: dict[int, float] = {}
        """By experiment: at how many seconds of its training a line was written."""

    def recorded(self, record: Record, state: ResearchState) -> None:
        fields = {name: _loggable(value) for name, value in _fields(record, state).items()}
        if record.experiment is not None:
            fields["experiment"] = record.experiment
        log.info(record.data.event, seq=record.seq, **fields)
        self._logged = {
            number: at for number, at in self._logged.items() if number in map(_number, state.open)
        }

    def training(self, experiment: int, elapsed: float, limit: float) -> None:
        if 0 <= elapsed - self._logged.get(experiment, -_LOG_EVERY_SECONDS) < _LOG_EVERY_SECONDS:
            return
        self._logged[experiment] = elapsed
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
        case ExperimentOpened() as event:
            made = state.experiments[event.experiment].proposal
            return {
                "proposal": event.proposal,
                "slot": event.slot,
                "agent": made.agent,
                "description": made.description,
                "parent": event.parent,
            }
        case ExperimentMoved() as event:
            return {"slot": event.slot}
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
        case CertificateOpened() as event:
            return {"certificate": event.certificate, "base": event.base, "head": event.head}
        case CertificateDecided(evidence=found) as event:
            figures = {"gain": found.gain, "evidence": found.e_value, "pairs": found.pairs}
            return {"certificate": event.certificate, "outcome": event.outcome, "rule": event.rule, **figures}
        case CertificateSettled() as event:
            return {"certificate": event.certificate, "commit": event.commit}
        case SlotDisturbed() as event:
            return {"reason": event.disturbance.detail, "until": event.until}
        case SlotReady() as event:
            return {"seconds": event.seconds}
        case event:
            return _fields_of_agent(event)


def _fields_of_agent(event: AnyEvent) -> dict[str, Any]:
    match event:
        case ApiRequested():
            return {"call": event.call, "proposal": event.proposal, "model": event.model}
        case ApiAnswered():
            return {"call": event.call, "stop_reason": event.stop_reason, "cost_usd": event.cost_usd}
        case ApiFailed():
            return {"call": event.call, "status": event.status, "error": event.error}
        case ProposalAsked():
            return {"proposal": event.proposal, "agent": event.agent, "purpose": event.purpose}
        case ProposalMade():
            return {"proposal": event.proposal, "description": event.description}
        case ProposalRehearsed():
            return {"proposal": event.proposal, "result": event.result}
        case ProposalRebased():
            return {"proposal": event.proposal, "parent": event.parent}
        case ProposalRefused():
            return {"proposal": event.proposal, "cause": event.cause, "detail": event.detail}
        case ProposalDropped() | AgentFailed():
            return {"proposal": event.proposal, "reason": event.reason}
        case AgentAbsent():
            return {"agent": event.agent, "reason": event.reason, "until": event.until}
        case AgentReturned():
            return {"agent": event.agent, "seconds": event.seconds}
        case Paused():
            told = {"why": event.why, "reason": event.reason, "by": event.by, "until": event.until}
            return told if event.slot is None else {**told, "slot": event.slot}
        case Resumed():
            over = {"why": event.why, "by": event.by, "seconds": event.seconds}
            return over if event.slot is None else {**over, "slot": event.slot}
        case Steered() | SteeringRefused():
            refused = event.because if isinstance(event, SteeringRefused) else None
            return {"verb": event.verb, "by": event.by, "why": event.reason, "refused": refused}
        case RolledBack():
            return {"target": event.target, "commit": event.commit}
        case _:
            return {}


def _loggable(value: Any) -> Any:
    if isinstance(value, str):
        return clean_line(value)
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _number(experiment: Experiment) -> int:
    return experiment.number
