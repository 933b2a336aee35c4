"""Which lines of the journal are worth a notification. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from controller.core import obstacle
from controller.core.events import (
    AgentAbsent,
    AgentReturned,
    CertificateDecided,
    Committed,
    Decided,
    EffortStarted,
    ExperimentOpened,
    Paused,
    ProposalDropped,
    ProposalMade,
    ProposalRefused,
    Record,
    Resumed,
    ScoringFinished,
    SessionStarted,
    SessionStopped,
    SlotDisturbed,
    SlotReady,
    TrainingFinished,
    TrainingStarted,
)
from controller.core.experiment import Phase
from controller.core.state import ResearchState
from controller.core.untrusted import clean_line
from controller.core.values import Cause, Decision, Verdict

Kind = Literal[
    "baseline", "keep", "discard", "crash", "reject", "certified", "taken-back", "drift", "stall", "stop"
]
"""`baseline`: the unchanged train.py has no score, so no experiment can be compared with it. `certified` and
`taken-back`: what came of a chain of keeps. `drift`: a program that ran again differs from its earlier
runs."""


_REASON_CHARACTERS = 500
_CHECKS = 4
"""A slot still noisy after this many checks, over more than a minute, counts as a stall."""
#: A keep is reported when it is committed.
_KINDS: Mapping[Verdict, Kind] = {
    Verdict.DISCARD: "discard",
    Verdict.CRASH: "crash",
    Verdict.REJECT: "reject",
}


@dataclass(frozen=True)
class Context:
    """What a notice needs from earlier lines."""

    tag: str | None = None
    frontier_bpb: float | None = None
    experiment: int | None = None
    """The one that the latest line spoke of."""
    description: str = ""
    val_bpb: float | None = None
    """Its score."""
    detail: str = ""
    """Why it has none."""
    decision: Decision | None = None
    """Its decision."""
    finished: bool = False
    """Whether it came to its end: nothing more is heard of it."""
    stalled: bool = False
    """Whether the current stall was already reported."""
    proposals: Mapping[int, str] = field(default_factory=dict)
    """Descriptions by number, of those that may still become experiments."""
    others: Mapping[int, tuple[str, float | None, str, Decision | None]] = field(default_factory=dict)
    """By number, description, score, detail and decision of the other experiments that are open."""

    @classmethod
    def at(cls, state: ResearchState) -> Context:
        """The context of a state from which to start reporting."""
        last = state.experiments.last
        others = {
            known.number: (
                clean_line(known.description),
                known.score.val_bpb if known.score else None,
                "",
                known.decision,
            )
            for known in state.open
            if known != last
        }
        return cls(
            tag=state.tag,
            frontier_bpb=state.frontier.val_bpb if state.frontier else None,
            experiment=last.number if last else None,
            description=clean_line(last.description) if last else "",
            val_bpb=last.score.val_bpb if last and last.score else None,
            decision=last.decision if last else None,
            finished=last is not None and last.phase is Phase.DONE,
            stalled=state.absence is not None,
            proposals={number: clean_line(known.description) for number, known in state.proposals.items()},
            others=others,
        )


@dataclass(frozen=True)
class Notice:
    """One notification. Every text in it is one safe line."""

    kind: Kind
    time: str
    """UTC."""
    context: Context
    reason: str = ""
    """The reason for a stall or stop, or why the baseline has no score."""
    seq: int | None = None
    """Number of the journal line it comes from, equal if delivered twice. None: not from a line."""
    head: str | None = None
    """The journal's head at that line, to keep elsewhere for `glovebox verify --head`."""
    commit: str | None = None

    def as_json(self) -> dict[str, Any]:
        """The notice as delivered."""
        context, verdict = self.context, self.context.decision
        of_experiment = self.kind not in ("certified", "taken-back", "drift", "stall", "stop")
        told = {
            "event": self.kind,
            "time": self.time,
            "tag": context.tag,
            "experiment": context.experiment if of_experiment else None,
            "verdict": str(verdict.verdict) if of_experiment and verdict else None,
            "cause": str(verdict.cause) if of_experiment and verdict and verdict.cause else None,
            "val_bpb": context.val_bpb if of_experiment else None,
            "frontier_bpb": context.frontier_bpb,
            "description": context.description if of_experiment else "",
            "commit": self.commit,
            "reason": self.reason,
            "seq": self.seq,
            "head": self.head,
        }
        return {
            name: clean_line(value, _REASON_CHARACTERS) if isinstance(value, str) else value
            for name, value in told.items()
        }


def follow(context: Context, record: Record) -> tuple[Context, Notice | None]:
    """Process one more line: (context for the next, notice for this one or None)."""
    event = record.data
    if record.experiment is not None and not isinstance(event, ExperimentOpened):
        context = _turn_to(context, record.experiment)
    match event:
        case EffortStarted():
            return replace(context, tag=event.tag), None
        case ProposalMade():
            known = {**context.proposals, event.proposal: clean_line(event.description)}
            return replace(context, proposals=known), None
        case ProposalDropped() | ProposalRefused():
            return replace(context, proposals=_without(context.proposals, event.proposal)), None
        case ExperimentOpened():
            return _opened(context, event), None
        case TrainingStarted():
            return replace(context, val_bpb=None, detail=""), None
        case TrainingFinished():
            return replace(context, detail=event.outcome.detail), None
        case ScoringFinished():
            detail = event.refusal.detail if event.refusal else ""
            return replace(context, val_bpb=event.score.val_bpb if event.score else None, detail=detail), None
        case Decided():
            finished = event.decision.verdict is not Verdict.KEEP
            context = replace(
                context, decision=event.decision, finished=finished, frontier_bpb=event.frontier_bpb
            )
            return context, _decided(context, record)
        case Committed():
            context = replace(context, finished=True, frontier_bpb=context.val_bpb)
            return context, _notice("keep", context, record, commit=event.commit)
        case CertificateDecided():
            return context, _certificate(context, record, event)
        case SessionStopped():
            return context, _notice("stop", context, record, event.reason)
        case _:
            return _stall(context, record)


def _decided(context: Context, record: Record) -> Notice | None:
    decision = context.decision
    kind = _KINDS.get(decision.verdict) if decision else None
    if decision is None or kind is None or decision.cause is Cause.REPLICATE:
        return None
    if context.experiment != 0:
        return _notice(kind, context, record)
    found = obstacle.classify(decision.cause, context.detail)
    return _notice("baseline", context, record, found.sentence if found else context.detail)


def _certificate(context: Context, record: Record, event: CertificateDecided) -> Notice:
    found = event.evidence
    figures = f"gain {found.gain:.6f} in {found.pairs} pairs, evidence {found.e_value:.3g}"
    chain = f"the keeps from experiment {event.base} to experiment {event.head}"
    if event.outcome == "certified":
        return _notice("certified", context, record, f"{chain} are a gain: {figures}")
    return _notice("taken-back", context, record, f"{chain} did not hold ({event.rule}): {figures}")


def _stall(context: Context, record: Record) -> tuple[Context, Notice | None]:
    """A notice when the loop starts to wait for the machine, the disk or the agent, once per stall."""
    match record.data:
        case Paused(why="disk" | "infrastructure", reason=reason) | AgentAbsent(reason=reason):
            told = replace(context, stalled=True)
            return told, None if context.stalled else _notice("stall", told, record, reason)
        case SlotDisturbed(disturbance=found, looks=looks) if looks >= _CHECKS:
            told = replace(context, stalled=True)
            return told, None if context.stalled else _notice("stall", told, record, found.detail)
        case Resumed() | AgentReturned() | SlotReady() | SessionStarted():
            return replace(context, stalled=False), None
        case _:
            return context, None


def _opened(context: Context, event: ExperimentOpened) -> Context:
    return replace(
        context,
        experiment=event.experiment,
        description=context.proposals.get(event.proposal, ""),
        val_bpb=None,
        detail="",
        decision=None,
        finished=False,
        proposals=_without(context.proposals, event.proposal),
        others=_with_present(context),
    )


def _turn_to(context: Context, experiment: int) -> Context:
    """Speak of another open experiment."""
    if context.experiment == experiment or experiment not in context.others:
        return context
    others = _with_present(context)
    description, val_bpb, detail, decision = others.pop(experiment)
    return replace(
        context,
        experiment=experiment,
        description=description,
        val_bpb=val_bpb,
        detail=detail,
        decision=decision,
        finished=False,
        others=others,
    )


def _with_present(context: Context) -> dict[int, tuple[str, float | None, str, Decision | None]]:
    """What has to be remembered of open experiments once another one is spoken of."""
    others = dict(context.others)
    if context.experiment is not None and not context.finished:
        others[context.experiment] = (context.description, context.val_bpb, context.detail, context.decision)
    return others


def _without(proposals: Mapping[int, str], number: int) -> dict[int, str]:
    return {known: description for known, description in proposals.items() if known != number}


def _notice(
    kind: Kind, context: Context, record: Record, reason: str = "", commit: str | None = None
) -> Notice:
    return Notice(
        kind=kind,
        time=record.time,
        context=context,
        reason=clean_line(reason, _REASON_CHARACTERS),
        seq=record.seq,
        head=record.hash,
        commit=commit,
    )
