"""The live view shows the facts in a real pseudo-terminal, and its faults never reach the loop."""

from __future__ import annotations

import contextlib
import io
import os
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TextIO

import pytest
import structlog
from structlog.testing import capture_logs

from controller.core.events import (
    AgentAbsent,
    ApiFailed,
    ApiRequested,
    CertificateOpened,
    Paused,
    Record,
    Resumed,
    ScoringFinished,
    TrainingFinished,
)
from controller.core.state import ResearchState, apply
from controller.core.values import Curve, RunOutcome, Verdict
from controller.observers.log import OperationalLog
from controller.observers.terminal import ObserverGroup, observer
from controller.ports import Observer
from controller.system.clock import SystemClock
from tests.core.statistics.test_certificate import EVIDENCE, decided
from tests.core.telling import Told, score
from tests.support.efforts import Story, small


@pytest.fixture(autouse=True)
def structlog_as_it_was() -> Iterator[None]:
    structlog.reset_defaults()
    with capture_logs():
        yield


def watch(story: Story | Told, watching: Observer) -> ResearchState:
    state = ResearchState()
    for record in story.records:
        apply(state, record)
        watching.recorded(record, state)
    return state


@dataclass
class Screen:
    """The far side of a pseudo-terminal."""

    terminal: TextIO
    master: int
    seen: bytearray = field(default_factory=bytearray)

    def read_all(self) -> None:
        with contextlib.suppress(OSError):  # EIO: the near side was closed
            while chunk := os.read(self.master, 65536):
                self.seen += chunk

    @property
    def text(self) -> str:
        return re.sub(r"\x1b\[[0-?]*[ -/]*[@-~]", "", self.seen.decode())


@contextlib.contextmanager
def screen() -> Iterator[Screen]:
    master, slave = os.openpty()
    shown = Screen(os.fdopen(slave, "w", encoding="utf-8"), master)
    reader = threading.Thread(target=shown.read_all)
    reader.start()
    try:
        yield shown
    finally:
        with contextlib.suppress(OSError):
            shown.terminal.close()
        reader.join(timeout=10)
        os.close(master)


def test_a_terminal_shows_verdicts_best_and_the_running_experiment() -> None:
    story = small()
    story.propose("still running \x1b]0;title\x07")
    with screen() as shown:
        with observer(shown.terminal, SystemClock()) as watching:
            watch(story, watching)
            watching.training(6, 134.2, 300.0)
        shown.terminal.flush()
    text = shown.text
    for fact in (
        "autoresearch/mar1: tuner",
        "crash oom",
        "reject non-causal",
        "best 1.850000 (experiment 5)",
    ):
        assert fact in text
    assert "refused identical" in text and "+0.000500" in text
    assert "experiment 6 training" in text and "134/300 s" in text and "still running" in text
    assert b"]0;title" not in shown.seen
    assert shown.seen.rindex(b"?25h") > shown.seen.rfind(b"?25l")


def test_a_terminal_shows_what_gains_are_worth_and_how_a_run_trained() -> None:
    told = Told().baseline(2.0).replicated(0, 2.001, 1.999).opened().training()
    run = RunOutcome(seconds=300.0, exit_code=0, curve=Curve(losses=(4.0, 3.0, 2.0, 1.0)))
    told.tell(TrainingFinished(experiment=3, attempt=1, outcome=run)).scoring()
    told.tell(ScoringFinished(experiment=3, attempt=1, score=score(1.9))).decided(Verdict.KEEP).committed()
    evidence = EVIDENCE.model_copy(update={"gain": 0.1})
    told.tell(CertificateOpened(certificate=0, base=0, head=3))
    told.tell(decided("certified", head=3).model_copy(update={"evidence": evidence}))
    with screen() as shown, observer(shown.terminal, SystemClock()) as watching:
        watch(told, watching)
    assert "keep              █▆▃▁ d" in shown.text
    assert "σ 0.001000, certified gain 0.100000" in shown.text


def test_a_terminal_says_what_is_waited_for() -> None:
    story = small()
    story.tell(Paused(why="person", by="me@here", reason="lunch \x1b]0;title\x07"))
    with screen() as shown:
        with observer(shown.terminal, SystemClock()) as watching:
            watch(story, watching)
            watching.alive()
            story.tell(Resumed(why="person", by="me@here", seconds=60))
            watch(story, watching)
        shown.terminal.flush()
    assert "paused by me@here since 2026-03-01" in shown.text and "lunch" in shown.text
    assert "resumed, person me@here" in shown.text
    assert b"]0;title" not in shown.seen


def test_a_terminal_that_goes_away_does_not_stop_anything() -> None:
    master, slave = os.openpty()
    terminal = os.fdopen(slave, "w", encoding="utf-8")
    with observer(terminal, SystemClock()) as watching:
        os.close(master)
        state = watch(small(), watching)
        watching.training(6, 1.0, 300.0)
    assert len(state.finished) == 6
    with contextlib.suppress(OSError):
        terminal.close()


def test_without_a_terminal_there_are_log_lines_alone() -> None:
    stream = io.StringIO()
    story = small()
    with capture_logs() as lines, observer(stream, SystemClock()) as watching:
        watch(story, watching)
        for second in range(150):
            watching.training(6, float(second), 300.0)
        watching.training(7, 1.0, 300.0)
    assert stream.getvalue() == ""
    events = [line["event"] for line in lines]
    assert events[: len(story.records)] == [record.data.event for record in story.records]
    decided = [line for line in lines if line["event"] == "decided"]
    assert [line["verdict"] for line in decided] == ["keep", "keep", "crash", "reject", "discard", "keep"]
    assert [line["experiment"] for line in decided] == [0, 1, 2, 3, 4, 5]
    training = [(line["experiment"], line["elapsed"]) for line in lines if line["event"] == "training"]
    assert training == [(6, 0.0), (6, 60.0), (6, 120.0), (7, 1.0)]


class Faulty:
    """A watcher that fails, and counts how often it was asked."""

    asked = 0

    def recorded(self, record: Record, state: ResearchState) -> None:
        self.asked += 1
        raise OSError("no space left on device")

    def training(self, experiment: int, elapsed: float, limit: float) -> None:
        raise AssertionError("a watcher is not asked again after a fault")

    def alive(self) -> None:
        raise AssertionError("a watcher is not asked again after a fault")


class Counting:
    asked = 0

    def recorded(self, record: Record, state: ResearchState) -> None:
        self.asked += 1

    def training(self, experiment: int, elapsed: float, limit: float) -> None:
        self.asked += 1

    def alive(self) -> None:
        self.asked += 1


def test_a_faulty_watcher_is_dropped_and_the_others_go_on() -> None:
    faulty, counting = Faulty(), Counting()
    group = ObserverGroup([faulty, counting])
    story = small()
    watch(story, group)
    group.training(0, 1.0, 2.0)
    assert faulty.asked == 1
    assert counting.asked == len(story.records) + 1


def test_a_log_line_tells_what_an_agent_does_in_safe_words() -> None:
    story = Story()
    story.tell(
        ApiRequested(
            call=0,
            proposal=story.question(),
            model="m",
            request_sha256="",
            request_bytes=0,
            reserved_usd=1.0,
        )
    )
    story.tell(ApiFailed(call=0, status=529, error="over\x1b[31mloaded", seconds=1.0, cost_usd=0.0))
    story.tell(AgentAbsent(agent="claude", reason="The API is overloaded.", until=None))
    with capture_logs() as lines:
        watch(story, OperationalLog())
    assert [line["event"] for line in lines[-3:]] == ["api_requested", "api_failed", "agent_absent"]
    assert lines[-2]["status"] == 529 and "\x1b" not in lines[-2]["error"]
    assert lines[-1]["reason"] == "The API is overloaded."
