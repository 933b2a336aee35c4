"""fold(): where the effort stands after any prefix of its journal."""

from __future__ import annotations

from pathlib import Path

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
    PreparationDropped,
    Prepared,
    Proposed,
    Quarantined,
    Record,
    SessionStarted,
    TrainingStarted,
    Voided,
)
from controller.core.experiment import Phase
from controller.core.state import ResearchState, apply, fold
from controller.core.values import Cause, Decision, Refusal, Score, Verdict
from controller.store.journal import read_records
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


def proposed(number: int) -> Proposed:
    return Proposed(
        experiment=number,
        description="",
        hypothesis="",
        agent="",
        parent="c",
        train_sha256="",
        digest="",
        diff_sha256="",
    )


def test_a_replay_gives_the_state_that_was_lived(story: Story) -> None:
    assert fold(read_records(story.home)) == story.state


def test_the_frontier_is_the_best_kept_experiment(story: Story) -> None:
    frontier, last = story.state.frontier, story.state.experiments[-1]
    assert frontier is not None
    assert (frontier.experiment, frontier.val_bpb, frontier.commit) == (4, 1.5, last.commit)
    assert [e.verdict for e in story.state.finished] == ["keep", "discard", "crash", "reject", "keep"]
    assert story.state.count(Verdict.KEEP) == 2
    assert story.state.open is None


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
        phases.append(state.open.phase if state.open else None)
        assert state.next_number == len(state.finished) + (state.open is not None)
    kept = [
        Phase.PROPOSED, Phase.TRAINING, Phase.TRAINED, Phase.SCORING, Phase.JUDGED, Phase.DECIDED, None,
    ]  # fmt: skip
    crash = [Phase.PROPOSED, Phase.TRAINING, Phase.TRAINED, None]
    judged = [Phase.PROPOSED, Phase.TRAINING, Phase.TRAINED, Phase.SCORING, Phase.JUDGED, None]
    assert phases == [None, None, *kept, *judged, *crash, *judged, *kept]


def test_a_voided_attempt_leaves_the_experiment_to_be_repeated(tmp_path: Path) -> None:
    story = Story(tmp_path)
    story.begin()
    number = story.propose(BASELINE)
    story.train(number)
    story.record(Voided(experiment=number, attempt=1, cause="infrastructure", reason="the engine died"))
    experiment = story.state.open
    assert experiment is not None
    assert (experiment.phase, experiment.attempt, experiment.outcome) == (Phase.PROPOSED, 1, None)
    story.record(
        TrainingStarted(experiment=number, attempt=2, container="t", spec_sha256="", budget_seconds=1)
    )
    assert story.state.open is not None
    assert story.state.open.attempt == 2


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
    assert experiment.phase is Phase.PROPOSED
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
        [proposed(1)],
        [proposed(0), proposed(1)],
        [Committed(experiment=0, commit="c")],
        [proposed(0), Committed(experiment=1, commit="c")],
        [
            proposed(0),
            Decided(experiment=0, decision=Decision(verdict=Verdict.CRASH, rule=""), frontier_bpb=None),
            Committed(experiment=0, commit="c"),
        ],
    ],
)
def test_histories_nobody_can_have_lived(events: list[AnyEvent]) -> None:
    with pytest.raises(ImpossibleHistory):
        fold(record(event, seq) for seq, event in enumerate(events))


def absent(agent: str = "claude") -> AgentAbsent:
    return AgentAbsent(agent=agent, reason="The API is overloaded.", until="2026-01-01T00:01:00+00:00")


def session(agent: str) -> SessionStarted:
    return SessionStarted(agent=agent, budget_seconds=20, provenance=PROVENANCE)


def prepared(number: int) -> Prepared:
    return Prepared(
        for_experiment=number, agent="claude", parent="c", description="", hypothesis="", train_sha256="a"
    )


def folded(*events: AnyEvent) -> ResearchState:
    return fold(record(event, seq) for seq, event in enumerate(events))


def test_an_absence_outlives_the_process_but_not_the_choice_of_the_agent() -> None:
    twice = folded(session("claude"), absent(), absent(), session("claude"))
    assert twice.absence is not None
    assert (twice.absence.times, twice.absence.since) == (2, "2026-03-01T00:01Z")
    assert folded(session("claude"), absent(), session("tuner")).absence is None
    assert folded(session("claude"), absent(), AgentReturned(agent="claude", seconds=1)).absence is None


def test_errors_of_an_agent_are_counted_anew_with_each_session_and_each_proposal() -> None:
    failed = AgentFailed(agent="claude", for_experiment=0, reason="nonsense")
    assert folded(failed, failed).agent_errors_in_a_row == 2
    assert folded(failed, failed, session("claude")).agent_errors_in_a_row == 0
    assert folded(failed, prepared(0)).agent_errors_in_a_row == 0


def test_what_is_prepared_waits_until_it_is_used_or_dropped() -> None:
    used = proposed(0).model_copy(update={"prepared_for": 0})
    repair = proposed(0).model_copy(update={"fixes": 0})
    assert folded(prepared(0)).prepared == prepared(0)
    assert folded(prepared(0), used).prepared is None
    assert folded(prepared(0), repair).prepared == prepared(0)
    assert folded(prepared(0), PreparationDropped(for_experiment=0, reason="moved")).prepared is None
    with pytest.raises(ImpossibleHistory):
        folded(prepared(0), prepared(0))


def test_what_was_tried_is_known_by_its_frontier() -> None:
    state = folded(proposed(0).model_copy(update={"digest": "d0"}))
    assert state.tried == {"c": {"d0"}}
