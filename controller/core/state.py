"""fold(records): the only definition of where a research effort stands."""

from __future__ import annotations

import datetime as dt
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from pydantic import ConfigDict

from controller.core import obstacle
from controller.core.errors import ImpossibleHistory
from controller.core.events import (
    AgentAbsent,
    AgentFailed,
    AgentReturned,
    AnyEvent,
    ApiAnswered,
    ApiFailed,
    ApiRequested,
    Committed,
    EffortStarted,
    Paused,
    PreparationDropped,
    Prepared,
    ProposalRefused,
    Proposed,
    Pruned,
    Record,
    Rehearsed,
    RepairGivenUp,
    Resumed,
    ScoringFinished,
    ScoringStarted,
    SessionStarted,
    SessionStopped,
    SlotCalm,
    SlotDisturbed,
    TrainingStarted,
    Voided,
)
from controller.core.experiment import Experiment, Phase, advance
from controller.core.notebook import Notebook
from controller.core.obstacle import Obstacle
from controller.core.program.suspicion import Suspicion, suspicion
from controller.core.scoring.runlog import MAX_SUMMARY_BYTES, MAX_WORKER_LOG_BYTES
from controller.core.sequences import AppendOnly, Prefix
from controller.core.spending import Spending
from controller.core.values import Cause, Disturbance, Draw, Fresh, Frontier, Score, Verdict, Work


@dataclass(frozen=True)
class Absence:
    """An agent that cannot be reached."""

    agent: str
    reason: str
    since: str
    until: str | None
    """When it will be asked again, UTC; None: not before somebody changes something."""
    times: int
    """How often in a row it was asked in vain."""


@dataclass(frozen=True)
class Pause:
    """A time in which nothing new begins."""

    event: Paused
    since: str


@dataclass(frozen=True)
class Noise:
    """What an experiment waits for that was disturbed."""

    disturbance: Disturbance
    """What was last seen: during the run, or on the slot without one."""
    since: str
    until: str | None = None
    """When the slot will be looked at again, UTC; None before the first look."""
    looks: int = 0
    """How often it was looked at in vain."""


@dataclass
class ResearchState:
    """Where the effort stands. Built by `fold`, extended by `apply`; nothing else writes to it."""

    __pydantic_config__ = ConfigDict(arbitrary_types_allowed=True, ser_json_inf_nan="constants")
    """So that a snapshot can hold it."""

    tag: str | None = None
    base_commit: str | None = None
    frontier: Frontier | None = None
    experiments: AppendOnly[Experiment] = field(default_factory=AppendOnly)
    """Index is the experiment's number. The last one may still be open."""
    verdicts: Counter[Verdict] = field(default_factory=Counter)
    """Of the finished experiments."""
    causes: Counter[Cause] = field(default_factory=Counter)
    """What kept finished experiments from being kept."""
    kept: set[int] = field(default_factory=set)
    """Numbers of the kept experiments."""
    logs_pruned: int = 0
    """Experiments with a lower number that were not kept have lost their run.log."""
    calls_pruned: int = 0
    """Calls with a lower number have lost their texts."""
    log_bytes: int = 0
    """What run.log and worker.log of experiments that were not kept take up, at most."""
    call_bytes: int = 0
    """What the texts of calls take up, at most."""
    removing: Pruned | None = None
    """What may be on record as removed and be there still; None once a process has gone on after it."""
    baseline_bpb: float | None = None
    """The first score there is, from which improvement is counted."""
    baseline_lacked: Obstacle | None = None
    """What ended the unchanged baseline, if that was no doing of its own."""
    lacked_in_a_row: int = 0
    """How many of the last experiments ended like it, since a session was begun all the same."""
    session: SessionStarted | None = None
    stopped: str | None = None
    """Why the last session stopped; None while one runs, or after one was killed."""
    session_began: str | None = None
    last_time: str | None = None
    """Of the last line."""
    earlier_seconds: float = 0.0
    """What all sessions but the last one took, from their first line to their last."""
    refused_in_a_row: int = 0
    agent_errors_in_a_row: int = 0
    tried: dict[str, set[str]] = field(default_factory=dict)
    """By frontier commit: `core.policy.digest` of every text that was run from it."""
    suspects: dict[str, Suspicion] = field(default_factory=dict)
    """By `core.policy.digest`: the programs that are not run again, whatever the frontier."""
    reference: tuple[Work, ...] = ()
    """What the baseline's workers used; empty until it was scored."""
    prepared: Prepared | None = None
    """The proposal that waits for its turn."""
    rehearsed: Rehearsed | None = None
    """The latest rehearsal."""
    repair_tried: int | None = None
    """The latest experiment whose repair was tried in vain, before it became an experiment itself."""
    absence: Absence | None = None
    """Of the agent, while it lasts."""
    pause: Pause | None = None
    """While it lasts."""
    noise: Noise | None = None
    """Set while a disturbed experiment waits to be repeated."""
    draw: Draw = field(default_factory=lambda: Draw(scoring=0, confirmation=0))
    """Of the next scoring. Rows count as given to a worker unless it is known that they were not."""
    fresh_left: int | None = None
    """Rows that no worker has been given yet, as the latest finished score tells."""
    lineage: list[Fresh] = field(default_factory=list)
    """What the kept experiments showed on fresh rows, the first one first."""
    spending: Spending = field(default_factory=Spending)
    notebook: Notebook = field(default_factory=Notebook)
    """What an agent is reminded of."""
    head: str = "0" * 64
    seq: int = -1

    @property
    def open(self) -> Experiment | None:
        """The experiment that is not finished yet, if any."""
        last = self.experiments.last
        return last if last and last.phase is not Phase.DONE else None

    @property
    def next_number(self) -> int:
        return len(self.experiments)

    @property
    def finished(self) -> Sequence[Experiment]:
        """Every experiment but the open one; a view, not a copy."""
        return self.experiments if self.open is None else Prefix(self.experiments, self.next_number - 1)

    @property
    def obstacle(self) -> Obstacle | None:
        """What the machine lacks, so that no experiment will be scored; None if none stopped the loop."""
        stands = self.baseline_bpb is None and self.lacked_in_a_row >= obstacle.IN_A_ROW
        return self.baseline_lacked if stands else None

    @property
    def unscored(self) -> bool:
        """True while experiments were finished and none of them gave the effort a score to compare with."""
        return self.baseline_bpb is None and len(self.finished) > 0

    @property
    def worked_seconds(self) -> float:
        """How long controllers were at work, as lines tell. A clock that was set back takes nothing."""
        if self.session_began is None or self.last_time is None:
            return self.earlier_seconds
        began, last = map(dt.datetime.fromisoformat, (self.session_began, self.last_time))
        return self.earlier_seconds + max(0.0, (last - began).total_seconds())

    def limit(self, name: str) -> float | None:
        """A limit that the last session ran under, `hours` for instance; None if it had none."""
        limits = self.session.settings.get("limits") if self.session else None
        value = limits.get(name) if isinstance(limits, Mapping) else None
        return float(value) if isinstance(value, (int, float)) else None

    def count(self, verdict: Verdict) -> int:
        """Of finished experiments."""
        return self.verdicts[verdict]


def fold(records: Iterable[Record]) -> ResearchState:
    """Replay the journal from its beginning.

    Raises ImpossibleHistory when an event cannot follow the ones before it.
    """
    state = ResearchState()
    for record in records:
        apply(state, record)
    return state


def apply(state: ResearchState, record: Record) -> None:
    """Extend `state` by one record, in place."""
    event = record.data
    if isinstance(event, SessionStarted):
        state.earlier_seconds = state.worked_seconds
        state.session_began = record.time
    state.head, state.seq, state.last_time = record.hash, record.seq, record.time
    match event:
        case EffortStarted():
            state.tag, state.base_commit = event.tag, event.base_commit
            state.frontier = Frontier(commit=event.base_commit)
        case SessionStarted():
            _begin_session(state, event)
        case SessionStopped():
            state.stopped = event.reason
        case ProposalRefused():
            state.refused_in_a_row += 1
            state.repair_tried = state.repair_tried if event.fixes is None else event.fixes
            if state.prepared and state.prepared.train_sha256 == event.train_sha256:
                state.prepared = None
        case Proposed():
            _propose(state, event, record.time)
        case Pruned():
            _prune(state, event)
        case ApiRequested():
            state.spending.request(event, record.time)
            state.call_bytes += event.request_bytes
        case ApiAnswered():
            state.spending.end(event)
            state.call_bytes += event.reply_bytes
        case ApiFailed():
            state.spending.end(event)
        case Rehearsed():
            state.rehearsed = event
        case RepairGivenUp():
            state.repair_tried = event.fixes
        case Prepared() | PreparationDropped() | AgentFailed() | AgentAbsent() | AgentReturned():
            _attend(state, event, record.time)
        case Paused():
            before = state.pause
            same = before is not None and before.event.why == event.why
            state.pause = Pause(event, before.since if before and same else record.time)
        case Resumed():
            state.pause = None
        case SlotDisturbed() | SlotCalm():
            _wait(state, event)
        case _:
            number = getattr(event, "experiment", None)
            if number is not None:
                _advance(state, record)


def _prune(state: ResearchState, event: Pruned) -> None:
    state.removing = event
    if event.what == "logs":
        state.logs_pruned = event.before
        state.log_bytes -= event.bytes
    else:
        state.calls_pruned = event.before
        state.call_bytes -= event.bytes


def _wait(state: ResearchState, event: SlotDisturbed | SlotCalm) -> None:
    noise = state.noise
    if noise is None or state.open is None or state.open.number != event.experiment:
        raise ImpossibleHistory(
            f"{event.event} speaks of experiment {event.experiment}, which waits for nothing"
        )
    if isinstance(event, SlotCalm):
        state.noise = None
    else:
        state.noise = replace(noise, disturbance=event.disturbance, until=event.until, looks=event.looks)


def _begin_session(state: ResearchState, event: SessionStarted) -> None:
    """A person looked, or a service was restarted: errors are counted anew, and absences go on.

    So does a pause that a person asked for. Disk and machine are looked at anew.
    """
    if state.obstacle is not None:  # whoever began it all the same had a reason: see effort.py
        state.lacked_in_a_row = 0
    state.session, state.stopped, state.agent_errors_in_a_row = event, None, 0
    if state.absence and state.absence.agent != event.agent:
        state.absence = None
    if state.pause and state.pause.event.why != "person":
        state.pause = None


def _propose(state: ResearchState, event: Proposed, time: str) -> None:
    if state.open is not None or event.experiment != state.next_number:
        raise ImpossibleHistory(
            f"experiment {event.experiment} was proposed while {state.next_number} was due"
        )
    state.removing = None
    state.refused_in_a_row = state.agent_errors_in_a_row = 0
    state.tried.setdefault(event.parent, set()).add(event.digest)
    if event.prepared_for is not None:
        state.spending.moved(event.prepared_for, event.experiment)
        state.prepared = None
    provenance = state.session.provenance if state.session else None
    state.experiments.append(
        Experiment(number=event.experiment, proposal=event, proposed_at=time, provenance=provenance)
    )


def _attend(
    state: ResearchState,
    event: Prepared | PreparationDropped | AgentFailed | AgentAbsent | AgentReturned,
    time: str,
) -> None:
    """What happens between us and an agent."""
    match event:
        case Prepared():
            if state.prepared is not None:
                raise ImpossibleHistory("a proposal was prepared while another one waited")
            state.prepared, state.agent_errors_in_a_row = event, 0
        case PreparationDropped():
            state.prepared = None
        case AgentFailed():
            state.agent_errors_in_a_row += 1
        case AgentAbsent():
            before = state.absence
            state.absence = Absence(
                agent=event.agent,
                reason=event.reason,
                since=before.since if before else time,
                until=event.until,
                times=before.times + 1 if before else 1,
            )
        case AgentReturned():
            state.absence = None


def _advance(state: ResearchState, record: Record) -> None:
    event = record.data
    if state.open is None:
        raise ImpossibleHistory(f"{event.event} speaks of experiment {record.experiment}, which is not open")
    advanced = advance(state.open, record, state.session.provenance if state.session else None)
    _hear(state, event, record.time)
    state.experiments.replace_last(advanced)
    if advanced.number == 0 and advanced.score is not None:
        state.reference = advanced.score.work
    if advanced.phase is Phase.DONE:
        _count(state, advanced)
    if isinstance(event, Committed):
        state.tried = {}  # from the frontier of before; nothing will be run from there again
        score = advanced.score
        state.frontier = Frontier(
            commit=event.commit, val_bpb=score.val_bpb if score else None, experiment=advanced.number
        )


def _hear(state: ResearchState, event: AnyEvent, time: str) -> None:
    """What an attempt says about noise, and that rows were given away."""
    match event:
        case Voided(cause="disturbed", evidence=Disturbance() as evidence):
            state.noise = Noise(evidence, since=time)
        case TrainingStarted():
            state.noise = None  # somebody no longer wants it waited for
        case ScoringStarted():
            before = event.draw
            state.draw = Draw(scoring=before.scoring + 1, confirmation=before.confirmation + 1)
        case ScoringFinished(score=Score(confirmed=False)):
            state.draw = state.draw.model_copy(update={"confirmation": state.draw.confirmation - 1})
        case _:
            return


def _count(state: ResearchState, finished: Experiment) -> None:
    state.notebook.learn(finished)
    lacked = obstacle.of(finished)
    if finished.number == 0:
        state.baseline_lacked = lacked
    same = lacked is not None and lacked == state.baseline_lacked
    state.lacked_in_a_row = state.lacked_in_a_row + 1 if same else 0
    if finished.verdict is not None:
        state.verdicts[finished.verdict] += 1
    if finished.verdict is Verdict.KEEP:
        state.kept.add(finished.number)
        if finished.score is not None and finished.score.fresh is not None:
            state.lineage.append(finished.score.fresh)
    elif finished.outcome is not None:
        state.log_bytes += finished.outcome.log_bytes + MAX_SUMMARY_BYTES
        if finished.judgement is not None:
            state.log_bytes += MAX_WORKER_LOG_BYTES
    if finished.score is not None and finished.score.fresh is not None:
        state.fresh_left = finished.score.fresh.left
    if finished.cause is not None:
        state.causes[finished.cause] += 1
    if (found := suspicion(finished)) is not None:
        state.suspects.setdefault(finished.proposal.digest, found)
    if state.baseline_bpb is None and finished.verdict is Verdict.KEEP and finished.score:
        state.baseline_bpb = finished.score.val_bpb
