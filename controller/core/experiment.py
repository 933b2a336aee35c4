"""One experiment as the journal tells it: how far it has come, and what each event makes of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum

from controller.core.errors import ImpossibleHistory
from controller.core.events import (
    AnyEvent,
    ClaimMismatch,
    Committed,
    Decided,
    ExperimentMoved,
    ExperimentOpened,
    Quarantined,
    Record,
    ScoringFinished,
    ScoringStarted,
    TrainingFinished,
    TrainingStarted,
    Voided,
)
from controller.core.proposal import Proposal
from controller.core.values import Cause, Decision, Provenance, Refusal, RunOutcome, Score, Verdict


class Phase(StrEnum):
    """How far an open experiment has come: what is the last fact known about it."""

    OPENED = "opened"
    TRAINING = "training"
    TRAINED = "trained"
    SCORING = "scoring"
    JUDGED = "judged"
    QUARANTINED = "quarantined"
    DECIDED = "decided"
    DONE = "done"


@dataclass(frozen=True)
class Experiment:
    """Everything the journal says about one experiment."""

    number: int
    proposal: Proposal
    slot: int
    parent: str
    """The frontier commit it starts from."""
    train_sha256: str
    seed: int
    ran_sha256: str
    """Blob: its text with the controller's seed in place of its own."""
    digest: str
    """Of what its text does: core/program/policy.py."""
    diff_sha256: str
    opened_at: str
    phase: Phase = Phase.OPENED
    attempt: int = 0
    """The attempt that runs or ran last; 0 before the first."""
    container: str | None = None
    spec_sha256: str = ""
    """Digest of that container, as it was asked for."""
    started_at: str | None = None
    finished_at: str | None = None
    budget_seconds: float | None = None
    outcome: RunOutcome | None = None
    judgement: Score | Refusal | None = None
    claim_mismatch: ClaimMismatch | None = None
    quarantine: Quarantined | None = None
    """Set if the judgement is that of a second scoring, or waits for it."""
    decision: Decision | None = None
    frontier_bpb: float | None = None
    commit: str | None = None
    provenance: Provenance | None = None

    @property
    def description(self) -> str:
        """The proposal's own line, and for whom its author stood in; not yet safe to print."""
        absent = self.proposal.stands_in_for
        mark = f" [{self.proposal.agent} in place of {absent}]" if absent is not None else ""
        return self.proposal.description + mark

    @property
    def repeats(self) -> int | None:
        """With a replicate: the experiment whose program runs again. A replicate is never kept."""
        return self.proposal.repeats

    @property
    def under_way(self) -> bool:
        """True if it has to be seen through; one that waits to be run or repeated has not."""
        return self.phase not in (Phase.OPENED, Phase.DONE)

    @property
    def score(self) -> Score | None:
        return self.judgement if isinstance(self.judgement, Score) else None

    @property
    def verdict(self) -> Verdict | None:
        return self.decision.verdict if self.decision else None

    @property
    def cause(self) -> Cause | None:
        return self.decision.cause if self.decision else None


#: From which phases an event may follow. A crashed run is decided without having been scored, and a killed
#: experiment without having run.
_PREDECESSORS: Mapping[type[AnyEvent], frozenset[Phase]] = {
    ExperimentMoved: frozenset({Phase.OPENED}),
    TrainingStarted: frozenset({Phase.OPENED}),
    TrainingFinished: frozenset({Phase.TRAINING}),
    ScoringStarted: frozenset({Phase.TRAINED, Phase.QUARANTINED}),
    ScoringFinished: frozenset({Phase.SCORING}),
    ClaimMismatch: frozenset({Phase.JUDGED}),
    Quarantined: frozenset({Phase.JUDGED}),
    Decided: frozenset({Phase.OPENED, Phase.TRAINED, Phase.JUDGED}),
    Committed: frozenset({Phase.DECIDED}),
    Voided: frozenset(set(Phase) - {Phase.DECIDED, Phase.DONE}),
}


def opened(event: ExperimentOpened, proposal: Proposal, time: str, running: Provenance | None) -> Experiment:
    """An experiment at its beginning."""
    return Experiment(
        number=event.experiment,
        proposal=replace(proposal, parent=event.parent, train_sha256=event.train_sha256),
        slot=event.slot,
        parent=event.parent,
        train_sha256=event.train_sha256,
        seed=event.seed,
        ran_sha256=event.ran_sha256,
        digest=event.digest,
        diff_sha256=event.diff_sha256,
        opened_at=time,
        provenance=running,
    )


def advance(experiment: Experiment, record: Record, running: Provenance | None) -> Experiment:
    """The open experiment after one more of its events; `running`: what the session at work runs with.

    Raises ImpossibleHistory when the event cannot follow the ones before it.
    """
    _require_possible(experiment, record)
    event = record.data
    match event:
        case ExperimentMoved():
            return replace(experiment, slot=event.slot)
        case TrainingStarted():
            return replace(
                experiment,
                phase=Phase.TRAINING,
                attempt=event.attempt,
                container=event.container,
                spec_sha256=event.spec_sha256,
                started_at=record.time,
                budget_seconds=event.budget_seconds,
                outcome=None,
                judgement=None,
                claim_mismatch=None,
                quarantine=None,
                provenance=running or experiment.provenance,
            )
        case TrainingFinished():
            return replace(experiment, phase=Phase.TRAINED, outcome=event.outcome)
        case ScoringStarted():
            return replace(experiment, phase=Phase.SCORING)
        case ScoringFinished():
            return replace(experiment, phase=Phase.JUDGED, judgement=event.score or event.refusal)
        case ClaimMismatch():
            return replace(experiment, claim_mismatch=event)
        case Quarantined():
            return replace(experiment, phase=Phase.QUARANTINED, quarantine=event)
        case Decided():
            kept = event.decision.verdict is Verdict.KEEP
            return replace(
                experiment,
                phase=Phase.DECIDED if kept else Phase.DONE,
                decision=event.decision,
                frontier_bpb=event.frontier_bpb,
                finished_at=record.time,
            )
        case Committed():
            return replace(experiment, phase=Phase.DONE, commit=event.commit)
        case Voided():
            return replace(
                experiment,
                phase=Phase.OPENED,
                container=None,
                outcome=None,
                judgement=None,
                claim_mismatch=None,
                quarantine=None,
            )
        case _:
            raise ImpossibleHistory(f"{event.event} cannot follow {experiment.phase}")


def _require_possible(experiment: Experiment, record: Record) -> None:
    event = record.data
    if experiment.number != record.experiment:
        raise ImpossibleHistory(f"{event.event} speaks of experiment {record.experiment}, which is not open")
    if experiment.phase not in _PREDECESSORS.get(type(event), frozenset()):
        raise ImpossibleHistory(f"{event.event} cannot follow {experiment.phase}")
    if isinstance(event, Decided):
        _require_verdict_is_due(experiment, event.decision)
    noted = {ClaimMismatch: experiment.claim_mismatch, Quarantined: experiment.quarantine}
    if noted.get(type(event)) is not None:
        raise ImpossibleHistory(f"{event.event} stands twice for one attempt")


def _require_verdict_is_due(experiment: Experiment, decision: Decision) -> None:
    """What has not run has no verdict, unless it is killed, and what is killed has no other."""
    killed = decision.cause is Cause.KILLED
    if killed != (experiment.phase is Phase.OPENED):
        when = "while it was under way" if killed else "before it ran"
        raise ImpossibleHistory(f"experiment {experiment.number} was decided {when}")
    if killed and decision.verdict is not Verdict.DISCARD:
        raise ImpossibleHistory(f"experiment {experiment.number} was killed, and is {decision.verdict}")


def trailers(experiment: Experiment, head: str) -> dict[str, str]:
    """The end of a kept commit's message, for an auditor who has only the repository: what was scored, on
    what, and the hash that the journal ended with before the commit (`head`).

    Raises ValueError for an experiment without a score or a session: none such is ever kept.
    """
    score, provenance = experiment.score, experiment.provenance
    if score is None or provenance is None:
        raise ValueError(f"experiment {experiment.number} cannot be committed")
    return {
        "Experiment": str(experiment.number),
        "Val-Bpb": f"{score.val_bpb:.6f}",
        "Image": provenance.image,
        "Data": provenance.data,
        "Prepare": provenance.prepare,
        "Journal": head,
    }
