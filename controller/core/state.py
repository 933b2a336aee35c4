"""fold(records): the only definition of where a research effort stands."""

from __future__ import annotations

import datetime as dt
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from pydantic import ConfigDict

from controller.core import obstacle
from controller.core import steering as steering_
from controller.core.errors import ImpossibleHistory
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
    Committed,
    EffortStarted,
    ExperimentMoved,
    ExperimentOpened,
    Paused,
    ProposalAsked,
    ProposalDropped,
    ProposalMade,
    ProposalRebased,
    ProposalRefused,
    ProposalRehearsed,
    Pruned,
    Record,
    Resumed,
    RolledBack,
    ScoringFinished,
    ScoringStarted,
    SessionStarted,
    SessionStopped,
    SlotDisturbed,
    SlotReady,
    Steered,
    SteeringRefused,
    TrainingStarted,
    Voided,
)
from controller.core.experiment import Experiment, Phase, advance, opened
from controller.core.notebook import Notebook
from controller.core.obstacle import Obstacle
from controller.core.program.suspicion import Suspicion, suspicion
from controller.core.proposal import Proposal, asked
from controller.core.proposal import advance as advance_proposal
from controller.core.rules import KeepConfig
from controller.core.scoring.runlog import MAX_SUMMARY_BYTES, MAX_WORKER_LOG_BYTES
from controller.core.sequences import AppendOnly, Selection
from controller.core.spending import Spending
from controller.core.statistics.certificate import Certificate, PairRun
from controller.core.statistics.hopeless import LossLimits, Yardstick
from controller.core.statistics.replicates import LEAST_DF, LEAST_RUNS, Pool, Run, mean, run_of
from controller.core.steering import Steering
from controller.core.values import (
    TRIVIAL_CAUSES,
    Cause,
    Disturbance,
    Draw,
    Fresh,
    Frontier,
    Score,
    Verdict,
    Work,
)

BASELINE, MERGE, REPLICATE, PERSON = "baseline", "merge", "replicate", "person"
"""What stands for the agent where none is asked: the effort's own train.py; a merge of two changes; a program
that runs again; one that a person put in the queue."""


@dataclass(frozen=True)
class Absence:
    """An agent that cannot be reached."""

    agent: str
    reason: str
    since: str
    until: str | None
    """When it will be asked again, UTC; None: not until a person changes something."""
    times: int
    """How often in a row it could not be reached; what several slots asked at once counts once."""

    def is_over(self, now: dt.datetime) -> bool:
        """True once it may be asked again."""
        return self.until is None or now >= dt.datetime.fromisoformat(self.until)


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
    """How many looks found the slot disturbed."""


@dataclass(frozen=True)
class SlotState:
    """What is known of one slot."""

    experiment: int | None = None
    """The open experiment on it."""
    noise: Noise | None = None
    """Set while a disturbed experiment waits to be repeated."""
    faults: int = 0
    """Infrastructure faults in a row in this session."""
    fault: str = ""
    """What the latest of them was."""
    pause: Pause | None = None
    """Set while the slot rests after such faults."""
    limits: LossLimits = ()
    """Of the training loss of the run that was started last: what it must not exceed."""


@dataclass
class ResearchState:
    """Where the effort stands. Built by `fold`, extended by `apply`; nothing else writes to it."""

    __pydantic_config__ = ConfigDict(arbitrary_types_allowed=True, ser_json_inf_nan="constants")
    """So that a snapshot can hold it."""

    tag: str | None = None
    base_commit: str | None = None
    frontier: Frontier | None = None
    experiments: AppendOnly[Experiment] = field(default_factory=AppendOnly)
    """Index is the experiment's number. The latest may still be open."""
    order: list[int] = field(default_factory=list)
    """Numbers of the finished experiments in the order in which they finished."""
    candidates: int = 0
    """How many of the experiments are not replicates."""
    runs: dict[int, list[Run]] = field(default_factory=dict)
    """By program, as the number of its first experiment: the runs that nothing was selected by."""
    pool: Pool = field(default_factory=Pool)
    """How far they differ."""
    fresh_pool: Pool = field(default_factory=Pool)
    """The same on fresh rows."""
    yardstick: Yardstick = field(default_factory=Yardstick)
    """The training loss of all runs of kept programs."""
    replicated: dict[int, int] = field(default_factory=dict)
    """By program: how many replicates were opened."""
    tried_since_replicate: int = 0
    """Candidates that were finished since the latest replicate was opened."""
    certified: Frontier | None = None
    """What every chain of keeps has to be better than: the first keep, and then the last certified one."""
    chain: list[int] = field(default_factory=list)
    """The keeps since then, which are provisional."""
    certificate: Certificate | None = None
    """That the head of the chain, or of what the chain was, is run for just now."""
    unsettled: CertificateDecided | None = None
    """What has come of it, while the repository has not heard yet."""
    certificates: list[CertificateDecided] = field(default_factory=list)
    """All that were decided."""
    certificate_runs: int = 0
    """How many runs they took."""
    fallen: dict[int, str] = field(default_factory=dict)
    """The keeps whose chain was taken back, and their commits."""
    slots: dict[int, SlotState] = field(default_factory=dict)
    """By the slot's number; what is not in here is idle and was never heard of."""
    proposals: dict[int, Proposal] = field(default_factory=dict)
    """By number: those that are neither experiments yet nor at an end."""
    next_proposal: int = 0
    to_repair: int | None = None
    """The latest experiment that crashed over a trifle and whose repair nobody was asked for yet (R9)."""
    to_combine: list[int] = field(default_factory=list)
    """Experiments whose change did not merge by itself with that of the frontier."""
    to_merge: list[tuple[int, int]] = field(default_factory=list)
    """(behind, kept): two keeps in a row, the second of which does not have the change of the first."""
    verdicts: Counter[Verdict] = field(default_factory=Counter)
    """Of the finished experiments, replicates aside."""
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
    """The first score there is, from which improvement is counted; if that program ran again, their mean."""
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
    last_refusal: str = ""
    agent_errors_in_a_row: int = 0
    tried: dict[str, set[str]] = field(default_factory=dict)
    """By frontier commit: `core.policy.digest` of every text that was run from it."""
    suspects: dict[str, Suspicion] = field(default_factory=dict)
    """By `core.policy.digest`: the programs that are not run again, whatever the frontier."""
    reference: tuple[Work, ...] = ()
    """What the baseline's workers used; empty until it was scored."""
    absence: Absence | None = None
    """Of the agent, while it lasts."""
    pause: Pause | None = None
    """Of all slots, while it lasts: a person's, or for want of disk space."""
    draw: Draw = field(default_factory=lambda: Draw(scoring=0, confirmation=0))
    """Of the next scoring. Rows count as given to a worker unless it is known that they were not."""
    last_scored: int | None = None
    """The experiment that was given the draw before it."""
    fresh_left: int | None = None
    """Rows that no worker has been given yet, as the latest finished score tells."""
    lineage: list[Fresh] = field(default_factory=list)
    """What the kept experiments showed on fresh rows, the first one first."""
    spending: Spending = field(default_factory=Spending)
    steering: Steering = field(default_factory=Steering)
    """What a person has asked for."""
    notebook: Notebook = field(default_factory=Notebook)
    """What an agent is reminded of."""
    head: str = "0" * 64
    seq: int = -1

    @property
    def open(self) -> list[Experiment]:
        """The experiments that are not finished yet, by number."""
        numbers = [slot.experiment for slot in self.slots.values() if slot.experiment is not None]
        return [self.experiments[number] for number in sorted(numbers)]

    @property
    def next_number(self) -> int:
        return len(self.experiments)

    @property
    def finished(self) -> Sequence[Experiment]:
        """Every experiment that is not open, in the order in which they finished; a view, not a copy."""
        return Selection(self.experiments, self.order)

    def slot(self, number: int) -> SlotState:
        return self.slots.get(number, SlotState())

    def margin(self, keep: KeepConfig) -> float:
        """By how much a keep has to be better than the frontier, bits per byte."""
        spread = self.pool.spread if keep.rule == "margin" else None
        return keep.margin * spread.sigma if spread is not None and spread.df >= LEAST_DF else 0.0

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
        """A limit that is in force, `hours` for instance; None if there is none."""
        if name in self.steering.limits:
            return self.steering.limits[name]
        limits = self.session.settings.get("limits") if self.session else None
        value = limits.get(name) if isinstance(limits, Mapping) else None
        return float(value) if isinstance(value, (int, float)) else None

    def count(self, verdict: Verdict) -> int:
        """Of finished experiments, replicates aside."""
        return self.verdicts[verdict]

    @property
    def replicates(self) -> int:
        """How many finished experiments were replicates."""
        return len(self.order) - self.verdicts.total()


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
            _begin_session(state, event, record.time)
        case SessionStopped():
            state.stopped = event.reason
        case (
            ProposalAsked()
            | ProposalMade()
            | ProposalRehearsed()
            | ProposalRebased()
            | ProposalDropped()
            | ProposalRefused()
            | AgentFailed()
        ):
            _propose(state, event, record.time)
        case ExperimentOpened():
            _open(state, event, record.time)
        case Pruned():
            _prune(state, event)
        case CertificateOpened() | CertificateDecided() | CertificateSettled():
            _certify(state, event)
        case ApiRequested():
            state.spending.request(event, record.time)
            state.call_bytes += event.request_bytes
        case ApiAnswered():
            state.spending.end(event)
            state.call_bytes += event.reply_bytes
        case ApiFailed():
            state.spending.end(event)
        case AgentAbsent() | AgentReturned():
            _attend(state, event, record.time)
        case Paused() | Resumed():
            _pause(state, event, record.time)
        case SlotDisturbed() | SlotReady():
            _wait(state, event)
        case Steered() | SteeringRefused():
            _steer(state, event, record.time)
        case RolledBack():
            _roll_back(state, event)
        case _:
            if getattr(event, "experiment", None) is not None:
                _advance(state, record)


def _certify(
    state: ResearchState, event: CertificateOpened | CertificateDecided | CertificateSettled
) -> None:
    if isinstance(event, CertificateOpened):
        if state.certificate is not None or event.certificate != len(state.certificates):
            raise ImpossibleHistory(f"certificate {event.certificate} was opened out of turn")
        state.certificate = Certificate(event.certificate, event.base, event.head)
        return
    if state.certificate is None or state.certificate.number != event.certificate:
        raise ImpossibleHistory(f"{event.event} speaks of certificate {event.certificate}, which is not open")
    if isinstance(event, CertificateDecided):
        if state.unsettled is not None:
            raise ImpossibleHistory(f"certificate {event.certificate} was decided twice")
        state.unsettled = event
        state.certificates.append(event)
        return
    decided = state.unsettled
    if decided is None:
        raise ImpossibleHistory(f"certificate {event.certificate} was settled before it was decided")
    state.certificate = state.unsettled = None
    if decided.outcome == "certified":
        _move_certified(state, decided, event.commit)
    else:
        _fall_back(state, event.commit)


def _move_certified(state: ResearchState, decided: CertificateDecided, commit: str) -> None:
    head = decided.head
    score = state.experiments[head].score
    state.certified = _incumbent(state, head, commit, score.val_bpb if score else None)
    state.chain = state.chain[state.chain.index(head) + 1 :]


def _fall_back(state: ResearchState, commit: str) -> None:
    """The chain is taken back."""
    assert state.certified is not None and state.certified.experiment is not None
    state.frontier = state.certified.model_copy(update={"commit": commit})
    fallen, state.chain = state.chain, []
    _take_back(state, fallen)


def _steer(state: ResearchState, event: Steered | SteeringRefused, time: str) -> None:
    """Another agent is not absent, as far as is known; and with more money one may be asked again."""
    state.steering = steering_.steered(state.steering, event)
    if isinstance(event, Steered) and event.verb == "agent":
        state.absence = None
    elif isinstance(event, Steered) and event.verb == "limit" and state.absence is not None:
        state.absence = replace(state.absence, until=time)


def rollback_targets(state: ResearchState) -> set[int]:
    """Programs that the frontier can go back to: the provisional keeps, and everything that was certified,
    the first keep included. What was taken back is not among them, and neither is the frontier."""
    now = state.frontier.experiment if state.frontier else None
    good = [decided for decided in state.certificates if decided.outcome == "certified"]
    first = good[0].base if good else state.certified.experiment if state.certified else None
    known = {first, *(decided.head for decided in good), *state.chain}
    return {number for number in known if number not in (None, now) and number not in state.fallen}


def _roll_back(state: ResearchState, event: RolledBack) -> None:
    """A person wants an earlier program to be the frontier. If it is older than the last one that was
    certified, chains are certified against it from now on."""
    if event.target not in rollback_targets(state):
        raise ImpossibleHistory(f"experiment {event.target} is no program to go back to")
    standing = [number for number in state.order if number in state.kept and number not in state.fallen]
    target, fallen = state.experiments[event.target], standing[standing.index(event.target) + 1 :]
    state.steering = steering_.rolled_back(state.steering, event, _built_on(state, fallen))
    selected_at = target.score.val_bpb if target.score else None
    state.frontier = _incumbent(state, target.number, event.commit, selected_at)
    if target.number in state.chain:
        state.chain = state.chain[: state.chain.index(target.number) + 1]
    else:
        state.chain = []
        state.certified = _incumbent(state, target.number, target.commit or event.commit, selected_at)
    _take_back(state, fallen)


def _built_on(state: ResearchState, fallen: Sequence[int]) -> list[int]:
    """The open experiments whose parent is one of these keeps: they would bring its change back."""
    parents = {state.experiments[number].commit for number in fallen}
    if state.frontier is not None and state.frontier.experiment in fallen:
        parents.add(state.frontier.commit)
    return [known.number for known in state.open if known.repeats is None and known.parent in parents]


def _take_back(state: ResearchState, fallen: Sequence[int]) -> None:
    """What was asked for on account of these keeps, the latest ones, is not wanted any more."""
    state.fallen |= {number: state.experiments[number].commit or "" for number in fallen}
    shown = sum(_showed_fresh(state.experiments[number]) for number in fallen)
    del state.lineage[len(state.lineage) - shown :]
    state.notebook.move_on()
    state.tried = {}
    state.to_merge, state.to_combine, state.to_repair = [], [], None


def _showed_fresh(kept: Experiment) -> bool:
    return kept.score is not None and kept.score.fresh is not None


def _incumbent(state: ResearchState, experiment: int, commit: str, selected_at: float | None) -> Frontier:
    """A commit with what has to be beaten: the mean of its fresh runs once there are two."""
    runs = state.runs.get(experiment, [])
    if len(runs) < LEAST_RUNS:
        return Frontier(commit=commit, val_bpb=selected_at, experiment=experiment)
    return Frontier(commit=commit, val_bpb=mean(runs), experiment=experiment, runs=len(runs))


def _prune(state: ResearchState, event: Pruned) -> None:
    state.removing = event
    if event.what == "logs":
        state.logs_pruned = event.before
        state.log_bytes -= event.bytes
    else:
        state.calls_pruned = event.before
        state.call_bytes -= event.bytes


def _change_slot(state: ResearchState, number: int, **changes: Any) -> None:
    state.slots[number] = replace(state.slot(number), **changes)


def _wait(state: ResearchState, event: SlotDisturbed | SlotReady) -> None:
    slot = _opened(state, event.experiment).slot
    noise = state.slot(slot).noise
    if noise is None:
        raise ImpossibleHistory(f"{event.event} speaks of experiment {event.experiment}, which does not wait")
    if isinstance(event, SlotReady):
        _change_slot(state, slot, noise=None)
    else:
        seen = replace(noise, disturbance=event.disturbance, until=event.until, looks=event.looks)
        _change_slot(state, slot, noise=seen)


def _pause(state: ResearchState, event: Paused | Resumed, time: str) -> None:
    before = state.pause if event.slot is None else state.slot(event.slot).pause
    pause = None
    if isinstance(event, Paused):
        same = before is not None and before.event.why == event.why
        pause = Pause(event, before.since if before and same else time)
    if event.slot is None:
        state.pause = pause
    else:
        _change_slot(state, event.slot, pause=pause)


def _begin_session(state: ResearchState, event: SessionStarted, time: str) -> None:
    """A person looked, or a service was restarted: errors are counted anew; an agent's absence goes on.

    So does a pause that a person asked for. Disk and machine are looked at anew.
    """
    state.steering = steering_.new_session(state.steering, state.session, event.settings)
    if state.obstacle is not None:  # begun all the same, for a reason: app/run.py
        state.lacked_in_a_row = 0
    state.session, state.stopped = event, None
    state.agent_errors_in_a_row = state.refused_in_a_row = 0
    if state.absence and state.absence.agent != event.agent:
        state.absence = None
    elif (
        state.absence and state.absence.until is None
    ):  # a person may have changed something before this start
        state.absence = replace(state.absence, until=time)
    if state.pause and state.pause.event.why != "person":
        state.pause = None
    for number in [*state.slots]:
        _change_slot(state, number, faults=0, fault="", pause=None)


def _propose(
    state: ResearchState,
    event: ProposalAsked
    | ProposalMade
    | ProposalRehearsed
    | ProposalRebased
    | ProposalDropped
    | ProposalRefused
    | AgentFailed,
    time: str,
) -> None:
    if isinstance(event, ProposalAsked):
        _ask(state, event, time)
        return
    proposal = state.proposals.get(event.proposal)
    if proposal is None:
        raise ImpossibleHistory(f"{event.event} speaks of proposal {event.proposal}, which is not open")
    state.steering = steering_.answered(state.steering, event, proposal)
    match event:
        case ProposalDropped():
            del state.proposals[event.proposal]
            _drop(state, proposal, event)
        case ProposalRefused():
            del state.proposals[event.proposal]
            if proposal.agent != PERSON:
                state.refused_in_a_row += 1
                state.last_refusal = event.detail
        case AgentFailed():
            del state.proposals[event.proposal]
            state.agent_errors_in_a_row += 1
        case _:
            state.proposals[event.proposal] = advance_proposal(proposal, event)
            if isinstance(event, ProposalMade):
                state.agent_errors_in_a_row = 0


def _drop(state: ResearchState, proposal: Proposal, event: ProposalDropped) -> None:
    """What was asked for is still wanted if nobody answered; a merge that failed is the agent's business.

    Not what was asked for on account of a chain that has been taken back.
    """
    if proposal.parent in state.fallen.values() or proposal.merges in state.fallen:
        return
    if event.unanswered and proposal.fixes is not None and state.to_repair is None:
        state.to_repair = proposal.fixes
    if proposal.merges is None:
        return
    kept = state.frontier.experiment if state.frontier else None
    if event.unanswered and proposal.agent == MERGE and kept is not None:
        state.to_merge.append((proposal.merges, kept))
    elif event.unanswered or proposal.agent == MERGE:
        state.to_combine.append(proposal.merges)


def _ask(state: ResearchState, event: ProposalAsked, time: str) -> None:
    if event.proposal != state.next_proposal:
        raise ImpossibleHistory(
            f"proposal {event.proposal} was asked for while {state.next_proposal} was due"
        )
    state.next_proposal += 1
    state.proposals[event.proposal] = asked(event, time)
    if event.fixes is not None and event.fixes == state.to_repair:
        state.to_repair = None
    state.to_merge = [pair for pair in state.to_merge if pair[0] != event.merges]
    state.to_combine = [number for number in state.to_combine if number != event.merges]


def _open(state: ResearchState, event: ExperimentOpened, time: str) -> None:
    if event.experiment != state.next_number:
        raise ImpossibleHistory(f"experiment {event.experiment} was opened while {state.next_number} was due")
    if state.slot(event.slot).experiment is not None:
        raise ImpossibleHistory(f"experiment {event.experiment} was opened on a slot that is taken")
    proposal = state.proposals.pop(event.proposal, None)
    if proposal is None or not proposal.is_made:
        raise ImpossibleHistory(
            f"experiment {event.experiment} is of proposal {event.proposal}, which has no text"
        )
    state.removing = None
    state.steering = steering_.answered(state.steering, event, proposal)
    state.refused_in_a_row = 0
    if proposal.repeats is None:
        state.candidates += 1
        state.tried.setdefault(event.parent, set()).add(event.digest)
    else:
        state.replicated[proposal.repeats] = state.replicated.get(proposal.repeats, 0) + 1
        state.tried_since_replicate = 0
    provenance = state.session.provenance if state.session else None
    state.experiments.append(opened(event, proposal, time, provenance))
    _change_slot(state, event.slot, experiment=event.experiment)
    if state.absence is not None:
        state.to_repair = None  # somebody else's idea came first, and the crash is no longer the latest thing


def _attend(state: ResearchState, event: AgentAbsent | AgentReturned, time: str) -> None:
    """What happens between us and an agent."""
    if isinstance(event, AgentReturned):
        state.absence = None
        return
    before = state.absence
    state.absence = Absence(
        agent=event.agent,
        reason=event.reason,
        since=before.since if before else time,
        until=event.until,
        times=event.times,
    )


def _opened(state: ResearchState, number: int) -> Experiment:
    """An open experiment. Raises ImpossibleHistory if it is not open."""
    if not any(slot.experiment == number for slot in state.slots.values()):
        raise ImpossibleHistory(f"an event speaks of experiment {number}, which is not open")
    return state.experiments[number]


def _advance(state: ResearchState, record: Record) -> None:
    event = record.data
    assert record.experiment is not None
    before = _opened(state, record.experiment)
    advanced = advance(before, record, state.session.provenance if state.session else None)
    if isinstance(event, ExperimentMoved):
        if state.slot(event.slot).experiment is not None:
            raise ImpossibleHistory(f"experiment {before.number} was moved to a slot that is taken")
        _change_slot(state, before.slot, experiment=None, noise=None)
        _change_slot(state, event.slot, experiment=before.number)
    _hear(state, event, record.time, advanced.slot)
    if isinstance(event, TrainingStarted):
        # A replicate measures chance: left out where it is bad, the noise would seem smaller than it is.
        limits = () if advanced.repeats is not None else state.yardstick.limits()
        _change_slot(state, advanced.slot, limits=limits)
    state.experiments.replace(before.number, advanced)
    if advanced.number == 0 and advanced.score is not None:
        state.reference = advanced.score.work
    if advanced.phase is Phase.DONE:
        _change_slot(state, advanced.slot, experiment=None, noise=None, faults=0, fault="")
        state.steering = steering_.ended(state.steering, advanced.number)
        _count(state, advanced)
    if isinstance(event, Committed):
        _move_frontier(state, event, advanced)


def _move_frontier(state: ResearchState, event: Committed, kept: Experiment) -> None:
    before = state.frontier
    if before is not None and before.experiment is not None and not _descends(state, before, kept):
        state.to_merge.append((before.experiment, kept.number))
    state.tried = {}  # from the frontier of before; nothing will be run from there again
    score = kept.score
    state.frontier = Frontier(
        commit=event.commit, val_bpb=score.val_bpb if score else None, experiment=kept.number
    )
    if state.certified is None:
        state.certified = state.frontier
    else:
        state.chain.append(kept.number)


def _descends(state: ResearchState, before: Frontier, kept: Experiment) -> bool:
    """Whether a keep has the change of the frontier before it, or of a chain that has been taken back."""
    own = state.experiments[before.experiment].commit if before.experiment is not None else None
    return kept.parent in {before.commit, own, *state.fallen.values()}


def _hear(state: ResearchState, event: AnyEvent, time: str, slot: int) -> None:
    """What an attempt says about noise and faults, and that rows were given away."""
    match event:
        case Voided(cause="disturbed", evidence=Disturbance() as evidence):
            _change_slot(state, slot, noise=Noise(evidence, since=time))
        case Voided(cause="infrastructure"):
            _change_slot(state, slot, faults=state.slot(slot).faults + 1, fault=event.reason)
        case TrainingStarted():
            _change_slot(state, slot, noise=None)  # it is no longer waited for
        case ScoringStarted():
            before = event.draw
            state.draw = Draw(scoring=before.scoring + 1, confirmation=before.confirmation + 1)
            state.last_scored = event.experiment
        case ScoringFinished(score=Score(confirmed=False)) if state.last_scored == event.experiment:
            # The rows for a confirmation went to nobody, and no other scoring was given the next ones.
            state.draw = state.draw.model_copy(update={"confirmation": state.draw.confirmation - 1})
        case _:
            return


def _count(state: ResearchState, finished: Experiment) -> None:
    state.order.append(finished.number)
    if finished.repeats is None:
        state.tried_since_replicate += finished.number > 0
        if finished.cause is not Cause.KILLED:
            state.notebook.learn(finished)
        if finished.cause in TRIVIAL_CAUSES and finished.proposal.purpose != "fix":
            state.to_repair = finished.number
    lacked = obstacle.of(finished)
    if finished.number == 0:
        state.baseline_lacked = lacked
    same = lacked is not None and lacked == state.baseline_lacked
    state.lacked_in_a_row = state.lacked_in_a_row + 1 if same else 0
    if finished.verdict is not None and finished.repeats is None:
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
    if finished.cause is not None and (finished.repeats is None or finished.cause is Cause.EXPOSED):
        state.causes[finished.cause] += 1
    if finished.repeats is None and (found := suspicion(finished)) is not None:
        state.suspects.setdefault(finished.digest, found)
    if state.baseline_bpb is None and finished.verdict is Verdict.KEEP and finished.score:
        state.baseline_bpb = finished.score.val_bpb
    _learn_curve(state, finished)
    _measure(state, finished)


def _learn_curve(state: ResearchState, finished: Experiment) -> None:
    if finished.verdict is Verdict.KEEP or finished.cause is Cause.REPLICATE:
        program = finished.number if finished.repeats is None else finished.repeats
        assert finished.outcome is not None
        yardstick = state.yardstick.adding(program, finished.outcome.curve)
        heads = [known.experiment for known in (state.frontier, state.certified) if known is not None]
        state.yardstick = yardstick.only({0, program, *state.chain, *filter(None, heads)})


def _measure(state: ResearchState, finished: Experiment) -> None:
    """What has to beat the incumbent has to beat the mean of its fresh runs, once there are two: the run that
    selected it was lucky more often than not.
    """
    if finished.proposal.certificate is not None:
        state.certificate_runs += 1
        _pair(state, finished)
    if (found := run_of(finished)) is None:
        return
    program, run = found
    runs = state.runs.setdefault(program, [])
    on_slot = [known for known in runs if known.slot == run.slot]
    state.pool = state.pool.adding([known.val_bpb for known in on_slot], run.val_bpb)
    if run.fresh_bpb is not None:
        fresh = [known.fresh_bpb for known in on_slot if known.fresh_bpb is not None]
        state.fresh_pool = state.fresh_pool.adding(fresh, run.fresh_bpb)
    runs.append(run)
    if len(runs) < LEAST_RUNS:
        return
    if program == 0:
        state.baseline_bpb = mean(runs)
    measured = {"val_bpb": mean(runs), "runs": len(runs)}
    if state.frontier is not None and state.frontier.experiment == program:
        state.frontier = state.frontier.model_copy(update=measured)
    if state.certified is not None and state.certified.experiment == program:
        state.certified = state.certified.model_copy(update=measured)


def _pair(state: ResearchState, finished: Experiment) -> None:
    """A run of a certificate that is still open. What is finished later is a replicate like any other; what a
    person has killed is asked for again.
    """
    certificate, proposal = state.certificate, finished.proposal
    if finished.cause is Cause.KILLED:
        return
    if certificate is None or certificate.number != proposal.certificate or state.unsettled is not None:
        return
    scored = run_of(finished)
    run = PairRun(
        experiment=finished.number,
        pair=proposal.pair or 0,
        is_head=finished.repeats == certificate.head,
        slot=finished.slot,
        val_bpb=scored[1].val_bpb if scored else None,
        fresh_bpb=scored[1].fresh_bpb if scored else None,
    )
    state.certificate = certificate.with_run(run)
