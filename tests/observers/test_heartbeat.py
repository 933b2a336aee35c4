"""The sign of life: what a health check in another process can tell from it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from controller.core.events import (
    AgentAbsent,
    Paused,
    ScoringStarted,
    SessionStarted,
    TrainingFinished,
    Voided,
)
from controller.core.state import ResearchState, apply, fold
from controller.core.values import RunOutcome
from controller.observers import heartbeat
from controller.observers.heartbeat import Heartbeat
from tests.support.efforts import PROVENANCE, Story, draw, small
from tests.support.fakes import LOAD, HandClock
from tests.support.two_slots import StoryOfTwo


def watch(life: Heartbeat, story: Story) -> None:
    state = ResearchState()
    for record in story.records:
        apply(state, record)
        life.recorded(record, state)


def sign(home: Path) -> heartbeat.Beat:
    found = heartbeat.read(home)
    assert found is not None
    return found


@pytest.fixture
def life(tmp_path: Path) -> Heartbeat:
    return Heartbeat(tmp_path, HandClock(), scoring_seconds=1800, asking_seconds=1000)


def test_it_says_what_is_done_and_when_to_worry(tmp_path: Path, life: Heartbeat) -> None:
    assert sign(tmp_path) == heartbeat.Beat(os.getpid(), 300, "starting")
    watch(life, small())
    assert sign(tmp_path) == heartbeat.Beat(os.getpid(), 1300, "waiting for a proposal")
    story = small()
    story.propose()
    watch(life, story)
    assert sign(tmp_path) == heartbeat.Beat(os.getpid(), 300, "experiment 6: training")
    life.training(6, 12.3, 300.0)
    assert sign(tmp_path).doing == "training experiment 6, 12 of 300 s"


def test_who_waits_is_alive_and_says_for_what(tmp_path: Path, life: Heartbeat) -> None:
    story = small()
    story.tell(AgentAbsent(agent="claude", reason="busy", until=None))
    watch(life, story)
    assert "the agent is absent" in sign(tmp_path).doing
    story = small()
    story.propose()
    story.tell(Voided(experiment=6, attempt=1, cause="disturbed", reason=LOAD.detail, evidence=LOAD))
    watch(life, story)
    assert sign(tmp_path).doing.startswith("waiting for the slot to be undisturbed since 2026-03-01")
    story.tell(Paused(why="person", by="me", reason="lunch \x1b[31m☃"))
    watch(life, story)
    assert sign(tmp_path).doing.startswith("paused by me since 2026-03-01")
    assert sign(tmp_path).doing.endswith("lunch ?")
    story.tell(Paused(why="infrastructure", reason="x" * 5000, until="2026-03-01T00:00:00+00:00"))
    watch(life, story)
    assert sign(tmp_path).doing.startswith("waiting for the machine since")
    assert (tmp_path / heartbeat.NAME).stat().st_size == 512


def test_one_hung_slot_makes_it_overdue_though_the_other_ticks(tmp_path: Path) -> None:
    clock = HandClock()
    life = Heartbeat(tmp_path, clock, scoring_seconds=1800, asking_seconds=1000)
    story = StoryOfTwo()
    hangs, ticks = story.open(0, "hangs"), story.open(1, "ticks")
    watch(life, story)
    for _ in range(4):
        clock.sleep(100)
        life.training(ticks, clock.seconds, 300.0)
        assert sign(tmp_path).doing.startswith(f"training experiment {ticks}")
    assert sign(tmp_path).due == 300 < clock.seconds
    life.training(hangs, 400.0, 300.0)
    assert sign(tmp_path).due == clock.seconds + 300, "it has been heard of again"
    story.end(hangs, 1.9)
    clock.sleep(200)
    watch(life, story)
    clock.sleep(200)
    life.training(ticks, clock.seconds, 300.0)
    assert sign(tmp_path).due == clock.seconds + 300, "what is finished is not waited for"


def test_a_slot_that_scores_may_be_silent_for_longer_than_one_that_trains(tmp_path: Path) -> None:
    clock = HandClock()
    life = Heartbeat(tmp_path, clock, scoring_seconds=1800, asking_seconds=1000)
    story = StoryOfTwo()
    scored, trained = story.open(0, "scored"), story.open(1, "trained")
    story.tell(TrainingFinished(experiment=scored, attempt=1, outcome=RunOutcome(seconds=300, exit_code=0)))
    story.tell(ScoringStarted(experiment=scored, attempt=1, seed=1, draw=draw(1), specs={}))
    watch(life, story)
    clock.sleep(1500)
    life.training(trained, 1.0, 300.0)
    assert sign(tmp_path).due == 1800
    clock.sleep(500)
    life.training(trained, 1.0, 300.0)
    assert sign(tmp_path).due == 2100 == clock.seconds + 100


def test_what_an_earlier_process_left_under_way_has_to_be_heard_of(tmp_path: Path) -> None:
    """The first thing a process records is that it has begun."""
    clock = HandClock()
    life = Heartbeat(tmp_path, clock, scoring_seconds=1800, asking_seconds=1000)
    story = StoryOfTwo()
    story.open(0, "hangs")
    ticks = story.open(1, "ticks")
    story.tell(SessionStarted(agent="tuner", budget_seconds=300, provenance=PROVENANCE))
    life.recorded(story.records[-1], fold(story.records))
    clock.sleep(400)
    life.training(ticks, 400.0, 300.0)
    assert sign(tmp_path).due == 300


def test_what_is_no_sign_is_none(tmp_path: Path) -> None:
    assert heartbeat.read(tmp_path) is None
    for content in (b"", b"1", b"a b c", b"1 \xff", b" " * 600):
        (tmp_path / heartbeat.NAME).write_bytes(content)
        assert heartbeat.read(tmp_path) is None


def test_a_sign_that_cannot_be_written_harms_nobody(tmp_path: Path) -> None:
    (tmp_path / heartbeat.NAME).symlink_to(tmp_path / "elsewhere")
    Heartbeat(tmp_path, HandClock(), scoring_seconds=1, asking_seconds=1).alive()
    assert not (tmp_path / "elsewhere").exists()
