"""What is due in which situation: each row is a rule, and its name is the sentence that it holds."""

from __future__ import annotations

import datetime as dt
from typing import Any

import pytest

from controller.core import plan
from controller.core.errors import NotReady, Unfit, UserError
from controller.core.events import AgentFailed, ApiRequested, Paused
from controller.core.hardware.disturbance import NoiseConfig
from controller.core.plan import (
    Accept,
    Action,
    Ask,
    BreakOff,
    Commit,
    Decide,
    Drop,
    Examine,
    Foresee,
    Look,
    Move,
    Pause,
    Rebase,
    Rehearse,
    Resume,
    Score,
    Situation,
    Stop,
    Train,
    Void,
    due,
    stop,
    wake_at,
)
from controller.core.rules import AbsenceConfig, Limits, ReplicatesConfig, RetryConfig, Rules, Wish
from controller.core.spending import Spending
from controller.core.state import REPLICATE
from controller.core.values import Cause, Disturbance, Verdict
from tests.core.telling import AGENT, START, Told, after, at
from tests.support.fakes import LOAD, LOST, SHARED

PAUSE = Wish(paused=True, by="ann", reason="lunch")
FULL = "The disk is full."
IDEA = Ask(AGENT, "propose")
BY_ANN = Pause(Paused(why="person", by="ann", reason="lunch"))
FOR_DISK = Pause(Paused(why="disk", reason=FULL))


def begun() -> Told:
    return Told()


def going() -> Told:
    """The baseline is the frontier, and nothing is under way."""
    return Told().baseline()


def keep(first: int, second: int) -> Told:
    """Two experiments that started from one frontier; the first is kept, then the second."""
    both = going().opened(0).opened(1)
    return both.kept(1.9, of=first).kept(1.8, of=second)


def row(sentence: str, told: Told, *actions: Action, seconds: float = 0.0, **known: Any) -> Any:
    """After what was told, exactly these actions are due. `known`: of the rules and the situation."""
    return pytest.param(told, at(seconds, **known), list(actions), id=sentence)


def check(told: Told, situation: Situation, actions: list[Action]) -> None:
    assert due(told.state, situation) == actions


# --- experiments on their slots ------------------------------------------------------------------


def void(number: int, found: Disturbance, slot: int = 0) -> Void:
    return Void(number, slot, "disturbed", found.detail, found)


INTERRUPTED = "the controller stopped while the judge was at work"
GONE = "its slot is no longer there"


@pytest.mark.parametrize(
    ("told", "situation", "actions"),
    [
        row("what was opened is trained", going().opened(), Train(1, 0)),
        row("what is under way is left alone", going().opened().training(), busy_slots=frozenset({0})),
        row("a trainer that runs is adopted after a restart", going().opened().training(), Train(1, 0)),
        row("what was trained is scored", going().opened().trained(), Score(1, 0)),
        row("a crash is decided without a score", going().opened().trained(Cause.OOM), Decide(1, 0)),
        row(
            "a scoring does not outlive its controller",
            going().opened().trained().scoring(),
            Void(1, 0, "interrupted", INTERRUPTED),
        ),
        row("what was scored is decided", going().opened().judged(), Decide(1, 0)),
        row("what is in quarantine is scored again", going().opened().judged().quarantined(), Score(1, 0)),
        row(
            "what was decided to be kept is committed",
            going().opened().judged().decided(Verdict.KEEP),
            Commit(1, 0),
        ),
        row("what was void is repeated", going().opened().faults(1), Train(1, 0)),
        row(
            "two slots go on beside each other",
            going().opened(0).opened(1).trained(),
            Train(1, 0),
            Score(2, 1),
            slots=2,
        ),
        row(
            "one busy slot keeps nobody else waiting",
            going().opened(0).opened(1),
            Train(2, 1),
            slots=2,
            busy_slots=frozenset({0}),
        ),
        row(
            "nothing is decided while another one is about to be the frontier",
            going().opened(0).opened(1).judged(1.9, of=1).judged(1.8, of=2).decided(Verdict.KEEP, of=1),
            Commit(1, 0),
            slots=2,
        ),
        row(
            "nothing is decided while that is being committed",
            going().opened(0).opened(1).judged(1.9, of=1).judged(1.8, of=2).decided(Verdict.KEEP, of=2),
            slots=2,
            busy_slots=frozenset({1}),
        ),
        row(
            "of two scores one is decided first",
            going().opened(0).opened(1).judged(1.9, of=2).judged(1.8, of=1),
            Decide(1, 0),
            slots=2,
        ),
        row(
            "a verdict that is being reached keeps the next one waiting",
            going().opened(0).opened(1).judged(1.9, of=2).judged(1.8, of=1),
            slots=2,
            busy_slots=frozenset({1}),
        ),
        row(
            "a crash waits for no other verdict",
            going().opened(0).opened(1).judged(of=1).decided(Verdict.KEEP, of=1).trained(Cause.OOM, of=2),
            Commit(1, 0),
            Decide(2, 1),
            slots=2,
        ),
    ],
)
def test_each_phase_has_its_next_step(told: Told, situation: Situation, actions: list[Action]) -> None:
    check(told, situation, actions)


@pytest.mark.parametrize(
    ("told", "situation", "actions"),
    [
        row("what waits goes to an idle slot", going().opened(1), Move(1, 0)),
        row("what waits keeps waiting if no slot is idle", going().opened(0).opened(1), Train(1, 0)),
        row(
            "two that wait go to different slots",
            going().opened(2).opened(3),
            Move(1, 0),
            Move(2, 1),
            slots=2,
        ),
        row(
            "a proposal gets what those that wait have left",
            going().opened(2).idea().idea(),
            Move(1, 0),
            Accept(2, 1),
            slots=2,
        ),
        row("what runs is void", going().opened(1).training(), Void(1, 1, "interrupted", GONE), IDEA),
        row("what was trained is void", going().opened(1).trained(), Void(1, 1, "interrupted", GONE), IDEA),
        row(
            "what is in quarantine is void",
            going().opened(1).judged().quarantined(),
            Void(1, 1, "interrupted", GONE),
            IDEA,
        ),
        row("what was scored is decided all the same", going().opened(1).judged(), Decide(1, 1), IDEA),
        row(
            "what was decided is committed all the same",
            going().opened(1).judged().decided(Verdict.KEEP),
            Commit(1, 1),
            IDEA,
        ),
        row(
            "an action that is under way there is left alone",
            going().opened(1).training(),
            IDEA,
            busy_slots=frozenset({1}),
        ),
    ],
)
def test_a_slot_that_is_no_longer_there(told: Told, situation: Situation, actions: list[Action]) -> None:
    check(told, situation, actions)


# --- noise ---------------------------------------------------------------------------------------


def disturbed(found: Disturbance = LOAD) -> Told:
    return going().opened().training().voided("disturbed", found)


@pytest.mark.parametrize(
    ("told", "situation", "actions"),
    [
        row(
            "what was disturbed before it began is void at once",
            going().opened().trained(found=SHARED),
            void(1, SHARED),
            is_watched=True,
        ),
        row(
            "also if nobody looks any more",
            going().opened().trained(found=SHARED),
            void(1, SHARED),
        ),
        row(
            "what was seen beside the run alone is looked for without it",
            going().opened().trained(found=LOAD),
            Examine(1, 0, LOAD),
            is_watched=True,
        ),
        row(
            "and counts if it is not there",
            going().opened().trained(found=LOAD),
            Score(1, 0),
            is_watched=True,
            examined=frozenset({(1, 1)}),
        ),
        row(
            "what was found out about an attempt says nothing about the next",
            disturbed().trained(found=LOAD),
            Examine(1, 0, LOAD),
            is_watched=True,
            examined=frozenset({(1, 1)}),
        ),
        row(
            "what nobody can look for counts",
            going().opened().trained(found=LOAD),
            Score(1, 0),
        ),
        row(
            "a crash that the disturbance may explain is looked into",
            going().opened().trained(Cause.TIMEOUT, LOAD),
            Examine(1, 0, LOAD),
            is_watched=True,
        ),
        row(
            "a crash that it may have caused and did not is decided",
            going().opened().trained(Cause.TIMEOUT, LOAD),
            Decide(1, 0),
            is_watched=True,
            examined=frozenset({(1, 1)}),
        ),
        row(
            "a crash of its own is no matter of noise",
            going().opened().trained(Cause.NAME, LOAD),
            Decide(1, 0),
            is_watched=True,
        ),
        row(
            "a lost GPU is looked for as often as the settings say",
            disturbed(LOST).trained(found=LOST),
            Examine(1, 0, LOST),
            is_watched=True,
            noise=NoiseConfig(repeats=2),
        ),
        row(
            "after that the run counts, since it may have lost the GPU itself",
            disturbed(LOST).trained(found=LOST),
            Score(1, 0),
            is_watched=True,
            noise=NoiseConfig(repeats=1),
        ),
        row(
            "a disturbed slot is looked at before it is used again", disturbed(), Look(1, 0), is_watched=True
        ),
        row(
            "one that was found disturbed is left alone until it is time",
            disturbed().disturbed(LOAD, until=10),
            seconds=9.9,
            is_watched=True,
        ),
        row(
            "and then looked at again",
            disturbed().disturbed(LOAD, until=10),
            Look(1, 0),
            seconds=10,
            is_watched=True,
        ),
        row("one that is fit again is used", disturbed().disturbed(LOAD, until=10).ready(), Train(1, 0)),
        row("where nobody can look, it is used again at once", disturbed(), Train(1, 0)),
    ],
)
def test_noise(told: Told, situation: Situation, actions: list[Action]) -> None:
    check(told, situation, actions)


@pytest.mark.parametrize(("looks", "seconds"), [(0, 10.0), (1, 20.0), (5, 320.0), (6, 600.0), (900, 600.0)])
def test_a_disturbed_slot_is_looked_at_less_and_less_often(looks: int, seconds: float) -> None:
    told = disturbed()
    if looks:
        told.disturbed(LOAD, until=0, looks=looks)
    waits = plan.wait_for_slot(told.state, told.state.open[0], SHARED, at(5.0))
    assert (waits.experiment, waits.disturbance, waits.looks) == (1, SHARED, looks + 1)
    assert waits.until == after(5.0 + seconds)


# --- pauses --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("told", "situation", "actions"),
    [
        row("a person's pause goes on record, and nobody is asked", going(), BY_ANN, wish=PAUSE),
        row("so does a lack of disk space", going(), FOR_DISK, shortage=FULL),
        row("a person comes first", going(), BY_ANN, wish=PAUSE, shortage=FULL),
        row("even before the baseline", begun(), BY_ANN, wish=PAUSE),
        row("it is said once", going().paused("person"), wish=PAUSE),
        row("what was opened does not begin", going().opened(), BY_ANN, wish=PAUSE),
        row("nothing is accepted", going().idea(), FOR_DISK, shortage=FULL),
        row("nothing is rehearsed", going().opened().idea().rehearsed(text="x"), BY_ANN, wish=PAUSE),
        row(
            "what is under way is seen through, and the pause has no effect yet",
            going().opened().trained(),
            Score(1, 0),
            wish=PAUSE,
        ),
        row(
            "on two slots it has one as soon as one of them is free",
            going().opened(0).opened(1).trained(of=1),
            BY_ANN,
            Score(1, 0),
            slots=2,
            wish=PAUSE,
        ),
        row("and not before", going().opened(0).opened(1).trained(of=1).trained(of=2), Score(1, 0),
            Score(2, 1), slots=2, wish=PAUSE),
        row(
            "nothing is made ready in advance during a pause",
            going().opened().trained().scoring().idea(),
            wish=PAUSE,
            busy_slots=frozenset({0}),
            contenders=frozenset({1}),
        ),
        row(
            "its end goes on record, and work goes on",
            going().opened().paused("person"),
            Resume(None, 7.0),
            Train(1, 0),
            paused_seconds={None: 7.0},
        ),
        row("so does that of a full disk", going().opened().paused("disk"), Resume(None, 0.0), Train(1, 0)),
        row(
            "one pause gives way to another",
            going().paused("disk"),
            Resume(None, 0.0),
            wish=PAUSE,
            shortage=FULL,
        ),
        row(
            "and the other way round",
            going().paused("person"),
            Resume(None, 0.0),
            shortage=FULL,
        ),
    ],
)  # fmt: skip
def test_pauses(told: Told, situation: Situation, actions: list[Action]) -> None:
    check(told, situation, actions)


def resting() -> Told:
    return going().opened().faults(3).paused("infrastructure", slot=0, until=10)


@pytest.mark.parametrize(
    ("told", "situation", "actions"),
    [
        row("a slot rests until it is time", resting(), seconds=9.9),
        row("and then tries again", resting(), Train(1, 0), seconds=10),
        row("two faults are passed over", going().opened().faults(2), Train(1, 0)),
        row(
            "the other slot does not rest",
            going().opened(0).faults(3).paused("infrastructure", slot=0, until=10).opened(1),
            Train(2, 1),
            slots=2,
        ),
        row(
            "the rest is over for good once an experiment got through",
            going().opened().faults(3).paused("infrastructure", slot=0, until=10).crashed(),
            Resume(0, 4.0),
            seconds=20,
            paused_seconds={0: 4.0},
            busy_proposals=frozenset({7}),
            exhausted="no more",
        ),
        row("a new session begins without a rest", going().opened().faults(5).session(), Train(1, 0)),
    ],
)
def test_rest_after_faults(told: Told, situation: Situation, actions: list[Action]) -> None:
    check(told, situation, actions)


@pytest.mark.parametrize(
    ("faults", "seconds"),
    [(0, None), (1, None), (2, None), (3, 10.0), (4, 20.0), (5, 40.0), (9, 640.0), (10, 900.0), (99, 900.0)],
)
def test_a_rest_grows_with_the_faults_in_a_row(faults: int, seconds: float | None) -> None:
    told = going().opened(0).opened(1).faults(faults, of=1)
    rest = plan.rest_after_fault(told.state, 0, at(5.0, slots=2))
    assert plan.rest_after_fault(told.state, 1, at(5.0, slots=2)) is None
    if seconds is None:
        assert rest is None
    else:
        assert rest is not None
        assert (rest.why, rest.slot, rest.until) == ("infrastructure", 0, after(5.0 + seconds))
        assert rest.reason == f"{faults} infrastructure faults in a row; the last was: no engine"


# --- proposals on their way ----------------------------------------------------------------------

SLOW: dict[str, Any] = {"agent": "claude", "asks_ahead": True}


def slowly() -> Told:
    """The baseline is the frontier; the agent is slow and rehearses."""
    return Told("claude").baseline()


def busy(*slots: int) -> dict[str, Any]:
    return {"busy_slots": frozenset(slots)}


def stale(**known: Any) -> Told:
    """Proposal 2 was made for the frontier before the one there is; slot 0 is free again."""
    return slowly().opened().idea("claude", **known)


@pytest.mark.parametrize(
    ("told", "situation", "actions"),
    [
        row("a proposal without a text waits for it", going().asked(), busy_proposals=frozenset({1})),
        row("one with a text becomes an experiment", going().idea(), Accept(1, 0)),
        row("one at a time, the first one first", going().idea().idea(), Accept(1, 0)),
        row(
            "each on a slot of its own",
            going().idea().idea().idea(),
            Accept(1, 0),
            Accept(2, 1),
            slots=2,
        ),
        row("one that is being worked on is left alone", going().idea(), busy_proposals=frozenset({1})),
        row("no slot, no experiment", going().opened().idea(), **busy(0)),
        row("nor on a slot that is busy with an end", going().idea(), **busy(0)),
        row("a repair goes first", going().idea().idea(purpose="fix", fixes=0), Accept(2, 0)),
        row(
            "one that is still being made has a slot reserved",
            slowly().idea("claude").asked("claude", "fix", fixes=0),
            busy_proposals=frozenset({2}),
            **SLOW,
        ),
        row(
            "but not a second one",
            slowly().idea("claude").asked("claude", "fix", fixes=0),
            Accept(1, 0),
            slots=2,
            busy_proposals=frozenset({2}),
            **SLOW,
        ),
        row(
            "a repair and an idea are accepted beside each other",
            slowly().idea("claude").idea("claude", "fix", fixes=0),
            Accept(2, 0),
            Accept(1, 1),
            slots=2,
            **SLOW | {"asks_ahead": False},
        ),
        row(
            "a repair that nobody was asked for yet has one, too",
            slowly().idea("claude").opened().crashed(Cause.NAME),
            Ask("claude", "fix", fixes=1),
            **SLOW,
        ),
        row(
            "what another agent made is dropped",
            Told("claude").baseline().idea("claude").session(),
            Drop(1, "claude made it, and now tuner is at work"),
        ),
        row(
            "what the understudy made is not",
            going().idea("replay", stands_in_for=AGENT),
            Accept(1, 0),
            understudy="replay",
        ),
        row("nor a merge", going().idea("merge", "merge", merges=0), Accept(1, 0)),
        row(
            "what was made for the frontier of before is made to fit",
            stale().kept(),
            Rebase(2),
            **SLOW,
        ),
        row(
            "also while there is no slot for it",
            stale().kept().opened().training(),
            Rebase(2),
            **SLOW,
            **busy(0),
        ),
        row(
            "also during a pause, which costs nothing",
            stale().kept(),
            BY_ANN,
            Rebase(2),
            wish=PAUSE,
            **SLOW,
        ),
        row("a crash makes nothing stale", stale().crashed(), Accept(2, 0), **SLOW),
        row(
            "what fits again is accepted if its agent does not rehearse",
            stale().kept().rebased(),
            Accept(2, 0),
            **SLOW,
        ),
        row(
            "what was rehearsed for the old frontier is rehearsed for the new one",
            stale().rehearsed().kept(of=1).rebased(),
            Rehearse(2),
            **SLOW,
        ),
        row(
            "and accepted when that went well",
            stale().rehearsed().kept(of=1).rebased().rehearsed(),
            Accept(2, 0),
            **SLOW,
        ),
        row(
            "or when nothing could be found out",
            stale().rehearsed().kept(of=1).rebased().rehearsed("inconclusive"),
            Accept(2, 0),
            **SLOW,
        ),
        row(
            "and given up when it failed",
            stale().rehearsed().kept(of=1).rebased().rehearsed("failed"),
            Drop(2, "on the new frontier its rehearsal failed: boom"),
            **SLOW,
        ),
        row(
            "what its agent mended after a rehearsal counts as it is now",
            slowly().asked("claude").rehearsed("failed", text="draft").made().rehearsed(),
            Accept(1, 0),
            **SLOW,
        ),
        row(
            "what failed for a contender that was not kept is as good as before",
            stale().rehearsed().rehearsed("failed", text="with the contender").crashed(of=1),
            Accept(2, 0),
            **SLOW,
        ),
    ],
)
def test_proposals_on_their_way(told: Told, situation: Situation, actions: list[Action]) -> None:
    check(told, situation, actions)


CONFIRMING: dict[str, Any] = {"contenders": frozenset({1}), **busy(0)}
FORESEEING: dict[str, Any] = {
    "busy_proposals": frozenset({2}),
    "foreseen": frozenset({(2, 1)}),
    "foreseeing": frozenset({Foresee(2, 1)}),
}
"""Proposal 2 is being made ready for experiment 1."""


@pytest.mark.parametrize(
    ("told", "situation", "actions"),
    [
        row(
            "while a score is confirmed, what waits is made ready for the frontier that it would make",
            stale().trained(of=1).scoring(),
            Foresee(2, 1),
            **SLOW,
            **CONFIRMING,
        ),
        row(
            "once",
            stale().trained(of=1).scoring(),
            **SLOW,
            **CONFIRMING,
            foreseen=frozenset({(2, 1)}),
        ),
        row(
            "for each contender",
            stale().trained(of=1).scoring(),
            Foresee(2, 1),
            **SLOW,
            **CONFIRMING,
            foreseen=frozenset({(2, 0)}),
        ),
        row("not while nothing is being confirmed", stale().trained(of=1).scoring(), **SLOW, **busy(0)),
        row(
            "not twice at once",
            stale().trained(of=1).scoring(),
            **SLOW,
            **CONFIRMING,
            busy_proposals=frozenset({2}),
        ),
        row(
            "it goes on while the contender is being confirmed",
            stale().trained(of=1).scoring(),
            **SLOW,
            **CONFIRMING,
            **FORESEEING,
        ),
        row(
            "and while the contender waits for its verdict",
            stale().judged(of=1),
            **SLOW,
            **FORESEEING,
            **busy(0),
        ),
        row("and once it is the frontier", stale().kept(1.9, of=1), **SLOW, **FORESEEING),
        row(
            "it is broken off once it was not kept", stale().crashed(of=1), BreakOff(2), **SLOW, **FORESEEING
        ),
        row(
            "what can be run is run",
            slowly().opened().idea("claude").trained(of=1).scoring(),
            Accept(2, 1),
            Ask("claude", "propose"),
            slots=2,
            **SLOW,
            **CONFIRMING,
        ),
    ],
)
def test_foresight(told: Told, situation: Situation, actions: list[Action]) -> None:
    check(told, situation, actions)


@pytest.mark.parametrize(
    ("told", "situation", "actions"),
    [
        row(
            "nothing is opened while a verdict is due, since the frontier may move",
            slowly().opened().idea("claude").judged(of=1),
            Decide(1, 0),
            Ask("claude", "propose"),
            slots=2,
            **SLOW,
        ),
        row(
            "nor while it moves",
            slowly().opened().idea("claude").judged(of=1).decided(Verdict.KEEP),
            Commit(1, 0),
            Ask("claude", "propose"),
            slots=2,
            **SLOW,
        ),
        row(
            "nothing is opened beyond the limit",
            slowly().opened(0).training().idea("claude").idea("claude"),
            Accept(2, 1),
            slots=3,
            limits=Limits(experiments=3),
            **SLOW,
            **busy(0),
        ),
        row(
            "nor when the hours are over",
            slowly().opened(0).training().idea("claude"),
            slots=2,
            limits=Limits(hours=1),
            worked_seconds=3600,
            **SLOW,
            **busy(0),
        ),
        row(
            "nor does what was opened begin then",
            slowly().opened(0).training().opened(1),
            slots=2,
            limits=Limits(hours=1),
            worked_seconds=3600,
            **busy(0),
        ),
        row(
            "nor on a machine that lacks something, while the last run is seen through",
            Told().idea("baseline", "baseline").opened(proposal=0).crashed(Cause.NO_GPU)
            .opened().crashed(Cause.NO_GPU).opened().crashed(Cause.NO_GPU).opened(1).training().idea(),
            slots=2,
            **busy(1),
        ),
    ],
)  # fmt: skip
def test_when_nothing_is_opened(told: Told, situation: Situation, actions: list[Action]) -> None:
    check(told, situation, actions)


# --- replicates ----------------------------------------------------------------------------------

FOUR = ReplicatesConfig(baseline=4, every=0)
EVERY_TWO = ReplicatesConfig(baseline=1, every=2)
AGAIN = Ask(REPLICATE, "replicate", repeats=0)


@pytest.mark.parametrize(
    ("told", "situation", "actions"),
    [
        row("none is asked for before the baseline is scored", begun().asked("baseline", "baseline"),
            replicates=FOUR, busy_proposals=frozenset({0})),
        row("then the baseline runs again before anything else",
            going(), AGAIN, AGAIN, AGAIN, replicates=FOUR),
        row("what is asked for is not asked for again",
            going().again(0).again(0), Accept(1, 0), AGAIN, replicates=FOUR),
        row("nor what was run", going().replicated(0, 2.1, 1.9, 2.0), IDEA, replicates=FOUR),
        row("nor what crashed",
            going().replicated(0, 2.1, 1.9).again(0, slot=0).crashed(), IDEA, replicates=FOUR),
        row("a slow agent is asked meanwhile",
            Told("claude").baseline().again(0).again(0).again(0), Accept(1, 0), Ask("claude", "propose"),
            agent="claude", asks_ahead=True, replicates=FOUR),
        row("a baseline without a score is not run again",
            begun().idea("baseline", "baseline").opened(proposal=0).crashed(), IDEA, replicates=FOUR),
        row("replicates fill all slots, and ideas what is left",
            going().replicated(0, 2.1, 1.9).again(0), Accept(3, 0), IDEA, slots=2, replicates=FOUR),
        row("a replicate goes before an idea that was there first",
            going().idea().again(0), Accept(2, 0), replicates=FOUR.model_copy(update={"baseline": 2})),
        row("the incumbent runs again once enough was tried",
            going().tried(1).opened().kept(1.5), Ask(REPLICATE, "replicate", repeats=2),
            replicates=EVERY_TWO),
        row("not before", going().tried(1), IDEA, replicates=EVERY_TWO),
        row("nor again at once", going().tried(2).again(0, slot=0), Train(3, 0), replicates=EVERY_TWO),
        row("then it is counted anew",
            going().tried(2).replicated(0, 2.0).tried(1), IDEA, replicates=EVERY_TWO),
        row("replicates do not count against the limit on experiments",
            going().replicated(0, 2.1, 1.9, 2.0).idea(), Accept(4, 0), limits=Limits(2), replicates=FOUR),
        row("one is accepted although ideas have reached it",
            going().idea().again(0).opened(0, 1), Train(1, 0), Accept(2, 1), slots=2, limits=Limits(2)),
    ],
)  # fmt: skip
def test_replicates(told: Told, situation: Situation, actions: list[Action]) -> None:
    check(told, situation, actions)


def test_replicates_alone_do_not_reach_the_limit() -> None:
    told = going().replicated(0, 2.0, 2.1)
    assert stop(told.state, at(limits=Limits(2))) is None


# --- questions -----------------------------------------------------------------------------------

BASELINE = Ask("baseline", "baseline")
PROPOSE = Ask("claude", "propose")
AWAY = AbsenceConfig(understudy_after_seconds=100)
STAND_IN = Ask("replay", "propose", stands_in_for="claude")


def first(agent: str = AGENT) -> Told:
    """The baseline has been opened."""
    return Told(agent).idea("baseline", "baseline").opened(proposal=0)


@pytest.mark.parametrize(
    ("told", "situation", "actions"),
    [
        row("first comes the baseline", begun(), BASELINE),
        row("alone, whatever slots there are", begun(), BASELINE, slots=16, asks_ahead=True),
        row("asked for once", begun().asked("baseline", "baseline"), busy_proposals=frozenset({0})),
        row("again if the process died before the answer",
            begun().asked("baseline", "baseline").dropped(), BASELINE),
        row("and opened on one slot", begun().idea("baseline", "baseline"), Accept(0, 0), slots=2),
        row("nobody is asked before it runs", first("claude"), Train(0, 0), slots=2, **SLOW),
        row("a slow agent is asked while it runs", first("claude").training(), PROPOSE, **SLOW, **busy(0)),
        row(
            "as often as there are slots",
            first("claude").training(),
            PROPOSE,
            PROPOSE,
            slots=2,
            **SLOW,
            **busy(0),
        ),
        row("another agent is not", first().training(), slots=2, **busy(0)),
        row(
            "nothing is accepted until it is finished",
            first("claude").training().idea("claude").idea("claude"),
            slots=2,
            **SLOW,
            **busy(0),
        ),
        row(
            "though it was kept and is not the frontier yet",
            first("claude").judged().decided(Verdict.KEEP).idea("claude").idea("claude"),
            slots=2,
            **SLOW,
            **busy(0),
        ),
        row(
            "a baseline that crashed is finished, too",
            first().crashed(),
            IDEA,
        ),
    ],
)  # fmt: skip
def test_the_baseline_comes_first(told: Told, situation: Situation, actions: list[Action]) -> None:
    check(told, situation, actions)


@pytest.mark.parametrize(
    ("told", "situation", "actions"),
    [
        row("an instant agent is asked when a slot is idle", going(), IDEA),
        row("for each idle slot, one after the other", going().opened(1), Train(1, 1), IDEA, slots=3),
        row("once it has answered", going().asked(), slots=3, busy_proposals=frozenset({1})),
        row("and is known", going().opened(0).training().idea(), Accept(2, 1), IDEA, slots=3, **busy(0)),
        row("not ahead", going().opened().training(), **busy(0)),
        row("not for a slot that a proposal will take", going().idea(), Accept(1, 0), IDEA, slots=2),
        row("not for one that rests", resting(), seconds=5, slots=1),
        row("a slow agent is asked ahead", slowly().opened().training(), PROPOSE, **SLOW, **busy(0)),
        row("one question ahead is enough for one slot", slowly().opened().training().asked("claude"),
            busy_proposals=frozenset({2}), **SLOW, **busy(0)),
        row("and one answer", slowly().opened().training().idea("claude"), **SLOW, **busy(0)),
        row(
            "sixteen slots need sixteen",
            slowly(),
            *[PROPOSE] * 16,
            slots=16,
            **SLOW,
        ),
        row(
            "less what is on its way",
            slowly().idea("claude").idea("claude").asked("claude"),
            Accept(1, 0),
            Accept(2, 1),
            *[PROPOSE] * 13,
            slots=16,
            busy_proposals=frozenset({3}),
            **SLOW,
        ),
        row("an agent with nothing further is asked no more", going(), exhausted="no more"),
        row("fifty refusals are enough", going().refused(50)),
        row("forty-nine are not", going().refused(49), IDEA),
        row("fifty errors are enough", going().failed(50)),
        row("forty-nine are not enough", going().failed(49), IDEA),
        row("an experiment ends a row of refusals", going().refused(50).opened().crashed(), IDEA),
        row("so does a new session", going().refused(50).session(), IDEA),
        row("an answer ends a row of errors", going().failed(50).idea(), Accept(51, 0)),
    ],
)  # fmt: skip
def test_who_is_asked_for_ideas(told: Told, situation: Situation, actions: list[Action]) -> None:
    check(told, situation, actions)


@pytest.mark.parametrize(
    ("told", "situation", "actions"),
    [
        row("an absent agent is not asked", slowly().absent(10), seconds=9, **SLOW),
        row("until it is time", slowly().absent(10), PROPOSE, seconds=10, **SLOW),
        row(
            "one that a person has to see to is not asked at all", slowly().absent(None), seconds=1e6, **SLOW
        ),
        row("but in a new session", slowly().absent(None).session("claude"), PROPOSE, **SLOW),
        row("the absence of another agent is no matter", going().absent(10, "claude"), IDEA),
        row("what it has answered is used", slowly().idea("claude").absent(10), Accept(1, 0), **SLOW),
        row(
            "an understudy does not act at once",
            slowly().absent(1000),
            absence=AWAY,
            understudy="replay",
            absent_seconds=99,
            **SLOW,
        ),
        row(
            "but after a while",
            slowly().absent(1000),
            STAND_IN,
            absence=AWAY,
            understudy="replay",
            absent_seconds=100,
            **SLOW,
        ),
        row(
            "for each idle slot, less what waits",
            slowly().opened(0).training().idea("claude").absent(1000),
            Accept(2, 1),
            STAND_IN,
            slots=3,
            absence=AWAY,
            understudy="replay",
            absent_seconds=100,
            **SLOW,
            **busy(0),
        ),
        row(
            "it is not asked ahead",
            slowly().opened().training().absent(1000),
            absence=AWAY,
            understudy="replay",
            absent_seconds=100,
            **SLOW,
            **busy(0),
        ),
        row(
            "nor twice",
            slowly().absent(1000).asked("replay", stands_in_for="claude"),
            absence=AWAY,
            understudy="replay",
            absent_seconds=100,
            busy_proposals=frozenset({1}),
            **SLOW,
        ),
        row(
            "both are asked when it is time to find out whether the agent is back",
            slowly().absent(10),
            STAND_IN,
            PROPOSE,
            seconds=10,
            absence=AWAY,
            understudy="replay",
            absent_seconds=100,
            **SLOW,
        ),
        row(
            "none is asked that has failed",
            slowly().absent(1000),
            absence=AWAY,
            understudy="replay",
            absent_seconds=100,
            understudy_failed=True,
            **SLOW,
        ),
        row(
            "none is there without a name",
            slowly().absent(1000),
            absence=AWAY,
            absent_seconds=100,
            **SLOW,
        ),
        row(
            "none acts unless the settings say when",
            slowly().absent(1000),
            understudy="replay",
            absent_seconds=1e6,
            **SLOW,
        ),
    ],
)
def test_an_absent_agent(told: Told, situation: Situation, actions: list[Action]) -> None:
    check(told, situation, actions)


def trifle() -> Told:
    """Experiment 1 crashed over a name that is not there."""
    return slowly().opened().crashed(Cause.NAME)


@pytest.mark.parametrize(
    ("told", "situation", "actions"),
    [
        row("a crash over a trifle is to be repaired", trifle(), Ask("claude", "fix", fixes=1), **SLOW),
        row(
            "once",
            trifle().asked("claude", "fix", fixes=1),
            busy_proposals=frozenset({2}),
            **SLOW,
        ),
        row(
            "a repair that crashes is not repaired",
            trifle().idea("claude", "fix", fixes=1).opened(proposal=2).crashed(Cause.NAME),
            PROPOSE,
            **SLOW,
        ),
        row("a crash of another kind is not", slowly().opened().crashed(Cause.OOM), PROPOSE, **SLOW),
        row(
            "it is asked for before an idea",
            trifle(),
            Ask("claude", "fix", fixes=1),
            PROPOSE,
            slots=2,
            **SLOW,
        ),
        row(
            "it waits for an agent that is at work on an answer, and the slot waits for it",
            slowly().opened().idea("claude").asked("claude").crashed(Cause.NAME, of=1),
            busy_proposals=frozenset({3}),
            **SLOW,
        ),
        row("nobody repairs while the agent is absent", trifle().absent(10), seconds=5, **SLOW),
        row(
            "nor what crashed while it was",
            slowly().absent(10).opened().crashed(Cause.NAME),
            PROPOSE,
            seconds=10,
            **SLOW,
        ),
        row("nor when it is exhausted", trifle(), exhausted="no more", **SLOW),
        row(
            "a repair takes the last experiment that the limit allows",
            trifle(),
            Ask("claude", "fix", fixes=1),
            slots=2,
            limits=Limits(experiments=3),
            **SLOW,
        ),
        row(
            "and is not asked for beyond it",
            slowly().opened(0).opened(1).training().crashed(Cause.NAME, of=1),
            limits=Limits(experiments=3),
            slots=2,
            **SLOW,
            **busy(1),
        ),
        row(
            "an idea does not take its place",
            trifle().idea("claude"),
            Ask("claude", "fix", fixes=1),
            slots=2,
            limits=Limits(experiments=3),
            **SLOW,
        ),
    ],
)
def test_repairs(told: Told, situation: Situation, actions: list[Action]) -> None:
    check(told, situation, actions)


MERGE = Ask("merge", "merge", merges=1)


@pytest.mark.parametrize(
    ("told", "situation", "actions"),
    [
        row("two keeps from one frontier are merged", keep(1, 2), MERGE, IDEA, slots=2),
        row("whichever was first", keep(2, 1), Ask("merge", "merge", merges=2), IDEA, slots=2),
        row("before any idea", keep(1, 2), MERGE),
        row(
            "two keeps one after the other are not",
            going().opened(0).kept(1.9).opened(1).kept(1.8),
            IDEA,
            slots=2,
        ),
        row("once", keep(1, 2).asked("merge", "merge", merges=1), IDEA, slots=2,
            busy_proposals=frozenset({3})),
        row("it is opened like any other", keep(1, 2).idea("merge", "merge", merges=1), Accept(3, 0)),
        row(
            "a merge that conflicts is a question to the agent",
            keep(1, 2).asked("merge", "merge", merges=1).dropped(),
            Ask(AGENT, "merge", merges=1),
        ),
        row(
            "which is asked once",
            keep(1, 2).asked("merge", "merge", merges=1).dropped().asked(purpose="merge", merges=1),
            busy_proposals=frozenset({4}),
        ),
        row(
            "and given up without an answer",
            keep(1, 2).asked("merge", "merge", merges=1).dropped()
            .asked(purpose="merge", merges=1).dropped(),
            IDEA,
        ),
        row(
            "an absent agent is not asked, and the question waits for it",
            keep(1, 2).asked("merge", "merge", merges=1).dropped().absent(10),
            seconds=5,
        ),
        row(
            "no more questions than slots",
            keep(1, 2).asked("merge", "merge", merges=1).dropped().asked(AGENT),
            busy_proposals=frozenset({4}),
            asks_ahead=True,
        ),
        row("no merge beyond the limit", keep(1, 2).opened(0).training(), slots=2,
            limits=Limits(experiments=4), **busy(0)),
        row("no idea either, if the merge takes the last place", keep(1, 2), MERGE, slots=2,
            limits=Limits(experiments=4)),
        row("a merge needs no agent", keep(1, 2), MERGE, exhausted="no more"),
        row("a merge goes before an idea that waits", keep(1, 2).idea().idea("merge", "merge", merges=1),
            Accept(4, 0)),
        row("and has a slot reserved while it is made", keep(1, 2).idea().asked("merge", "merge", merges=1),
            busy_proposals=frozenset({4})),
        row("even before it is asked for", keep(1, 2).idea(), MERGE),
        row("a repair goes before a merge", keep(1, 2).opened(0).crashed(Cause.NAME),
            Ask(AGENT, "fix", fixes=3), MERGE, slots=2),
        row("and takes the last place", keep(1, 2).opened(0).crashed(Cause.NAME),
            Ask(AGENT, "fix", fixes=3), slots=2, limits=Limits(experiments=5)),
    ],
)  # fmt: skip
def test_merges(told: Told, situation: Situation, actions: list[Action]) -> None:
    check(told, situation, actions)


@pytest.mark.parametrize(
    ("told", "situation", "actions"),
    [
        row("as many as are left", slowly(), PROPOSE, PROPOSE, slots=3, limits=Limits(experiments=3), **SLOW),
        row(
            "what waits counts",
            slowly().idea("claude"),
            Accept(1, 0),
            PROPOSE,
            slots=3,
            limits=Limits(experiments=3),
            **SLOW,
        ),
        row("what is asked counts", slowly().asked("claude"), PROPOSE, slots=3,
            limits=Limits(experiments=3), busy_proposals=frozenset({1}), **SLOW),
        row("what was opened is run", slowly().opened(), Train(1, 0), limits=Limits(experiments=2), **SLOW),
        row("nobody is asked while the last one runs", slowly().opened().training(),
            limits=Limits(experiments=2), **SLOW, **busy(0)),
    ],
)  # fmt: skip
def test_the_limit_on_experiments(told: Told, situation: Situation, actions: list[Action]) -> None:
    check(told, situation, actions)


# --- when to stop --------------------------------------------------------------------------------


def end(sentence: str, told: Told, expected: Stop | None, seconds: float = 0.0, **known: Any) -> Any:
    return pytest.param(told, at(seconds, **known), expected, id=sentence)


def lacking(detail: str, times: int) -> Told:
    told = Told().idea("baseline", "baseline").opened(proposal=0).crashed(Cause.EXIT, detail=detail)
    for _ in range(times - 1):
        told.opened().crashed(Cause.EXIT, detail=detail)
    return told


OVER = "limit of 2 experiments reached"
HOURS = Stop("limit of 1.5 hours reached")
REFUSALS = (
    "50 proposals in a row were refused, the last because it is a no-op; look at the agent or at program.md."
)
FAULTS = "There were 4 infrastructure faults in a row; the last was: no engine Run `glovebox doctor`."
GIVE_UP: dict[str, Any] = {"retry": RetryConfig(stop_after=4)}
DOWN = Stop("The API is down.", UserError)
NOTHING = "the tuner has nothing to tune"


@pytest.mark.parametrize(
    ("told", "situation", "expected"),
    [
        end("it never ends by itself", going(), None),
        end("the number of experiments", going().opened().crashed(), Stop(OVER), limits=Limits(2)),
        end("the baseline is one of them", going(), None, limits=Limits(2)),
        end("the last one is waited for", going().opened(), None, limits=Limits(2)),
        end("hours", going(), HOURS, limits=Limits(hours=1.5), worked_seconds=5400),
        end("not a second early", going(), None, limits=Limits(hours=1.5), worked_seconds=5399.9),
        end("what runs is seen through", going().opened().training(), None, limits=Limits(hours=1.5),
            worked_seconds=5400),
        end("what has not begun is not", going().opened(), HOURS, limits=Limits(hours=1.5),
            worked_seconds=5400),
        end("nor is what is void", going().opened().faults(1), HOURS, limits=Limits(hours=1.5),
            worked_seconds=5400),
        end("an action on a slot is", going(), None, limits=Limits(hours=1.5), worked_seconds=5400,
            **busy(0)),
        end("a question is not", going().asked(), HOURS, limits=Limits(hours=1.5), worked_seconds=5400,
            busy_proposals=frozenset({1})),
        end("fifty refusals need a person", going().refused(50), Stop(REFUSALS, UserError)),
        end("forty-nine do not", going().refused(49), None),
        end("fifty errors need a person", going().failed(50),
            Stop("The agent failed 50 times in a row; see the log.", UserError)),
        end("forty-nine errors do not", going().failed(49), None),
        end("faults end it only if the settings say so", going().opened().faults(99), None),
        end("then they do", going().opened().faults(4), Stop(FAULTS, NotReady), **GIVE_UP),
        end("one less does not", going().opened().faults(3), None, **GIVE_UP),
        end("nor if another slot works", going().opened(0).opened(1).faults(4, of=1), None, slots=2,
            **GIVE_UP),
        end("both have to fail", going().opened(0).opened(1).faults(5, of=1).faults(4, of=2),
            Stop(FAULTS.replace("4", "5"), NotReady), slots=2, **GIVE_UP),
        end("a fault comes before a limit", going().opened().faults(4), Stop(FAULTS, NotReady), **GIVE_UP,
            limits=Limits(hours=1), worked_seconds=1e6),
        end("two runs without a GPU say nothing yet", lacking("No CUDA GPUs are available", 2), None),
        end("an agent with nothing further", going(), Stop(NOTHING), exhausted=NOTHING),
        end("what it made before is run", going().idea(), None, exhausted=NOTHING),
        end("what is opened is run", going().opened(), None, exhausted=NOTHING),
        end("what is being asked is waited for", going(), None, exhausted=NOTHING,
            busy_proposals=frozenset({7})),
        end("what is to be merged is merged", keep(1, 2), None, exhausted=NOTHING),
        end("an agent that a person has to see to", going().absent(None), DOWN),
        end("one that will be asked again is waited for", going().absent(10), None),
        end("also one whose understudy could act", going().absent(None), None, understudy="replay",
            absence=AWAY),
        end("but not if that failed", going().absent(None), DOWN, understudy="replay", absence=AWAY,
            understudy_failed=True),
        end("nor if the settings never let it act", going().absent(None), DOWN, understudy="replay"),
        end("nor if there is none", going().absent(None), DOWN, absence=AWAY),
        end("what waits is run without the agent", going().idea().absent(None), None),
        end("another agent's absence is no reason", going().absent(None, "claude"), None),
        end("a pause ends nothing", going(), None, wish=PAUSE, shortage=FULL),
    ],
)  # fmt: skip
def test_when_to_stop(told: Told, situation: Situation, expected: Stop | None) -> None:
    assert stop(told.state, situation) == expected


def test_an_obstacle_ends_it_also_while_another_slot_has_something_waiting() -> None:
    for told in (lacking("No CUDA GPUs are available", 3), lacking("No CUDA GPUs are available", 3).opened()):
        end = stop(told.state, at(slots=2))
        assert end is not None and end.error is Unfit and "No CUDA GPUs are available" in end.reason
    assert stop(told.training().state, at(slots=2)) is None  # it may be scored after all


def test_the_limit_is_known_before_anything_begins() -> None:
    assert plan.limit(going().state, at(limits=Limits(1))) == "limit of 1 experiments reached"
    assert plan.limit(going().state, at(limits=Limits(2))) is None


# --- time ----------------------------------------------------------------------------------------


def wake(sentence: str, told: Told, moment: float | None, seconds: float = 0.0, **known: Any) -> Any:
    return pytest.param(told, at(seconds, **known), moment, id=sentence)


@pytest.mark.parametrize(
    ("told", "situation", "moment"),
    [
        wake("nothing changes by the clock alone", going(), None),
        wake("a pause of a person's has no end of its own", going().paused("person"), None),
        wake("the agent is asked again", going().absent(30), 30),
        wake("what is past is past", going().absent(30), None, seconds=30),
        wake("never, if a person has to see to it", going().absent(None), None),
        wake("a slot has rested", resting(), 10, seconds=3),
        wake("a slot is looked at again", disturbed().disturbed(LOAD, until=60), 60),
        wake("the hours are over", going(), 600, limits=Limits(hours=1), worked_seconds=3000),
        wake("the understudy acts", going().absent(None), 40, absence=AWAY, absent_seconds=60),
        wake("it acts already", going().absent(None), None, absence=AWAY, absent_seconds=100),
        wake("the first of them counts", resting().absent(5), 5),
        wake("of those that are to come", resting(), 10, seconds=5),
    ],
)
def test_when_a_rule_may_say_something_else(told: Told, situation: Situation, moment: float | None) -> None:
    expected = None if moment is None else START + dt.timedelta(seconds=moment)
    assert wake_at(told.state, situation) == expected


# --- an agent that fails -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("told", "seconds", "named", "until"),
    [
        pytest.param(going(), 0, 0.0, 60, id="a minute if it did not say"),
        pytest.param(going(), 0, 17.0, 17, id="what it asked for"),
        pytest.param(going(), 0, 7200.0, 7200, id="however long"),
        pytest.param(going(), 0, None, None, id="never if a person has to do something"),
        pytest.param(going().absent(60), 60, 0.0, 180, id="twice as long the second time"),
        pytest.param(going().absent(60), 60, 17.0, 180, id="whatever it asks for then"),
        pytest.param(going().absent(60), 60, 500.0, 560, id="unless that is longer"),
        pytest.param(going().absent(5, times=3), 5, 0.0, 485, id="and so on"),
        pytest.param(going().absent(5, times=99), 5, 0.0, 3605, id="up to an hour"),
        pytest.param(
            going().absent(60), 30, 0.0, 90, id="what was asked before does not count as another time"
        ),
        pytest.param(going().absent(60, "claude"), 60, 17.0, 77, id="nor does the absence of another agent"),
    ],
)
def test_how_long_an_agent_is_left_alone(
    told: Told, seconds: float, named: float | None, until: float | None
) -> None:
    absent = plan.absent(told.state, "down", named, at(seconds))
    assert (absent.agent, absent.reason) == (AGENT, "down")
    assert absent.until == (None if until is None else after(until))


def test_questions_that_fail_together_are_one_failure() -> None:
    told, times = going(), []
    for seconds in (0.0, 1.0, 2.0, 70.0, 71.0, 200.0):
        absent = plan.absent(told.state, "down", 0.0, at(seconds))
        told.tell(absent)
        times.append(absent.times)
    assert times == [1, 1, 1, 2, 2, 3]


@pytest.mark.parametrize(
    ("errors", "asks_ahead", "until"),
    [(2, True, None), (3, True, 60), (4, True, 60), (3, False, None), (49, False, None)],
)
def test_an_agent_that_costs_money_gets_a_rest_after_three_errors(
    errors: int, asks_ahead: bool, until: float | None
) -> None:
    told, failed = going().failed(errors), AgentFailed(agent=AGENT, proposal=1, reason="nonsense")
    absent = plan.after_failure(told.state, failed, at(asks_ahead=asks_ahead))
    assert (absent.until if absent else None) == (None if until is None else after(until))
    if absent is not None:
        assert absent.reason == f"It failed {errors} times in a row, the last time because: nonsense"


# --- money ---------------------------------------------------------------------------------------

NOON = dt.datetime(2026, 3, 1, 12, tzinfo=dt.UTC)


def spent(usd: float, day: str = "2026-03-01") -> Spending:
    """So much is on its way, which counts in full."""
    spending = Spending()
    request = ApiRequested(
        call=0, proposal=1, model="m", request_sha256="", request_bytes=0, reserved_usd=usd
    )
    spending.request(request, f"{day}T00:00:00+00:00")
    return spending


@pytest.mark.parametrize(
    ("spending", "limits", "reserve", "retry_seconds"),
    [
        pytest.param(spent(99.0), Limits(), 99.0, ..., id="without a limit there is none"),
        pytest.param(spent(3.0), Limits(dollars=5), 2.0, ..., id="up to the last cent"),
        pytest.param(spent(3.0), Limits(dollars=5), 2.01, None, id="of the effort: never again"),
        pytest.param(spent(3.0), Limits(dollars_per_day=5), 2.0, ..., id="up to the last cent of the day"),
        pytest.param(spent(3.0), Limits(dollars_per_day=5), 2.01, 43200.0, id="of the day: until midnight"),
        pytest.param(
            spent(3.0, "2026-02-28"), Limits(dollars_per_day=5), 5.0, ..., id="yesterday does not count"
        ),
        pytest.param(spent(3.0, "2026-02-28"), Limits(dollars=5), 5.0, None, id="but for the effort it does"),
        pytest.param(
            spent(3.0), Limits(dollars=5, dollars_per_day=4), 3.0, None, id="the effort's comes first"
        ),
    ],
)
def test_money(spending: Spending, limits: Limits, reserve: float, retry_seconds: Any) -> None:
    """`...`: it may be spent."""
    over = plan.over_budget(spending, Rules(agent=AGENT, limits=limits), NOON, reserve)
    assert (... if over is None else over.retry_seconds) == retry_seconds
    if over is not None:
        assert "dollars" in over.reason and "3.00 are spent or on their way" in over.reason
