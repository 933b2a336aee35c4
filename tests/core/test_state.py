"""fold(): where the effort stands after any prefix of its journal."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import pytest

from controller.core.errors import ImpossibleHistory
from controller.core.events import (
    AgentAbsent,
    AgentFailed,
    AgentReturned,
    AnyEvent,
    ClaimMismatch,
    Committed,
    Decided,
    ExperimentMoved,
    ExperimentOpened,
    Paused,
    ProposalAsked,
    ProposalDropped,
    ProposalMade,
    ProposalRefused,
    Quarantined,
    Record,
    Resumed,
    ScoringFinished,
    ScoringStarted,
    SessionStarted,
    SlotDisturbed,
    SlotReady,
    TrainingFinished,
    TrainingStarted,
    Voided,
)
from controller.core.experiment import Phase
from controller.core.state import ResearchState, apply, fold
from controller.core.values import Cause, Decision, Refusal, RunOutcome, Score, Verdict
from controller.store.journal import read_records
from tests.support.fakes import LOAD, SHARED
from tests.support.story import BASELINE, PROVENANCE, Story, tell


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Story:
    return tell(tmp_path_factory.mktemp("told"))


def record(event: AnyEvent, seq: int = 0) -> Record:
    number = getattr(event, "experiment", None)
    return Record(
        seq=seq,
        time=f"2026-03-01T00:{seq:02}Z",
        experiment=number,
        data=event,
        prev="",
        hash=f"h{seq}",
    )


def asked(number: int, **changes: Any) -> ProposalAsked:
    event = ProposalAsked(proposal=number, agent="claude", purpose="propose", parent="c")
    return event.model_copy(update=changes)


def made(number: int) -> ProposalMade:
    return ProposalMade(proposal=number, description="", train_sha256="a")


def opened(number: int, proposal: int | None = None, slot: int = 0, digest: str = "") -> ExperimentOpened:
    return ExperimentOpened(
        experiment=number,
        proposal=number if proposal is None else proposal,
        slot=slot,
        parent="c",
        train_sha256="a",
        seed=7,
        ran_sha256="a",
        digest=digest,
        diff_sha256="",
    )


def proposed(number: int, slot: int = 0) -> list[AnyEvent]:
    """An experiment, from the question to its opening."""
    return [asked(number), made(number), opened(number, slot=slot)]


def training(number: int, attempt: int = 1) -> TrainingStarted:
    return TrainingStarted(
        experiment=number, attempt=attempt, container="t", spec_sha256="", budget_seconds=1
    )


def trained(number: int) -> list[AnyEvent]:
    outcome = RunOutcome(seconds=1, exit_code=0)
    return [training(number), TrainingFinished(experiment=number, attempt=1, outcome=outcome)]


def crashed(number: int, cause: Cause) -> list[AnyEvent]:
    """A run and its end."""
    decision = Decision(verdict=Verdict.CRASH, cause=cause, rule="R9")
    return [
        training(number),
        TrainingFinished(
            experiment=number, attempt=1, outcome=RunOutcome(seconds=1, exit_code=1, cause=cause)
        ),
        Decided(experiment=number, decision=decision, frontier_bpb=None),
    ]


def test_a_replay_gives_the_state_that_was_lived(story: Story) -> None:
    assert fold(read_records(story.home)) == story.state


def test_the_frontier_is_the_best_kept_experiment(story: Story) -> None:
    frontier, last = story.state.frontier, story.state.experiments[-1]
    assert frontier is not None
    assert (frontier.experiment, frontier.val_bpb, frontier.commit) == (4, 1.5, last.commit)
    assert [e.verdict for e in story.state.finished] == ["keep", "discard", "crash", "reject", "keep"]
    assert story.state.count(Verdict.KEEP) == 2
    assert story.state.open == []


def test_what_an_experiment_is_told_by(story: Story) -> None:
    kept, _, crashed, rejected, _ = story.state.experiments
    assert isinstance(kept.judgement, Score)
    assert kept.score is kept.judgement
    assert (crashed.judgement, crashed.cause) == (None, Cause.OOM)
    assert rejected.judgement == Refusal(cause=Cause.NON_CAUSAL, detail="peeks")
    assert rejected.score is None
    assert kept.provenance is not None


def test_every_prefix_stands_somewhere_definite(story: Story) -> None:
    """Killed after any line, a start knows which experiment is open and how far it has come."""
    state, phases = ResearchState(), []
    for line in read_records(story.home):
        apply(state, line)
        phases.append(state.open[0].phase if state.open else None)
        assert state.next_number == len(state.finished) + len(state.open)
    kept = [
        Phase.OPENED, Phase.TRAINING, Phase.TRAINED, Phase.SCORING, Phase.JUDGED, Phase.DECIDED, None,
    ]  # fmt: skip
    crash = [Phase.OPENED, Phase.TRAINING, Phase.TRAINED, None]
    judged = [Phase.OPENED, Phase.TRAINING, Phase.TRAINED, Phase.SCORING, Phase.JUDGED, None]
    question = [None, None]  # an agent is asked, and has answered
    runs = [*question, *kept, *question, *judged, *question, *crash, *question, *judged, *question, *kept]
    assert phases == [None, None, *runs]


def test_a_voided_attempt_leaves_the_experiment_to_be_repeated(tmp_path: Path) -> None:
    story = Story(tmp_path)
    story.begin()
    number = story.propose(BASELINE)
    story.train(number)
    story.record(Voided(experiment=number, attempt=1, cause="infrastructure", reason="the engine died"))
    (experiment,) = story.state.open
    assert (experiment.phase, experiment.attempt, experiment.outcome) == (Phase.OPENED, 1, None)
    story.record(
        TrainingStarted(experiment=number, attempt=2, container="t", spec_sha256="", budget_seconds=1)
    )
    assert [again.attempt for again in story.state.open] == [2]


def test_a_quarantined_score_is_measured_again_before_anything_is_decided(tmp_path: Path) -> None:
    story = scored(tmp_path)
    quarantined = quarantine(story)
    story.record(quarantined)
    experiment = story.state.experiments[0]
    assert (experiment.phase, experiment.quarantine) == (Phase.QUARANTINED, quarantined)
    story.judge(0, 0.5)
    experiment = story.state.experiments[0]
    assert (experiment.phase, experiment.quarantine) == (Phase.JUDGED, quarantined)
    with pytest.raises(ImpossibleHistory, match="twice"):
        story.record(quarantined)


def test_nothing_is_decided_about_a_score_in_quarantine(tmp_path: Path) -> None:
    story = scored(tmp_path)
    story.record(quarantine(story))
    with pytest.raises(ImpossibleHistory, match="decided cannot follow quarantined"):
        story.decide(0)


def test_a_voided_attempt_forgets_its_oddities(tmp_path: Path) -> None:
    story = scored(tmp_path)
    story.record(ClaimMismatch(experiment=0, attempt=1, claim=0.1, score=0.5, bound=0.05))
    story.record(quarantine(story))
    story.record(Voided(experiment=0, attempt=1, cause="infrastructure", reason="the engine died"))
    experiment = story.state.experiments[0]
    assert experiment.phase is Phase.OPENED
    assert (experiment.quarantine, experiment.claim_mismatch) == (None, None)


def scored(home: Path) -> Story:
    story = Story(home)
    story.begin()
    number = story.propose(BASELINE)
    story.train(number)
    story.judge(number, 0.5)
    return story


def quarantine(story: Story) -> Quarantined:
    score = story.state.experiments[0].score
    assert score is not None
    return Quarantined(experiment=0, attempt=1, reason="too good", score=score)


@pytest.mark.parametrize(
    "events",
    [
        [asked(0), made(0), opened(1)],
        [*proposed(0), *proposed(1)],  # on one slot
        [Committed(experiment=0, commit="c")],
        [*proposed(0), Committed(experiment=1, commit="c")],
        [*proposed(0), Committed(experiment=0, commit="c")],
        [
            *proposed(0),
            Decided(experiment=0, decision=Decision(verdict=Verdict.CRASH, rule=""), frontier_bpb=None),
        ],
        [*proposed(0), *crashed(0, Cause.OOM), Committed(experiment=0, commit="c")],
        [*proposed(0), training(1)],
        [*proposed(0), *crashed(0, Cause.OOM), training(0, attempt=2)],
        # questions and answers
        [asked(1)],
        [asked(0), asked(0)],
        [made(0)],
        [asked(0), made(0), made(0)],
        [asked(0), opened(0)],
        [*proposed(0), made(0)],
        [*proposed(0), opened(1, proposal=0, slot=1)],
        [asked(0), ProposalDropped(proposal=0, reason=""), made(0)],
        [asked(0), ProposalRefused(proposal=0, cause="", detail=""), opened(0)],
        [asked(0), AgentFailed(agent="claude", proposal=0, reason=""), made(0)],
        # slots
        [*proposed(0), training(0), ExperimentMoved(experiment=0, slot=1)],
        [*proposed(0), *proposed(1, slot=1), ExperimentMoved(experiment=0, slot=1)],
        [*proposed(0), SlotReady(experiment=0, seconds=1)],
    ],
)
def test_histories_nobody_can_have_lived(events: list[AnyEvent]) -> None:
    with pytest.raises(ImpossibleHistory):
        fold(record(event, seq) for seq, event in enumerate(events))


def absent(times: int = 1) -> AgentAbsent:
    until = "2026-01-01T00:01:00+00:00"
    return AgentAbsent(agent="claude", reason="The API is overloaded.", until=until, times=times)


def session(agent: str) -> SessionStarted:
    return SessionStarted(agent=agent, budget_seconds=20, provenance=PROVENANCE)


def folded(*events: AnyEvent) -> ResearchState:
    return fold(record(event, seq) for seq, event in enumerate(events))


def test_an_absence_outlives_the_process_but_not_the_choice_of_the_agent() -> None:
    twice = folded(session("claude"), absent(), absent(times=2), session("claude"))
    assert twice.absence is not None
    assert (twice.absence.times, twice.absence.since) == (2, "2026-03-01T00:01Z")
    assert folded(session("claude"), absent(), session("tuner")).absence is None
    assert folded(session("claude"), absent(), AgentReturned(agent="claude", seconds=1)).absence is None


def test_errors_of_an_agent_are_counted_anew_with_each_session_and_each_answer() -> None:
    failed = [*failure(0), *failure(1)]
    assert folded(*failed).agent_errors_in_a_row == 2
    assert folded(*failed, session("claude")).agent_errors_in_a_row == 0
    assert folded(*failed, asked(2)).agent_errors_in_a_row == 2
    assert folded(*failed, asked(2), made(2)).agent_errors_in_a_row == 0


def failure(number: int) -> list[AnyEvent]:
    return [asked(number), AgentFailed(agent="claude", proposal=number, reason="nonsense")]


def test_refusals_are_counted_anew_with_each_session_and_each_experiment() -> None:
    refused = [*refusal(0), *refusal(1)]
    assert folded(*refused).refused_in_a_row == 2
    assert folded(*refused).last_refusal == "no model 1"
    assert folded(*refused, session("claude")).refused_in_a_row == 0
    assert folded(*refused, asked(2), made(2)).refused_in_a_row == 2
    assert folded(*refused, asked(2), made(2), opened(0, proposal=2)).refused_in_a_row == 0


def refusal(number: int) -> list[AnyEvent]:
    refused = ProposalRefused(proposal=number, cause="form", detail=f"no model {number}")
    return [asked(number), made(number), refused]


def test_a_proposal_waits_until_it_is_used_or_given_up() -> None:
    waiting: list[AnyEvent] = [asked(0), made(0), asked(1), made(1)]
    assert [*folded(*waiting).proposals] == [0, 1]
    assert [*folded(*waiting, opened(0, proposal=1)).proposals] == [0]
    for end in (
        ProposalDropped(proposal=0, reason="moved"),
        ProposalRefused(proposal=0, cause="no-op", detail=""),
    ):
        assert [*folded(*waiting, end).proposals] == [1]
    assert folded(*waiting).next_proposal == 2
    used = folded(*waiting, opened(0, proposal=1)).experiments[0]
    assert (used.proposal.number, used.proposal.description) == (1, "")


def test_what_was_tried_is_known_by_its_frontier() -> None:
    state = folded(asked(0), made(0), opened(0, digest="d0"))
    assert state.tried == {"c": {"d0"}}


# --- slots ---------------------------------------------------------------------------------------


def test_each_slot_has_its_own_experiment_and_they_finish_in_any_order() -> None:
    both = [*proposed(0), *proposed(1, slot=3)]
    assert [(known.number, known.slot) for known in folded(*both).open] == [(0, 0), (1, 3)]
    state = folded(*both, *crashed(1, Cause.OOM), *crashed(0, Cause.NAN))
    assert (state.open, state.order) == ([], [1, 0])
    assert [known.cause for known in state.finished] == [Cause.OOM, Cause.NAN]
    assert state.slot(3).experiment is None


def test_an_experiment_that_waits_goes_to_another_slot() -> None:
    noise = Voided(experiment=0, attempt=1, cause="disturbed", reason="", evidence=LOAD)
    waits = [*proposed(0), training(0), noise]
    assert folded(*waits).slot(0).noise is not None
    state = folded(*waits, ExperimentMoved(experiment=0, slot=2))
    assert [(known.number, known.slot) for known in state.open] == [(0, 2)]
    assert (state.slot(0).experiment, state.slot(2).experiment) == (None, 0)
    assert state.slot(0).noise is state.slot(2).noise is None  # what was seen was seen on the other one


def test_faults_are_counted_by_slot_until_an_experiment_gets_through() -> None:
    fault = Voided(experiment=0, attempt=1, cause="infrastructure", reason="no engine")
    twice = [*proposed(0), *proposed(1, slot=1), training(0), fault, training(0, attempt=2), fault]
    state = folded(*twice)
    assert (state.slot(0).faults, state.slot(0).fault, state.slot(1).faults) == (2, "no engine", 0)
    assert folded(*twice, *crashed(1, Cause.OOM)).slot(0).faults == 2
    assert folded(*twice, *crashed(0, Cause.OOM)).slot(0).faults == 0
    assert folded(*twice, session("claude")).slot(0).faults == 0


def test_an_interrupted_attempt_is_no_fault() -> None:
    stopped = Voided(experiment=0, attempt=1, cause="interrupted", reason="stopped by a person")
    assert folded(*proposed(0), training(0), stopped).slot(0).faults == 0


def test_a_disturbed_slot_is_remembered_until_the_next_attempt() -> None:
    void = Voided(experiment=0, attempt=1, cause="disturbed", reason="", evidence=LOAD)
    look = SlotDisturbed(experiment=0, disturbance=SHARED, looks=1, until="2026-03-01T00:09Z")
    waits = [*proposed(0), training(0), void]
    noise = folded(*waits).slot(0).noise
    assert noise is not None and (noise.disturbance, noise.looks, noise.until) == (LOAD, 0, None)
    seen = folded(*waits, look).slot(0).noise
    assert seen is not None and (seen.disturbance, seen.looks, seen.until) == (SHARED, 1, look.until)
    assert seen.since == noise.since
    assert folded(*waits, look, SlotReady(experiment=0, seconds=1)).slot(0).noise is None
    assert folded(*waits, training(0, attempt=2)).slot(0).noise is None


@pytest.mark.parametrize(
    ("ends", "draw"),
    [
        ("0 unconfirmed", (2, 2)),  # the confirmation's rows of the other one are in use
        ("1 unconfirmed", (2, 1)),
        ("0 confirmed, 1 unconfirmed", (2, 1)),
        ("1 confirmed, 0 unconfirmed", (2, 2)),
        ("1 unconfirmed, 0 unconfirmed", (2, 1)),
    ],
)
def test_no_rows_are_given_to_two_confirmations(ends: str, draw: tuple[int, int]) -> None:
    state = folded(*proposed(0), *proposed(1, slot=1), *trained(0), *trained(1))
    for number in (0, 1):
        start = ScoringStarted(experiment=number, attempt=1, seed=1, draw=state.draw, specs={})
        apply(state, record(start))
    for end in ends.split(", "):
        ended, how = end.split()
        found = Score(val_bpb=1.0, bytes=1, tokens=1, confirmed=how == "confirmed")
        apply(state, record(ScoringFinished(experiment=int(ended), attempt=1, score=found)))
    assert (state.draw.scoring, state.draw.confirmation) == draw


def pause(why: Literal["person", "disk", "infrastructure"], slot: int | None = None) -> Paused:
    return Paused(why=why, slot=slot, reason="")


def test_a_pause_is_of_one_slot_or_of_all_and_has_one_beginning() -> None:
    resting = pause("infrastructure", slot=1)
    both = folded(pause("person"), resting, resting)
    assert both.pause is not None and both.pause.event.why == "person"
    rest = both.slot(1).pause
    assert rest is not None and rest.since == "2026-03-01T00:01Z"
    assert both.slot(0).pause is None
    over = folded(pause("person"), resting, Resumed(why="infrastructure", slot=1, seconds=1))
    assert over.slot(1).pause is None and over.pause is not None
    assert folded(pause("person"), Resumed(why="person", seconds=1)).pause is None


def test_only_the_pause_of_a_person_outlives_the_process() -> None:
    assert folded(pause("person"), session("claude")).pause is not None
    assert folded(pause("disk"), session("claude")).pause is None
    assert folded(pause("infrastructure", slot=0), session("claude")).slot(0).pause is None


# --- repairs and merges --------------------------------------------------------------------------


def test_a_crash_over_a_trifle_waits_for_one_repair() -> None:
    trifle = [*proposed(0), *crashed(0, Cause.NAME)]
    assert folded(*trifle).to_repair == 0
    assert folded(*proposed(0), *crashed(0, Cause.OOM)).to_repair is None
    repair: list[AnyEvent] = [asked(1, purpose="fix", fixes=0), made(1), opened(1)]
    assert folded(*trifle, repair[0]).to_repair is None
    assert folded(*trifle, *repair, *crashed(1, Cause.NAME)).to_repair is None  # of a repair there is none


def test_a_repair_waits_for_an_absent_agent_until_another_experiment_is_opened() -> None:
    trifle = [*proposed(0), *crashed(0, Cause.NAME)]
    other: list[AnyEvent] = [asked(1), made(1), opened(1)]
    assert folded(*trifle, absent()).to_repair == folded(absent(), *trifle).to_repair == 0
    assert folded(*trifle, absent(), *other).to_repair is None
    assert folded(*trifle, *other).to_repair == 0


def test_a_repair_that_nobody_answered_is_still_wanted() -> None:
    trifle = [*proposed(0), *crashed(0, Cause.NAME)]
    question = asked(1, purpose="fix", fixes=0)
    lost = ProposalDropped(proposal=1, reason="the controller stopped", unanswered=True)
    given_up = ProposalDropped(proposal=1, reason="the agent sees none")
    assert folded(*trifle, question, lost).to_repair == 0
    assert folded(*trifle, question, given_up).to_repair is None
