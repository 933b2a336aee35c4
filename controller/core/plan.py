"""What happens next, in any situation. Pure: every rule of waiting, retrying, giving up and limits is here.

`due(state, situation)` gives the actions that are due, `stop` whether the effort ends, `wake_at` when a rule
may say something else by the clock alone. The loop starts what is due and records what came of it; after a
crash, with several slots and with any agent it is the same code.

`due` goes through the rules in this order:

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
from controller.core.state import BASELINE, MERGE, ResearchState, SlotState
from controller.core.untrusted import clean_line
from controller.core.values import Disturbance, DisturbanceKind

MAX_REFUSALS = 50
"""Refused proposals in a row after which a person is needed."""
MAX_AGENT_ERRORS = 50
"""Agent errors in a row after which a person is needed."""
ERRORS_BEFORE_ABSENCE = 3
"""Agent errors in a row after which an agent that costs money is left alone for a while."""
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
    stands_in_for: str | None = None


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
Action = Pause | Resume | Move | OnSlot | OnProposal | Ask


def due(state: ResearchState, situation: Situation) -> list[Action]:
    """Every action that is due now. Those that are under way are not among them."""
    return [
        *pausing(state, situation),
        *on_slots(state, situation),
        *in_pipeline(state, situation),
        *obsolete(state, situation),
        *questions(state, situation),
    ]


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


# --- experiments on their slots ------------------------------------------------------------------


def on_slots(state: ResearchState, situation: Situation) -> Iterator[Action]:
    """The next step of each open experiment."""
    yield from _moves(state, situation)
    for experiment in state.open:
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


def _start(state: ResearchState, situation: Situation, experiment: Experiment) -> Iterator[Action]:
    slot = state.slot(experiment.slot)
    if not _may_go_on(state, situation) or _rests(slot, situation):
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
    if found is not None and found.kind is DisturbanceKind.GPU_LOST and experiment.attempt > noise.repeats:
        found = None  # the one disturbance that a run may leave behind
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
        and state.slot(number).experiment is None
        and not _rests(state.slot(number), situation)
    ]


def _rests(slot: SlotState, situation: Situation) -> bool:
    return slot.pause is not None and not _is_past(slot.pause.event.until, situation)


# --- proposals on their way ----------------------------------------------------------------------


def in_pipeline(state: ResearchState, situation: Situation) -> Iterator[Action]:
    """The next step of each proposal that has a text. Repairs and merges go first."""
    free, begins = _open_slots(state, situation), _may_go_on(state, situation)
    urgent = _urgent_alive(state) + len(_urgent_due(state, situation))
    for proposal in sorted(state.proposals.values(), key=lambda known: (not _is_urgent(known), known.number)):
        if not proposal.is_made or proposal.number in situation.busy_proposals:
            continue
        is_urgent = _is_urgent(proposal)
        step = _before_acceptance(state, situation, proposal)
        if isinstance(step, Rehearse) and not begins:
            continue
        if step is not None:
            yield step
        elif len(free) > (0 if is_urgent else urgent):
            yield Accept(proposal.number, free.pop(0))
            urgent -= is_urgent
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
    idle = _unclaimed_slots(state, situation)
    most = situation.rules.limits.experiments
    return idle if most is None else idle[: max(0, most - state.next_number)]


def _before_acceptance(state: ResearchState, situation: Situation, proposal: Proposal) -> Action | None:
    """What has to be done with a proposal before it can become an experiment; None if it is ready."""
    number, rules = proposal.number, situation.rules
    if proposal.agent not in (rules.agent, rules.understudy, BASELINE, MERGE):
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
    left = max(0, situation.rules.slots - _unanswered(state))
    urgent = _urgent_due(state, situation)
    for ask in urgent:
        if ask.agent == MERGE or left > 0:
            yield ask
            left -= ask.agent != MERGE
    yield from [*_ideas(state, situation, urgent)][: _room(state, situation, len(urgent))]


def _urgent_due(state: ResearchState, situation: Situation) -> list[Ask]:
    """What goes before new ideas, as far as the limit on experiments has room for it.

    A crash over a trifle gets one repair (R9). Two keeps that started from one frontier are merged: the
    frontier lacks the change of the first. If the two texts conflict, the agent is asked to combine them.
    """
    agent = situation.rules.agent
    asks = [Ask(MERGE, "merge", merges=behind) for behind, _ in state.to_merge]
    if _may_ask(state, situation):
        if state.to_repair is not None and not _is_absent(state, situation):
            asks.insert(0, Ask(agent, "fix", fixes=state.to_repair))
        asks += [Ask(agent, "merge", merges=behind) for behind in state.to_combine[:1]]
    most = situation.rules.limits.experiments
    room = len(asks) if most is None else max(0, most - state.next_number - _urgent_alive(state))
    return asks[:room]


def _urgent_alive(state: ResearchState) -> int:
    return sum(_is_urgent(proposal) for proposal in state.proposals.values())


def _is_urgent(proposal: Proposal) -> bool:
    return proposal.purpose in ("fix", "merge")


def _ideas(state: ResearchState, situation: Situation, urgent: Sequence[Ask]) -> Iterator[Ask]:
    """A slow agent is asked ahead, another one when a slot is idle; an understudy stands in meanwhile.

    A fast one is asked for one proposal at a time, since it must know of the one before. What is `urgent`
    goes first.
    """
    rules, others = situation.rules, len(urgent)
    idle = len(_unclaimed_slots(state, situation)) if _has_baseline(state) else 0
    asked_understudy = _asked_understudy(state)
    if _is_absent(state, situation) and _understudy_acts(situation):
        ready = sum(proposal.is_made for proposal in state.proposals.values())
        if idle - ready - others > 0 and not asked_understudy:
            yield Ask(rules.understudy or rules.agent, "propose", stands_in_for=rules.agent)
    if _may_ask(state, situation):
        wanted = rules.slots if rules.asks_ahead else idle
        missing = wanted - (len(state.proposals) - asked_understudy) - others
        asked = _unanswered(state) + sum(ask.agent != MERGE for ask in urgent)
        most = missing if rules.asks_ahead else min(missing, 1 - asked)
        for _ in range(most):
            yield Ask(rules.agent, "propose")


def _asked_understudy(state: ResearchState) -> int:
    return sum(not p.is_made and p.stands_in_for is not None for p in state.proposals.values())


def _room(state: ResearchState, situation: Situation, urgent: int) -> int:
    """How many proposals the limit on experiments allows beside `urgent`. None before the baseline runs."""
    if state.next_number == 1 and state.experiments[0].phase is Phase.OPENED:
        return 0
    most = situation.rules.limits.experiments
    return 10**9 if most is None else max(0, most - state.next_number - len(state.proposals) - urgent)


def _unanswered(state: ResearchState) -> int:
    """Questions that the agent is at work on."""
    return sum(
        not proposal.is_made and proposal.stands_in_for is None and proposal.agent != MERGE
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
    if limits.experiments is not None and state.next_number >= limits.experiments and not state.open:
        return f"limit of {limits.experiments} experiments reached"
    if limits.hours is not None and situation.worked_seconds >= 3600 * limits.hours:
        return f"limit of {limits.hours:g} hours reached"
    return None


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
        moments.append(situation.now + dt.timedelta(seconds=3600 * hours - situation.worked_seconds))
    return min((moment for moment in moments if moment > situation.now), default=None)


def _is_past(time: str | None, situation: Situation) -> bool:
    return time is None or situation.now >= dt.datetime.fromisoformat(time)


def _after(situation: Situation, seconds: float) -> str:
    return (situation.now + dt.timedelta(seconds=seconds)).isoformat(timespec="milliseconds")
