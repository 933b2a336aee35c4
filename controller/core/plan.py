"""What happens next, in any situation. Pure: every rule of waiting, retrying, giving up and limits is here.

`due(state, situation)` gives the actions that are due, `stop` whether the effort ends, `wake_at` when a rule
may say something else by the clock alone. The loop starts what is due and records what came of it; after a
crash, with several slots and with any agent it is the same code.

`due` goes through the rules in this order:

    steering      a person's requests are answered, and a rollback is carried out, before anything else
    certificates  that are to be opened, decided or settled are, before what follows
    pausing       a person's pause and a lack of disk space go on record, and so does their end
    on_slots      each open experiment takes its next step on its slot
    in_pipeline   each proposal takes its next step on the way to becoming an experiment
    obsolete      what is made ready for a frontier that will not come is broken off
    questions     agents are asked for what the slots will need
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from controller.core.backoff import backoff
from controller.core.errors import NotReady, Unfit, UserError
from controller.core.events import (
    AgentAbsent,
    AgentFailed,
    CertificateDecided,
    CertificateOutcome,
    Paused,
    Purpose,
    SlotDisturbed,
    VoidCause,
)
from controller.core.experiment import Experiment, Phase
from controller.core.hardware.disturbance import spoiling
from controller.core.proposal import Proposal
from controller.core.rules import Rules, Wish
from controller.core.spending import Spending
from controller.core.state import BASELINE, MERGE, PERSON, REPLICATE, ResearchState, SlotState
from controller.core.statistics.certificate import SPARE_PAIRS, Certificate, conclude, first_runs
from controller.core.statistics.replicates import LEAST_DF
from controller.core.steering import killed_by
from controller.core.steering_request import SteeringRequest, waits
from controller.core.untrusted import clean_line
from controller.core.values import Cause, Disturbance, DisturbanceKind, Evidence

MAX_REFUSALS = 50
"""Refused proposals in a row after which a person is needed."""
MAX_AGENT_ERRORS = 50
"""Agent errors in a row after which a person is needed."""
ERRORS_BEFORE_ABSENCE = 3
"""Agent errors in a row after which an agent that costs money is left alone for a while."""
PAIRS_AT_ONCE = 4
"""Pairs of a certificate that are under way at most: each is looked at before the next ones begin."""
FAULTS_AT_ONCE = 3
"""Infrastructure faults in a row before a pause: most pass with the container they hit."""


@dataclass(frozen=True)
class Situation:
    """The world as the loop last saw it."""

    rules: Rules
    now: dt.datetime
    """UTC, on a clock that never steps while the process lives."""
    worked_seconds: float = 0.0
    """How long controllers have been at work on the effort."""
    wish: Wish = field(default_factory=lambda: Wish(paused=False))
    requests: tuple[SteeringRequest, ...] = ()
    """What persons have asked for and was not removed yet, oldest first."""
    shortage: str | None = None
    """A sentence if a run would not find the disk space it needs."""
    busy_slots: frozenset[int] = frozenset()
    """Slots on which an action is under way."""
    busy_proposals: frozenset[int] = frozenset()
    """Proposals on which an action is under way."""
    exhausted: str | None = None
    """Why the agent has nothing further to propose in this session."""
    understudy_failed: bool = False
    contenders: frozenset[int] = frozenset()
    """Experiments that are being confirmed: their first score would be kept."""
    foreseen: frozenset[tuple[int, int]] = frozenset()
    """(proposal, contender) that have been rebased and rehearsed in advance."""
    foreseeing: frozenset[Foresee] = frozenset()
    """Those that are being made ready just now."""
    examined: frozenset[tuple[int, int]] = frozenset()
    """(experiment, attempt) whose disturbance was not there without the run."""
    absent_seconds: float = 0.0
    """How long the agent has been absent."""
    paused_seconds: Mapping[int | None, float] = field(default_factory=dict)
    """How long each pause has lasted, by slot; None for that of all slots."""


# --- actions -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ask:
    """Ask an agent for a proposal."""

    agent: str
    purpose: Purpose
    fixes: int | None = None
    merges: int | None = None
    repeats: int | None = None
    certificate: int | None = None
    pair: int | None = None
    stands_in_for: str | None = None
    request: str = ""


@dataclass(frozen=True)
class Rebase:
    """Make a proposal fit the frontier, or drop it."""

    proposal: int


@dataclass(frozen=True)
class Rehearse:
    """Build a rebased proposal and take one step with it."""

    proposal: int


@dataclass(frozen=True)
class Foresee:
    """Rebase and rehearse a proposal as if a contender were the frontier already."""

    proposal: int
    contender: int


@dataclass(frozen=True)
class BreakOff:
    """End what is under way on a proposal."""

    proposal: int


@dataclass(frozen=True)
class Drop:
    """Give a proposal up."""

    proposal: int
    reason: str


@dataclass(frozen=True)
class Accept:
    """Open an experiment with a proposal, or refuse the proposal."""

    proposal: int
    slot: int


@dataclass(frozen=True)
class Train:
    """Start the trainer, or adopt the one that runs, and see it through."""

    experiment: int
    slot: int


@dataclass(frozen=True)
class Examine:
    """Look whether what disturbed a run is there without the run, too."""

    experiment: int
    slot: int
    found: Disturbance


@dataclass(frozen=True)
class Score:
    """Score the checkpoint."""

    experiment: int
    slot: int


@dataclass(frozen=True)
class Decide:
    """Apply the rules of the game, unless something about the score has to go on record first."""

    experiment: int
    slot: int


@dataclass(frozen=True)
class Commit:
    """Make a kept experiment the frontier."""

    experiment: int
    slot: int


@dataclass(frozen=True)
class Void:
    """Record that an attempt came to nothing through no fault of the experiment."""

    experiment: int
    slot: int
    cause: VoidCause
    reason: str
    evidence: Disturbance | None = None


@dataclass(frozen=True)
class Look:
    """Look whether a slot is still disturbed."""

    experiment: int
    slot: int


@dataclass(frozen=True)
class Move:
    """Give an experiment whose slot is no longer there another one."""

    experiment: int
    slot: int


@dataclass(frozen=True)
class EndRun:
    """Stop what is under way on a slot, because its experiment is killed."""

    experiment: int
    slot: int


@dataclass(frozen=True)
class Steer:
    """Grant a request or refuse it, and remove it."""

    request: SteeringRequest


@dataclass(frozen=True)
class RollBack:
    """Put the branch back on an earlier program."""

    request: str
    target: int


@dataclass(frozen=True)
class OpenCertificate:
    """Begin to run the head of the chain and the last certified program in pairs."""

    base: int
    head: int


@dataclass(frozen=True)
class DecideCertificate:
    """Record what has come of the pairs."""

    event: CertificateDecided


@dataclass(frozen=True)
class SettleCertificate:
    """Move the certified head, or take the chain back."""

    certificate: int


@dataclass(frozen=True)
class Pause:
    """Record that nothing new begins."""

    event: Paused


@dataclass(frozen=True)
class Resume:
    """Record that a pause is over."""

    slot: int | None
    seconds: float


OnSlot = Train | Examine | Score | Decide | Commit | Void | Look
OnProposal = Rebase | Rehearse | Foresee | BreakOff | Drop | Accept
OnCertificate = OpenCertificate | DecideCertificate | SettleCertificate
OnRequest = Steer | RollBack
Action = Pause | Resume | Move | EndRun | OnRequest | OnCertificate | OnSlot | OnProposal | Ask


def due(state: ResearchState, situation: Situation) -> list[Action]:
    """Every action that is due now. Those that are under way are not among them."""
    first: list[Action] = [*steering(state, situation)] or [*on_certificate(state, situation)]
    if first:
        return first  # the frontier may be another one afterwards, and so may the rules
    return [
        *pausing(state, situation),
        *on_slots(state, situation),
        *in_pipeline(state, situation),
        *obsolete(state, situation),
        *questions(state, situation),
    ]


# --- a person's requests ---------------------------------------------------------------------------


def steering(state: ResearchState, situation: Situation) -> Iterator[OnRequest]:
    """A rollback that is on record is carried out; then requests are answered, the oldest first."""
    granted, committing = state.steering.rollback, any(e.phase is Phase.DECIDED for e in state.open)
    if granted is not None and not committing:
        yield RollBack(granted.request, granted.target or 0)
        return
    for request in situation.requests:
        if request.id not in state.steering.heard and not waits(state, request):
            yield Steer(request)
            return  # what may be granted next depends on this one


# --- pauses --------------------------------------------------------------------------------------


def pausing(state: ResearchState, situation: Situation) -> Iterator[Action]:
    """What is on record about pauses is brought in line with what a person wants and with the disk.

    A pause is recorded once it has an effect: when a slot has nothing to see through.
    """
    wanted, told = _wanted_pause(situation), state.pause
    if told is not None and (wanted is None or wanted.why != told.event.why):
        yield Resume(None, situation.paused_seconds.get(None, 0.0))
    elif wanted is not None and told is None and _is_any_slot_free(state, situation):
        yield Pause(wanted)
    for number, slot in state.slots.items():
        if slot.pause is not None and slot.faults == 0:
            yield Resume(number, situation.paused_seconds.get(number, 0.0))


def _wanted_pause(situation: Situation) -> Paused | None:
    if situation.wish.paused:
        return Paused(why="person", by=situation.wish.by, reason=situation.wish.reason)
    if situation.shortage is not None:
        return Paused(why="disk", reason=situation.shortage)
    return None


def _is_any_slot_free(state: ResearchState, situation: Situation) -> bool:
    under_way = sum(experiment.under_way for experiment in state.open)
    return under_way < situation.rules.slots


def rest_after_fault(state: ResearchState, slot: int, situation: Situation) -> Paused | None:
    """The pause of a slot after an infrastructure fault that is on record; None if it goes on at once."""
    rules, told = situation.rules.retry, state.slot(slot)
    if told.faults < FAULTS_AT_ONCE:
        return None
    seconds = backoff(told.faults - FAULTS_AT_ONCE + 1, rules.first_seconds, rules.max_seconds)
    return Paused(
        why="infrastructure",
        slot=slot,
        reason=f"{faults(told.faults)}; the last was: {clean_line(told.fault)}",
        until=_after(situation, seconds),
    )


def faults(number: int) -> str:
    """In words."""
    return f"{number} infrastructure faults in a row" if number > 1 else "one infrastructure fault"


# --- certificates ----------------------------------------------------------------------------------


def on_certificate(state: ResearchState, situation: Situation) -> Iterator[OnCertificate]:
    """One at a time: opened for a chain of keeps, decided by its pairs, settled in the repository."""
    if state.unsettled is not None:
        if all(experiment.phase is not Phase.DECIDED for experiment in state.open):
            yield SettleCertificate(state.unsettled.certificate)
    elif state.certificate is not None:
        if (event := _decided_certificate(state, state.certificate, situation)) is not None:
            yield DecideCertificate(event)
    elif is_certificate_due(state, situation) and _wanted_pause(situation) is None:
        assert state.certified is not None and state.certified.experiment is not None
        yield OpenCertificate(state.certified.experiment, state.chain[-1])


def _decided_certificate(
    state: ResearchState, certificate: Certificate, situation: Situation
) -> CertificateDecided | None:
    most = situation.rules.certify.pairs
    if (found := conclusion(state, certificate, most)) is None:
        return None
    outcome, rule, evidence = found
    return CertificateDecided(
        certificate=certificate.number,
        base=certificate.base,
        head=certificate.head,
        outcome=outcome,
        rule=rule,
        evidence=evidence,
        most_pairs=most,
    )


def conclusion(
    state: ResearchState, certificate: Certificate, most_pairs: int
) -> tuple[CertificateOutcome, str, Evidence] | None:
    """What the pairs say by now; None while more are needed. How far chance goes, other runs say."""
    own = {run.experiment for run in certificate.runs}
    both = {program: state.runs.get(program, []) for program in (certificate.base, certificate.head)}
    spread = state.pool.without(both, own).spread
    fresh = state.fresh_pool.without(both, own, fresh=True).spread
    earlier = [run.val_bpb for run in both[certificate.base] if run.experiment not in own]
    return conclude(certificate, spread, fresh, most_pairs, earlier)


def is_certificate_due(state: ResearchState, situation: Situation) -> bool:
    """Whether there were enough keeps, or gain enough, and runs to spare; at the end one keep is enough."""
    rules, frontier, base = situation.rules.certify, state.frontier, state.certified
    if not state.chain or state.certificate is not None or rules.share == 0:
        return False
    if situation.rules.keep.rule == "certified":
        return True
    if state.certificate_runs + 2 > rules.share * len(state.order):
        return False
    if len(state.chain) >= rules.keeps or _are_all_finished(state, situation):
        return True
    spread = state.pool.spread
    if spread is None or spread.df < LEAST_DF or frontier is None or base is None:
        return False
    gain = (base.val_bpb or 0.0) - (frontier.val_bpb or 0.0)
    return gain >= rules.gain * spread.sigma


def _pairs_due(state: ResearchState, situation: Situation) -> list[Ask]:
    """The missing halves of the pairs that may be under way: as many as there are slots, and four at most."""
    certificate = state.certificate
    if certificate is None or state.unsettled is not None:
        return []
    proposals = [*state.proposals.values(), *(experiment.proposal for experiment in state.open)]
    there = {(run.pair, run.is_head) for run in certificate.runs} | {
        (known.pair, known.repeats == certificate.head)
        for known in proposals
        if known.certificate == certificate.number
    }
    whole = {base.pair for base, _ in certificate.pairs}
    most = situation.rules.certify.pairs + SPARE_PAIRS
    wanted = [pair for pair in range(most) if pair not in whole][: min(situation.rules.slots, PAIRS_AT_ONCE)]
    return [
        Ask(
            REPLICATE,
            "replicate",
            repeats=certificate.head if is_head else certificate.base,
            certificate=certificate.number,
            pair=pair,
        )
        for pair in wanted
        for is_head in first_runs(pair)
        if (pair, is_head) not in there
    ]


def _slot_of(
    state: ResearchState, replicate: Proposal, situation: Situation, idle: Sequence[int]
) -> int | None:
    """Where it may run now; None: nowhere. Both halves of a pair run on one slot, in their order."""
    if replicate.pair is None:
        return idle[0] if idle else None
    pair = (replicate.certificate, replicate.pair)
    others = [known for known in state.proposals.values() if (known.certificate, known.pair) == pair]
    if any(known.number < replicate.number for known in others):
        return None
    slots = {known.slot for known in state.open if (known.proposal.certificate, known.proposal.pair) == pair}
    if state.certificate is not None and state.certificate.number == replicate.certificate:
        slots |= {run.slot for run in state.certificate.runs if run.pair == replicate.pair}
    if any(slot >= situation.rules.slots for slot in slots) and any(
        (known.proposal.certificate, known.proposal.pair) == pair for known in state.open
    ):
        return None  # the other half is about to be moved
    places = [slot for slot in slots if slot < situation.rules.slots] or idle
    return next((slot for slot in places if slot in idle), None)


# --- experiments on their slots ------------------------------------------------------------------


def on_slots(state: ResearchState, situation: Situation) -> Iterator[Action]:
    """The next step of each open experiment."""
    yield from _moves(state, situation)
    for experiment in state.open:
        if experiment.number in state.steering.killed and experiment.phase is not Phase.DECIDED:
            yield _kill(state, situation, experiment)
            continue
        if experiment.slot in situation.busy_slots:
            continue
        if experiment.slot < situation.rules.slots or experiment.phase in _VERDICT_IS_DUE:
            yield from _next_step(state, situation, experiment)
        elif experiment.under_way:
            reason = "its slot is no longer there"
            yield Void(experiment.number, experiment.slot, "interrupted", reason)


def _next_step(state: ResearchState, situation: Situation, experiment: Experiment) -> Iterator[Action]:
    number, slot = experiment.number, experiment.slot
    match experiment.phase:
        case Phase.OPENED:
            yield from _start(state, situation, experiment)
        case Phase.TRAINING:
            yield Train(number, slot)
        case Phase.TRAINED:
            yield _after_training(situation, experiment)
        case Phase.SCORING:
            reason = "the controller stopped while the judge was at work"
            yield Void(number, slot, "interrupted", reason)
        case Phase.QUARANTINED:
            yield Score(number, slot)
        case Phase.JUDGED if _decided_next(state, situation) == number:
            yield Decide(number, slot)
        case Phase.DECIDED:
            yield Commit(number, slot)
        case _:
            return


def _kill(state: ResearchState, situation: Situation, experiment: Experiment) -> Action:
    """What runs is stopped and void; then its verdict goes on record."""
    number, slot, asked = experiment.number, experiment.slot, state.steering.killed[experiment.number]
    if slot in situation.busy_slots:
        return EndRun(number, slot)
    if experiment.phase is Phase.OPENED:
        return Decide(number, slot)
    return Void(number, slot, "killed", killed_by(asked))


def _start(state: ResearchState, situation: Situation, experiment: Experiment) -> Iterator[Action]:
    slot = state.slot(experiment.slot)
    held = experiment.slot in state.steering.held
    if held or not _may_go_on(state, situation) or _rests(slot, situation):
        return
    if slot.noise is None or not situation.rules.is_watched:
        yield Train(experiment.number, experiment.slot)
    elif _is_past(slot.noise.until, situation):
        yield Look(experiment.number, experiment.slot)


def _after_training(situation: Situation, experiment: Experiment) -> Action:
    """A disturbed run is void if the disturbance is there without it, too.

    What was there beside the run alone may be the run's own work, done because it did not like its loss.
    """
    number, slot, noise = experiment.number, experiment.slot, situation.rules.noise
    outcome = experiment.outcome
    assert outcome is not None
    found = spoiling(outcome)
    # A run may have lost the GPU itself, and may call itself hopeless when it likes.
    of_its_own = outcome.cause is Cause.HOPELESS or (
        found is not None and found.kind is DisturbanceKind.GPU_LOST
    )
    if of_its_own and experiment.attempt > noise.repeats:
        found = None
    if found is not None and found.before:
        return Void(number, slot, "disturbed", found.detail, found)
    examined = (number, experiment.attempt) in situation.examined
    if found is not None and situation.rules.is_watched and not examined:
        return Examine(number, slot, found)
    return Score(number, slot) if outcome.cause is None else Decide(number, slot)


def _moves(state: ResearchState, situation: Situation) -> list[Move]:
    """Experiments that wait on slots that are no longer there take idle ones, before any proposal does."""
    stranded = [
        experiment.number
        for experiment in state.open
        if experiment.slot >= situation.rules.slots
        and experiment.slot not in situation.busy_slots
        and not experiment.under_way
        and experiment.number not in state.steering.killed
    ]
    return [Move(*pair) for pair in zip(stranded, _idle_slots(state, situation), strict=False)]


_VERDICT_IS_DUE = (Phase.JUDGED, Phase.DECIDED)
"""Takes no slot and but a moment. Meanwhile the frontier may move, so nothing is opened on it."""


def _decided_next(state: ResearchState, situation: Situation) -> int | None:
    """One verdict at a time, and none before a kept experiment is the frontier that others have to beat."""
    scored = [experiment for experiment in state.open if experiment.phase in _VERDICT_IS_DUE]
    first = min(
        scored,
        key=lambda known: (known.phase is Phase.JUDGED, known.slot not in situation.busy_slots, known.number),
        default=None,
    )
    return first.number if first is not None else None


def wait_for_slot(
    state: ResearchState, experiment: Experiment, found: Disturbance, situation: Situation
) -> SlotDisturbed:
    """What goes on record after a look that found a slot disturbed: when to look again."""
    noise, told = situation.rules.noise, state.slot(experiment.slot).noise
    looks = 1 + (told.looks if told else 0)
    seconds = backoff(looks, noise.retry_seconds, noise.max_retry_seconds)
    return SlotDisturbed(
        experiment=experiment.number, disturbance=found, looks=looks, until=_after(situation, seconds)
    )


def _idle_slots(state: ResearchState, situation: Situation) -> list[int]:
    """Slots that could take an experiment."""
    return [
        number
        for number in range(situation.rules.slots)
        if number not in situation.busy_slots
        and number not in state.steering.held
        and state.slot(number).experiment is None
        and not _rests(state.slot(number), situation)
    ]


def _rests(slot: SlotState, situation: Situation) -> bool:
    return slot.pause is not None and not _is_past(slot.pause.event.until, situation)


# --- proposals on their way ----------------------------------------------------------------------


def in_pipeline(state: ResearchState, situation: Situation) -> Iterator[Action]:
    """The next step of each proposal that has a text. Replicates go first, then repairs and merges."""
    free, begins = _open_slots(state, situation), _may_go_on(state, situation)
    room = _most_candidates(situation) - state.candidates
    urgent = _urgent_alive(state) + len(_urgent_due(state, situation))
    for proposal in sorted(state.proposals.values(), key=_precedence):
        if not proposal.is_made or proposal.number in situation.busy_proposals:
            continue
        is_urgent = _is_urgent(proposal)
        if _is_replicate(proposal):
            if _is_superfluous(state, proposal):
                yield Drop(proposal.number, "its certificate is decided")
            elif (slot := _slot_of(state, proposal, situation, free)) is not None:
                yield Accept(proposal.number, slot)
                free.remove(slot)
            continue
        step = _before_acceptance(state, situation, proposal)
        if isinstance(step, Rehearse) and not begins:
            continue
        if step is not None:
            yield step
        elif min(len(free), room) > (0 if is_urgent else urgent):
            yield Accept(proposal.number, free.pop(0))
            urgent -= is_urgent
            room -= 1
        elif begins:
            yield from _foresight(situation, proposal)


def _unclaimed_slots(state: ResearchState, situation: Situation) -> list[int]:
    """Slots that could take a new experiment."""
    return _idle_slots(state, situation)[len(_moves(state, situation)) :]


def _open_slots(state: ResearchState, situation: Situation) -> list[int]:
    """Slots on which an experiment may be opened now. Nothing is before the baseline is finished (R8)."""
    is_baseline_open = state.next_number > 0 and not _has_baseline(state)
    is_settled = all(experiment.phase not in _VERDICT_IS_DUE for experiment in state.open)
    if is_baseline_open or not is_settled or not _may_go_on(state, situation):
        return []
    return _unclaimed_slots(state, situation)


def _precedence(proposal: Proposal) -> tuple[bool, bool, int]:
    return not _is_replicate(proposal), not _is_urgent(proposal), proposal.number


def _most_candidates(situation: Situation) -> int:
    """The limit on experiments; replicates do not count."""
    most = situation.rules.limits.experiments
    return 10**9 if most is None else most


def _before_acceptance(state: ResearchState, situation: Situation, proposal: Proposal) -> Action | None:
    """What has to be done with a proposal before it can become an experiment; None if it is ready."""
    number, rules = proposal.number, situation.rules
    if proposal.agent not in (rules.agent, rules.understudy, BASELINE, MERGE, PERSON):
        return Drop(number, f"{proposal.agent} made it, and now {rules.agent} is at work")
    if state.frontier is not None and proposal.parent != state.frontier.commit:
        return Rebase(number)
    if not proposal.rehearses:
        return None
    rehearsal = proposal.rehearsal_of(proposal.train_sha256)
    if rehearsal is None:
        return Rehearse(number)
    if rehearsal.result == "failed":
        return Drop(number, f"on the new frontier its rehearsal failed: {clean_line(rehearsal.detail)}")
    return None


def _foresight(situation: Situation, proposal: Proposal) -> Iterator[Action]:
    """While a score is confirmed, proposals are made ready for the frontier that it would make."""
    for contender in sorted(situation.contenders):
        if (proposal.number, contender) not in situation.foreseen:
            yield Foresee(proposal.number, contender)
            return


def obsolete(state: ResearchState, situation: Situation) -> Iterator[Action]:
    """A contender that was not kept is not worth being ready for."""
    hopeful = {*situation.contenders, *(experiment.number for experiment in state.open)}
    if state.frontier is not None and state.frontier.experiment is not None:
        hopeful.add(state.frontier.experiment)
    for foresight in sorted(situation.foreseeing, key=lambda one: one.proposal):
        if foresight.contender not in hopeful:
            yield BreakOff(foresight.proposal)


# --- questions to agents -------------------------------------------------------------------------


def questions(state: ResearchState, situation: Situation) -> Iterator[Ask]:
    """Whom to ask for what: as many proposals are kept on their way as the slots will need."""
    if not _may_go_on(state, situation):
        return
    if state.next_number == 0:
        if not state.proposals:
            yield Ask(BASELINE, "baseline")
        return
    repeats = _replicates_due(state, situation)
    yield from repeats
    left = max(0, situation.rules.slots - _unanswered(state))
    urgent = _urgent_due(state, situation)
    for ask in urgent:
        if ask.agent in _NOBODY_IS_ASKED or left > 0:
            yield ask
            left -= ask.agent not in _NOBODY_IS_ASKED
    ideas = _ideas(state, situation, urgent, len(repeats))
    yield from [*ideas][: _room(state, situation, len(urgent))]


def _replicates_due(state: ResearchState, situation: Situation) -> list[Ask]:
    """The baseline runs a few times before anything else; later the incumbent runs again now and then."""
    wanted, frontier = situation.rules.replicates, state.frontier
    if frontier is None or frontier.experiment is None or not _has_baseline(state):
        return []
    waiting = sum(_is_replicate(known) and known.certificate is None for known in state.proposals.values())
    of_baseline = wanted.baseline - 1 - state.replicated.get(0, 0) - waiting
    if of_baseline > 0 and 0 in state.runs:
        return [Ask(REPLICATE, "replicate", repeats=0)] * of_baseline
    if waiting == 0 and state.certificate is None and 0 < wanted.every <= state.tried_since_replicate:
        return [Ask(REPLICATE, "replicate", repeats=frontier.experiment)]
    return _pairs_due(state, situation)


def _is_replicate(proposal: Proposal) -> bool:
    return proposal.repeats is not None


def _is_superfluous(state: ResearchState, proposal: Proposal) -> bool:
    """Whether it was asked for a certificate that is decided by now."""
    if proposal.certificate is None:
        return False
    open_one = state.certificate
    return open_one is None or open_one.number != proposal.certificate or state.unsettled is not None


def _urgent_due(state: ResearchState, situation: Situation) -> list[Ask]:
    """What goes before new ideas, as far as the limit on experiments has room for it.

    A person's own programs go first. A crash over a trifle gets one repair (R9). Two keeps that started from
    one frontier are merged: the frontier lacks the change of the first. If the two texts conflict, the agent
    is asked to combine them.
    """
    agent = situation.rules.agent
    asks = _queued_due(state)
    merges = [Ask(MERGE, "merge", merges=behind) for behind, _ in state.to_merge]
    if _may_ask(state, situation):
        if state.to_repair is not None and not _is_absent(state, situation):
            asks.append(Ask(agent, "fix", fixes=state.to_repair))
        merges += [Ask(agent, "merge", merges=behind) for behind in state.to_combine[:1]]
    return [*asks, *merges][: max(0, _most_candidates(situation) - state.candidates - _urgent_alive(state))]


def _queued_due(state: ResearchState) -> list[Ask]:
    """A person's programs one by one, so that they run in their order."""
    on_its_way = any(known.agent == PERSON and not known.is_made for known in state.proposals.values())
    if on_its_way or not _has_baseline(state):
        return []
    return [Ask(PERSON, "queued", request=one.request) for one in state.steering.due(state.proposals)[:1]]


_NOBODY_IS_ASKED = (MERGE, PERSON)
"""Makers of proposals whose text is there already, or is put together from two that are."""


def _urgent_alive(state: ResearchState) -> int:
    return sum(_is_urgent(proposal) for proposal in state.proposals.values())


def _is_urgent(proposal: Proposal) -> bool:
    return proposal.purpose in ("fix", "merge", "queued")


def _ideas(state: ResearchState, situation: Situation, urgent: Sequence[Ask], repeats: int) -> Iterator[Ask]:
    """A slow agent is asked ahead, another one when a slot is idle; an understudy stands in meanwhile.

    A fast one is asked for one proposal at a time, since it must know of the one before. What is `urgent`
    goes first, and so do replicates, of which `repeats` are about to be asked for.
    """
    rules, others = situation.rules, len(urgent)
    ideas = [proposal for proposal in state.proposals.values() if not _is_replicate(proposal)]
    idle = len(_unclaimed_slots(state, situation)) if _has_baseline(state) else 0
    idle -= repeats + _claimed(state, situation)
    asked_understudy = _asked_understudy(state)
    if _is_absent(state, situation) and _understudy_acts(situation):
        ready = sum(proposal.is_made for proposal in ideas)
        if idle - ready - others > 0 and not asked_understudy:
            yield Ask(rules.understudy or rules.agent, "propose", stands_in_for=rules.agent)
    if _may_ask(state, situation):
        wanted = rules.slots if rules.asks_ahead else idle
        missing = wanted - (len(ideas) - asked_understudy) - others
        asked = _unanswered(state) + sum(ask.agent not in _NOBODY_IS_ASKED for ask in urgent)
        most = missing if rules.asks_ahead else min(missing, 1 - asked)
        for _ in range(most):
            yield Ask(rules.agent, "propose")


def _claimed(state: ResearchState, situation: Situation) -> int:
    """How many idle slots replicates are about to take."""
    idle = _unclaimed_slots(state, situation)
    before = len(idle)
    for proposal in filter(_is_replicate, state.proposals.values()):
        if (slot := _slot_of(state, proposal, situation, idle)) is not None:
            idle.remove(slot)
    return before - len(idle)


def _asked_understudy(state: ResearchState) -> int:
    return sum(not p.is_made and p.stands_in_for is not None for p in state.proposals.values())


def _room(state: ResearchState, situation: Situation, urgent: int) -> int:
    """How many proposals the limit on experiments allows beside `urgent`. None before the baseline runs."""
    if state.next_number == 1 and state.experiments[0].phase is Phase.OPENED:
        return 0
    ideas = sum(not _is_replicate(proposal) for proposal in state.proposals.values())
    return max(0, _most_candidates(situation) - state.candidates - ideas - urgent)


def _unanswered(state: ResearchState) -> int:
    """Questions that the agent is at work on."""
    return sum(
        not proposal.is_made
        and proposal.stands_in_for is None
        and proposal.agent not in (*_NOBODY_IS_ASKED, REPLICATE)
        for proposal in state.proposals.values()
    )


def _has_baseline(state: ResearchState) -> bool:
    return state.next_number > 0 and state.experiments[0].phase is Phase.DONE


def _is_absent(state: ResearchState, situation: Situation) -> bool:
    return state.absence is not None and state.absence.agent == situation.rules.agent


def _may_ask(state: ResearchState, situation: Situation) -> bool:
    """True if the agent is there, or if it is time to find out."""
    if situation.exhausted is not None:
        return False
    absence = state.absence
    if absence is None or not _is_absent(state, situation):
        return True
    return absence.until is not None and _is_past(absence.until, situation)


def _understudy_acts(situation: Situation) -> bool:
    after = situation.rules.absence.understudy_after_seconds
    has_one = situation.rules.understudy is not None and not situation.understudy_failed
    return has_one and after is not None and situation.absent_seconds >= after


def absent(
    state: ResearchState, reason: str, retry_seconds: float | None, situation: Situation
) -> AgentAbsent:
    """What goes on record when the agent cannot be reached.

    `retry_seconds`: what it asked for; 0: it did not say; None: not until a person changes something. Its own
    wish counts the first time; after that the usual delay is the least.
    """
    rules, absence = situation.rules, state.absence
    times = 1
    if absence is not None and _is_absent(state, situation):
        times = absence.times + absence.is_over(situation.now)
    until = None
    if retry_seconds is not None:
        usual = backoff(times, rules.absence.retry_seconds, rules.absence.max_retry_seconds)
        named = retry_seconds > 0 and times == 1
        until = _after(situation, retry_seconds if named else max(retry_seconds, usual))
    return AgentAbsent(agent=rules.agent, reason=reason, until=until, times=times)


def after_failure(state: ResearchState, failed: AgentFailed, situation: Situation) -> AgentAbsent | None:
    """An agent that costs money and fails again and again gets a rest. `failed` is on record."""
    errors = state.agent_errors_in_a_row
    if not situation.rules.asks_ahead or errors < ERRORS_BEFORE_ABSENCE:
        return None
    reason = f"It failed {errors} times in a row, the last time because: {failed.reason}"
    return absent(state, reason, 0.0, situation)


# --- money ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class OverBudget:
    """Why a request must not be sent."""

    reason: str
    retry_seconds: float | None
    """When there is money again; None: never."""


def over_budget(spending: Spending, rules: Rules, now: dt.datetime, reserve_usd: float) -> OverBudget | None:
    """Whether a request that may cost `reserve_usd` could exceed the money of the effort or of the day.

    What is in flight counts in full. `now` is UTC, by the clock that tells days.
    """
    effort, day = rules.limits.dollars, rules.limits.dollars_per_day
    total = spending.total.committed_usd
    if effort is not None and total + reserve_usd > effort:
        return OverBudget(
            f"limit of {effort:g} dollars reached: {total:.2f} are spent or on their way, and the next "
            f"request may cost {reserve_usd:.2f}",
            None,
        )
    today = spending.on(now.date().isoformat()).committed_usd
    if day is not None and today + reserve_usd > day:
        midnight = dt.datetime.combine(now.date() + dt.timedelta(days=1), dt.time(), dt.UTC)
        return OverBudget(
            f"The limit of {day:g} dollars a day is reached: {today:.2f} are spent or on their way, and the "
            f"next request may cost {reserve_usd:.2f}",
            (midnight - now).total_seconds(),
        )
    return None


# --- when to stop --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Stop:
    """Why the effort ends."""

    reason: str
    error: type[UserError] | None = None
    """What is raised, if a person has to do something about it."""


def stop(state: ResearchState, situation: Situation) -> Stop | None:
    """Why to end now; None to go on. Experiments that are under way are seen through first."""
    if situation.busy_slots or any(experiment.under_way for experiment in state.open):
        return None
    if [*steering(state, situation)] or state.steering.rollback or state.steering.killed:
        return None  # what a person has asked for is done first; it may change a limit
    if any(slot.pause is not None and slot.faults == 0 for slot in state.slots.values()):
        return None  # that it is over is to go on record first
    return _end(state, situation)


def _end(state: ResearchState, situation: Situation) -> Stop | None:
    """Why nothing new begins."""
    if (fault := _too_many_faults(state, situation)) is not None:
        return Stop(fault, NotReady)
    if (found := state.obstacle) is not None:
        return Stop(found.last_words, Unfit)
    if (reached := limit(state, situation)) is not None:
        return Stop(reached)
    if (plea := _needs_person(state)) is not None:
        return Stop(plea, UserError)
    if state.open or state.proposals or state.to_merge or situation.busy_proposals:
        return None
    if state.steering.queue:
        return None
    if state.certificate is not None or is_certificate_due(state, situation):
        return None
    if situation.exhausted is not None:
        return Stop(situation.exhausted)
    absence = state.absence
    if absence is not None and absence.until is None and _is_absent(state, situation):
        waits = situation.rules.absence.understudy_after_seconds is not None
        if not (waits and situation.rules.understudy and not situation.understudy_failed):
            return Stop(absence.reason, UserError)
    return None


def limit(state: ResearchState, situation: Situation) -> str | None:
    """The limit that is reached, if one is."""
    limits = situation.rules.limits
    wants_more = state.certificate is not None or is_certificate_due(state, situation)
    if _are_all_tried(state, situation) and not state.open and not wants_more:
        return f"limit of {limits.experiments} experiments reached"
    if limits.hours is not None and situation.worked_seconds >= 3600 * limits.hours:
        return f"limit of {limits.hours:g} hours reached"
    return None


def _are_all_tried(state: ResearchState, situation: Situation) -> bool:
    """Whether the limit on experiments leaves no room for an idea; replicates may still run."""
    return state.candidates >= _most_candidates(situation)


def _are_all_finished(state: ResearchState, situation: Situation) -> bool:
    """Whether no idea runs, and none will."""
    if any(experiment.repeats is None for experiment in state.open):
        return False
    if _are_all_tried(state, situation):
        return True
    waiting = any(proposal.repeats is None for proposal in state.proposals.values())
    return situation.exhausted is not None and not (waiting or state.to_merge or state.steering.queue)


def _needs_person(state: ResearchState) -> str | None:
    if state.refused_in_a_row >= MAX_REFUSALS:
        return (
            f"{MAX_REFUSALS} proposals in a row were refused, the last because {state.last_refusal}; "
            "look at the agent or at program.md."
        )
    if state.agent_errors_in_a_row >= MAX_AGENT_ERRORS:
        return f"The agent failed {MAX_AGENT_ERRORS} times in a row; see the log."
    return None


def _too_many_faults(state: ResearchState, situation: Situation) -> str | None:
    """When every slot has failed so often in a row that the settings say to give up."""
    most = situation.rules.retry.stop_after
    counts = [state.slot(number) for number in range(situation.rules.slots)]
    if most is None or any(slot.faults < most for slot in counts):
        return None
    worst = max(counts, key=lambda slot: slot.faults)
    last = clean_line(worst.fault)
    return f"There were {faults(worst.faults)}; the last was: {last} Run `glovebox doctor`."


# --- time ----------------------------------------------------------------------------------------


def _may_go_on(state: ResearchState, situation: Situation) -> bool:
    """False if a person wants a pause, the disk is too full for a run, or the effort is about to end."""
    return _wanted_pause(situation) is None and _end(state, situation) is None


_LONGEST_SECONDS = 1e9
"""A limit that is further away than thirty years may be beyond the calendar."""


def wake_at(state: ResearchState, situation: Situation) -> dt.datetime | None:
    """The next moment at which a rule may say something else by the clock alone; None if there is none."""
    times = [state.absence.until if state.absence else None]
    for slot in state.slots.values():
        times.append(slot.pause.event.until if slot.pause else None)
        times.append(slot.noise.until if slot.noise else None)
    moments = [dt.datetime.fromisoformat(time) for time in times if time is not None]
    after = situation.rules.absence.understudy_after_seconds
    if after is not None and state.absence is not None:
        moments.append(situation.now + dt.timedelta(seconds=after - situation.absent_seconds))
    if (hours := situation.rules.limits.hours) is not None:
        seconds = min(3600 * hours - situation.worked_seconds, _LONGEST_SECONDS)
        moments.append(situation.now + dt.timedelta(seconds=seconds))
    return min((moment for moment in moments if moment > situation.now), default=None)


def _is_past(time: str | None, situation: Situation) -> bool:
    return time is None or situation.now >= dt.datetime.fromisoformat(time)


def _after(situation: Situation, seconds: float) -> str:
    return (situation.now + dt.timedelta(seconds=seconds)).isoformat(timespec="milliseconds")
