"""A snapshot tells what the journal tells, or is not believed."""

from __future__ import annotations

import hashlib
import itertools
import json
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from controller.core.errors import VerificationFailed
from controller.core.events import (
    AgentAbsent,
    AgentFailed,
    ExperimentMoved,
    ProposalAsked,
    ProposalDropped,
    ProposalRehearsed,
    SessionStarted,
    SlotDisturbed,
    SlotReady,
    Voided,
)
from controller.core.state import ResearchState, fold
from controller.core.values import Cause, Refusal
from controller.store.journal import NAME, Journal, read_records
from controller.store.snapshot import EVERY, SNAPSHOT, Archive, Snapshot, standing
from controller.store.verify import verify
from tests.bench.history import write_history
from tests.support.fakes import LOAD
from tests.support.story import BASELINE, PROVENANCE, Story, TickingClock, tell
from tests.support.two_slots import HomeOfTwo, three_and_four

LONG = 2 * EVERY + 50


@pytest.fixture(scope="module")
def long(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with more experiments than stay in memory, and its snapshot."""
    home = tmp_path_factory.mktemp("long")
    write_history(home, LONG)
    state, archive = standing(home)
    Snapshot(home, archive).publish(state)
    return home


@pytest.fixture
def home(long: Path, tmp_path: Path) -> Path:
    return shutil.copytree(long, tmp_path / "home")


def stored(home: Path) -> int:
    """How many experiments came out of the snapshot."""
    return standing(home)[1].stored


def asked(state: ResearchState) -> ProposalAsked:
    """The next question."""
    return ProposalAsked(proposal=state.next_proposal, agent="a", purpose="propose", parent="p")


def test_it_tells_what_the_journal_tells(home: Path) -> None:
    state, archive = standing(home)
    assert archive.stored == LONG
    assert state == fold(read_records(home))
    (home / SNAPSHOT).unlink()
    again, read = standing(home)
    assert (again, read.stored) == (state, 0)
    assert (read.position, read.experiments, read.sessions) == (
        archive.position,
        archive.experiments,
        archive.sessions,
    )


def test_a_start_goes_on_behind_it(home: Path) -> None:
    state, archive = standing(home)
    journal = Journal(home, TickingClock(), archive.position)
    journal.append(asked(state))
    journal.append(ProposalDropped(proposal=state.next_proposal, reason="nothing came of it"))
    last = journal.append(SessionStarted(agent="tuner", budget_seconds=300, provenance=PROVENANCE))
    state, archive = standing(home)
    assert archive.stored == LONG
    assert state == fold(read_records(home))
    assert (state.head, state.seq) == (last.hash, archive.position.seq)


def test_no_memory_grows_with_the_experiments(home: Path) -> None:
    """Neither with a snapshot nor while a journal without one is read."""
    for _ in range(2):
        state, _ = standing(home)
        kept = sum(state.experiments[number] is state.experiments[number] for number in range(LONG))
        assert kept <= 2 * EVERY
        (home / SNAPSHOT).unlink(missing_ok=True)


def test_a_damaged_journal_is_named_whatever_the_snapshot_says(home: Path) -> None:
    content = bytearray((home / NAME).read_bytes())
    content[len(content) // 2] ^= 1
    line = content[: len(content) // 2].count(b"\n") + 1
    (home / NAME).write_bytes(content)
    with pytest.raises(VerificationFailed, match=f"line {line} "):
        standing(home)


def flip(content: bytes) -> bytes:
    return (
        content[: len(content) // 2]
        + bytes([content[len(content) // 2] ^ 1])
        + content[len(content) // 2 + 1 :]
    )


def of_another_version(content: bytes) -> bytes:
    """As code that folds otherwise would have left it."""
    body = json.loads(content.partition(b"\n")[2])
    text = json.dumps(body | {"code": "0" * 64}).encode()
    return hashlib.sha256(text).hexdigest().encode() + b"\n" + text


@pytest.mark.parametrize(
    "harm",
    [flip, of_another_version, lambda content: content[:-9], lambda content: b"", lambda content: b"\n{}"],
)
def test_a_snapshot_that_is_not_whole_or_not_ours_is_passed_over_and_written_anew(
    home: Path, harm: Callable[[bytes], bytes]
) -> None:
    (home / SNAPSHOT).write_bytes(harm((home / SNAPSHOT).read_bytes()))
    state, archive = standing(home)
    assert archive.stored == 0
    assert state == fold(read_records(home))
    Snapshot(home, archive).publish(state)
    assert stored(home) == LONG


def test_a_journal_that_became_shorter_is_read_from_its_beginning(home: Path) -> None:
    lines = (home / NAME).read_bytes().splitlines(keepends=True)
    (home / NAME).write_bytes(b"".join(lines[:-1]))
    state, archive = standing(home)
    assert archive.stored == 0
    assert state == fold(read_records(home))


def test_it_is_written_now_and_then(tmp_path: Path) -> None:
    write_history(tmp_path, EVERY - 1)
    state, archive = standing(tmp_path)
    snapshot = Snapshot(tmp_path, archive)
    snapshot.publish(state)
    assert not (tmp_path / SNAPSHOT).exists()
    write_history(tmp_path, EVERY)
    state, archive = standing(tmp_path)
    snapshot = Snapshot(tmp_path, archive)
    snapshot.publish(state)
    before = (tmp_path / SNAPSHOT).stat().st_ino
    snapshot.publish(state)
    assert (tmp_path / SNAPSHOT).stat().st_ino == before


def test_an_experiment_comes_out_of_the_journal_as_it_was(tmp_path: Path) -> None:
    """With sessions that change in the middle of one, attempts in vain, and an agent that interrupts."""
    story = Story(tmp_path)
    story.begin()
    story.experiment(BASELINE, 2.0, "baseline")
    number = story.propose(BASELINE + "A = 1\n")
    story.record(Voided(experiment=number, attempt=0, cause="disturbed", reason="others", evidence=LOAD))
    story.record(
        SlotDisturbed(experiment=number, disturbance=LOAD, looks=1, until="2026-03-01T00:00:10+00:00")
    )
    noise = story.state.slot(0).noise
    assert noise is not None and noise.looks == 1
    story.record(SlotReady(experiment=number, seconds=13.0))
    failed = story.record(asked(story.state)).data
    assert isinstance(failed, ProposalAsked)
    story.record(AgentFailed(agent="a", proposal=failed.proposal, reason="nonsense"))
    newer = PROVENANCE.model_copy(update={"image": "sha256:2"})
    story.record(SessionStarted(agent="tuner", budget_seconds=20, provenance=newer))
    story.train(number)
    story.record(AgentAbsent(agent="a", reason="away", until=None))
    story.judge(number, Refusal(cause=Cause.NON_CAUSAL, detail="peeks"))
    story.decide(number)
    story.experiment(BASELINE + "A = 2\n", Cause.OOM)
    story.experiment(BASELINE + "A = 3\n", 1.0)
    story.propose(BASELINE + "A = 4\n")
    archive = Archive(tmp_path)
    records = list(archive.follow())
    for number, experiment in enumerate(story.state.experiments):
        assert archive.experiment(number) == experiment
        assert archive.records(number) == [record for record in records if record.experiment == number]
    assert archive.experiment(1).provenance == newer


def same_in_the_archive(home: Path, state: ResearchState) -> None:
    """Every experiment comes out of the journal as `fold` has it, finished or open."""
    archive = Archive(home)
    records = list(archive.follow())
    for number, experiment in enumerate(state.experiments):
        assert archive.experiment(number) == experiment
        assert archive.records(number) == [record for record in records if record.experiment == number]


def test_experiments_of_two_slots_come_out_of_the_journal_each_as_it_was(tmp_path: Path) -> None:
    """3 and 4 are open at once and 4 is kept first; what becomes 5 is asked for and rehearsed meanwhile."""
    story = three_and_four(tmp_path)
    same_in_the_archive(tmp_path, story.state)
    number = ahead(story)
    story.finish(4, 1.9)
    same_in_the_archive(tmp_path, story.state)
    story.record(
        ProposalRehearsed(proposal=number, train_sha256="0" * 64, result="passed", detail="", seconds=1.0)
    )
    story.record(Voided(experiment=3, attempt=1, cause="interrupted", reason="a person"))
    story.record(SessionStarted(agent="b", budget_seconds=20, provenance=PROVENANCE))
    story.record(ExperimentMoved(experiment=3, slot=1))
    opened = story.open(0)
    story.finish(opened, Cause.EXIT)
    same_in_the_archive(tmp_path, story.state)
    assert story.state.order == [0, 1, 2, 4, opened]
    moved, later = story.state.experiments[3], story.state.experiments[opened]
    assert (moved.slot, moved.attempt, later.proposal.parent) == (1, 1, later.parent)
    assert [known.result for known in later.proposal.rehearsals] == ["passed"]


def ahead(story: HomeOfTwo) -> int:
    """A question that is asked while others train."""
    story.record(asked(story.state))
    return story.state.next_proposal - 1


@pytest.mark.parametrize("first", [3, 4])
def test_a_snapshot_taken_while_two_experiments_are_open_is_gone_on_from(tmp_path: Path, first: int) -> None:
    story = three_and_four(tmp_path)
    second = 7 - first
    story.finish(first, 1.9)
    state, archive = standing(tmp_path)
    archive.stored = -EVERY
    Snapshot(tmp_path, archive).publish(state)
    story.finish(second, 1.8)
    story.open(0)
    told, found = standing(tmp_path)
    assert found.stored == 5, "it came out of the snapshot"
    assert told == story.state == fold(read_records(tmp_path))
    assert told.order == [0, 1, 2, first, second]
    assert [known.number for known in told.finished] == told.order
    assert [known.number for known in told.open] == [5]
    assert told.experiments[first].finished_at == story.state.experiments[first].finished_at
    assert verify(tmp_path) == []


def test_an_experiment_that_stays_open_for_long_is_not_forgotten(tmp_path: Path) -> None:
    """Slot 0 waits while slot 1 goes through more experiments than are kept in memory."""
    write_history(tmp_path, 3)
    story = HomeOfTwo(tmp_path)
    waits = story.open(0)
    for number in range(4, LONG):
        story.open(1)
        story.train(number, Cause.OOM)
        story.decide(number)
    state, archive = standing(tmp_path)
    assert [known.number for known in state.open] == [waits]
    archive.stored = -EVERY
    Snapshot(tmp_path, archive).publish(state)
    story.train(waits)
    story.judge(waits, 9.0)
    story.decide(waits)
    again, found = standing(tmp_path)
    assert found.stored == LONG
    assert again == story.state
    assert again.finished[-1].number == waits


def test_every_event_leaves_a_state_that_a_snapshot_can_hold(tmp_path: Path) -> None:
    """As if every single line were the last before a snapshot."""
    story = three_and_four(tmp_path / "told")
    ahead(story)
    story.finish(4, Refusal(cause=Cause.NON_CAUSAL, detail="peeks"))
    story.finish(3, 1.5)
    lines = (tmp_path / "told" / NAME).read_bytes().splitlines(keepends=True)
    for count in range(1, len(lines) + 1):
        home = tmp_path / str(count)
        home.mkdir()
        (home / NAME).write_bytes(b"".join(lines[:count]))
        state, archive = standing(home)
        archive.stored = -EVERY
        Snapshot(home, archive).publish(state)
        again, archive = standing(home)
        assert archive.stored == len(state.experiments)
        assert again == state


def test_verify_does_not_look_at_it(tmp_path: Path) -> None:
    story = tell(tmp_path)
    (tmp_path / SNAPSHOT).write_bytes(b"nonsense")
    assert verify(story.home) == []


def test_another_thread_may_read_while_a_snapshot_is_written(home: Path) -> None:
    (home / SNAPSHOT).unlink()
    state, archive = standing(home)
    wrong: list[int] = []
    begun, done = threading.Event(), threading.Event()

    def read() -> None:
        for number in itertools.cycle(range(0, LONG, 9)):
            begun.set()
            if done.is_set():
                return
            if state.experiments[number].number != number:
                wrong.append(number)

    reader = threading.Thread(target=read)
    reader.start()
    begun.wait()
    Snapshot(home, archive).publish(state)
    done.set()
    reader.join()
    assert not wrong


def test_an_empty_home_stands_at_the_beginning(tmp_path: Path) -> None:
    state, archive = standing(tmp_path)
    assert state == ResearchState()
    assert archive.experiments == []
