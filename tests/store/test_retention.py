"""Old logs and texts of calls go when there are too many, on record; nothing else ever does."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from controller.agents.replay import Replay
from controller.core.errors import InfrastructureError
from controller.core.events import AnyEvent, ApiAnswered, ApiRequested, ProposalAsked, Pruned, Record
from controller.core.scoring.runlog import MAX_WORKER_LOG_BYTES
from controller.core.values import Cause, Usage
from controller.store.journal import blob_path, read_records
from controller.store.retention import Retention, RetentionConfig
from controller.store.verify import verify
from controller.views import report
from tests.loop.effort import Effort, start
from tests.support.fakes import train_py
from tests.support.glovebox import Glovebox
from tests.support.story import BASELINE, Story, tell
from tests.support.two_slots import three_and_four

BODY = 1000


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Keep, discard, crash, reject, keep; and five calls with one request in common."""
    story = tell(tmp_path_factory.mktemp("told"))
    for call in range(5):
        request = b"the same" * BODY if call in (1, 4) else b"%d" % call * BODY
        call_of(story, call, request, b"reply %d" % call * BODY)
    return story.home


@pytest.fixture
def story(told: Path, tmp_path: Path) -> Story:
    return Story(shutil.copytree(told, tmp_path / "home"))


def call_of(story: Story, call: int, request: bytes, reply: bytes) -> None:
    if call == story.state.spending.total.calls == 0:
        assert story.state.frontier is not None
        parent, number = story.state.frontier.commit, story.state.next_proposal
        story.record(ProposalAsked(proposal=number, agent="a", purpose="propose", parent=parent))
    story.record(
        ApiRequested(
            call=call,
            proposal=story.state.next_proposal - 1,
            model="m",
            request_sha256=story.journal.put_blob(request),
            request_bytes=len(request),
            reserved_usd=1,
        )
    )
    story.record(
        ApiAnswered(
            call=call,
            reply_sha256=story.journal.put_blob(reply),
            reply_bytes=len(reply),
            stop_reason="",
            usage=Usage(),
            seconds=1,
            cost_usd=1,
        )
    )


def prune(story: Story, *, logs: int | None = None, calls: int | None = None) -> list[Pruned]:
    before = story.state.seq
    config = RetentionConfig(log_bytes=logs, call_bytes=calls)
    Retention(story.home, config).prune(story.state, story.record)
    new = [record for record in read_records(story.home) if record.seq > before]
    return [record.data for record in new if isinstance(record.data, Pruned)]


def logs(home: Path) -> list[int]:
    return sorted(int(path.parent.name) for path in (home / "runs").glob("*/run.log"))


def texts(story: Story) -> list[tuple[int, str]]:
    """(call, what) of every text that is there."""
    return [(call, what) for call, what, _ in sizes(story)]


def sizes(story: Story) -> list[tuple[int, str, int]]:
    """The same with its bytes."""
    there = []
    for record in read_records(story.home):
        match record.data:
            case ApiRequested(call=call, request_sha256=name):
                what = "request"
            case ApiAnswered(call=call, reply_sha256=name):
                what = "reply"
            case _:
                continue
        if (path := blob_path(story.home, name)).exists():
            there.append((call, what, path.stat().st_size))
    return there


def test_within_the_limits_nothing_happens(story: Story) -> None:
    assert prune(story, logs=10**6, calls=10**6) == prune(story) == []
    assert logs(story.home) == [0, 1, 2, 3, 4]
    assert len(texts(story)) == 10


def test_the_oldest_logs_go_and_those_of_kept_experiments_stay(story: Story) -> None:
    size = (story.runs.folder(3) / "run.log").stat().st_size
    (pruned,) = prune(story, logs=size + 200)
    assert (pruned.what, pruned.before) == ("logs", 3)
    assert logs(story.home) == [0, 3, 4]
    assert verify(story.home) == []
    (pruned,) = prune(story, logs=0)
    assert pruned.before == 4
    assert logs(story.home) == [0, 4]
    assert verify(story.home) == []
    assert prune(story, logs=0) == []


def test_logs_of_an_open_experiment_stay_though_later_ones_are_finished(tmp_path: Path) -> None:
    """Everything that may go is older than what is open, and what was kept stays."""
    story = three_and_four(tmp_path)
    story.finish(4, 9.0)
    story.finish(story.open(1), Cause.OOM)
    retention = Retention(tmp_path, RetentionConfig(log_bytes=0))
    retention.prune(story.state, story.record)
    assert logs(tmp_path) == [0, 3, 4, 5]
    assert story.state.logs_pruned == 3
    story.finish(3, 9.0)
    retention.prune(story.state, story.record)
    assert logs(tmp_path) == [0]
    assert story.state.logs_pruned == 6
    assert verify(tmp_path) == []


def test_logs_of_what_another_slot_is_closing_stay(tmp_path: Path) -> None:
    """Its verdict is on record and its summary is not written yet."""
    story = three_and_four(tmp_path)
    story.judge(3, 9.0)
    story.decide(3)
    story.finish(4, 9.0)
    retention = Retention(tmp_path, RetentionConfig(log_bytes=0))
    retention.prune(story.state, story.record)
    assert logs(tmp_path) == [0, 3, 4]
    story.runs.finish(story.state.experiments[3])
    retention.prune(story.state, story.record)
    assert logs(tmp_path) == [0]
    assert verify(tmp_path) == []


def test_the_oldest_texts_go_except_what_a_later_call_names(story: Story) -> None:
    (pruned,) = prune(story, calls=30_000)
    assert (pruned.what, pruned.before) == ("calls", 3)
    assert texts(story) == [(1, "request"), (3, "request"), (3, "reply"), (4, "request"), (4, "reply")]
    assert verify(story.home) == []
    prune(story, calls=0)
    assert texts(story) == []
    assert verify(story.home) == []


def test_everything_can_still_be_told_when_all_that_may_go_is_gone(story: Story) -> None:
    prune(story, logs=0, calls=0)
    records, gone = list(read_records(story.home)), []
    for path in report.write(records, story.home / "report"):
        assert path.stat().st_size > 0
    glovebox = Glovebox(story.home, story.home)
    for experiment in story.state.experiments[1:3]:
        said = glovebox("show", str(experiment.number), "--audit", "--json").json()
        assert said["diff"] and said["verdict"] == experiment.verdict
        gone.append("storage.log_bytes" in said["log"])
    assert gone == [True, True]
    assert "keep" in glovebox("log").out
    said = glovebox("verify")
    assert said.status == 0 and "Removed on record" in said.out


def test_a_text_that_ran_is_never_removed(story: Story) -> None:
    """Not even if a request or a reply happens to be the same text."""
    call_of(story, 5, (BASELINE + "A = 4\n").encode(), (BASELINE + "A = 1\n").encode())
    prune(story, calls=0)
    assert texts(story) == [(5, "request"), (5, "reply")]
    assert verify(story.home) == []


def test_what_is_missing_without_a_record_is_still_named(story: Story) -> None:
    prune(story, logs=0, calls=30_000)
    (story.runs.folder(4) / "run.log").unlink()
    newest = next(
        r.data for r in read_records(story.home) if isinstance(r.data, ApiAnswered) and r.data.call == 4
    )
    blob_path(story.home, newest.reply_sha256).unlink()
    problems = verify(story.home)
    assert len(problems) == 2
    assert "cannot be read" in problems[0] and "runs/000004/run.log" in problems[1]


def test_killed_between_record_and_deed_the_next_start_does_it(story: Story) -> None:
    story.record(Pruned(what="logs", before=3, bytes=1))
    assert verify(story.home) == []
    assert prune(story) == []
    assert logs(story.home) == [0, 3, 4]
    story.record(Pruned(what="calls", before=2, bytes=1))
    assert verify(story.home) == []
    assert prune(story) == []
    assert texts(story)[:2] == [(1, "request"), (2, "request")]
    assert verify(story.home) == []


def test_a_start_looks_at_nothing_while_all_fits(story: Story) -> None:
    """Neither at the journal nor at the files: the state says how much there may be."""
    state, journal = story.state, story.home / "audit.jsonl"
    printed = [path.stat().st_size for path in sorted((story.home / "runs").glob("*/run.log"))]
    assert sum(printed[1:-1]) <= state.log_bytes < (5000 + MAX_WORKER_LOG_BYTES) * len(printed)
    assert state.call_bytes == sum(size for _, _, size in sizes(story))
    journal.rename(journal.with_suffix(".away"))
    fits = RetentionConfig(log_bytes=state.log_bytes, call_bytes=state.call_bytes)
    Retention(story.home, fits).prune(state, story.record)
    too_much = RetentionConfig(log_bytes=state.log_bytes, call_bytes=state.call_bytes - 1)
    with pytest.raises(InfrastructureError, match="cannot be pruned"):
        Retention(story.home, too_much).prune(state, story.record)


def test_once_a_process_went_on_nothing_is_removed_again(story: Story) -> None:
    story.record(Pruned(what="logs", before=3, bytes=1))
    story.propose(BASELINE + "A = 5\n")
    assert prune(story) == []
    assert logs(story.home) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("limits", [{"log_bytes": 0}, {"call_bytes": 0}], ids=["logs", "calls"])
def test_what_cannot_be_recorded_is_not_removed(story: Story, limits: dict[str, int]) -> None:
    def full(event: AnyEvent) -> Record:
        raise InfrastructureError("The journal cannot be written: No space left on device.")

    before = logs(story.home), texts(story)
    with pytest.raises(InfrastructureError):
        Retention(story.home, RetentionConfig(**limits)).prune(story.state, full)
    assert (logs(story.home), texts(story)) == before
    assert verify(story.home) == []


def test_what_comes_later_is_counted_too(story: Story) -> None:
    retention = Retention(story.home, RetentionConfig(log_bytes=None, call_bytes=100_000))
    retention.prune(story.state, story.record)
    assert story.state.calls_pruned == 0
    call_of(story, 5, b"x" * 60_000, b"y" * 20_000)
    retention.prune(story.state, story.record)
    assert story.state.calls_pruned > 0
    assert texts(story)[-2:] == [(5, "request"), (5, "reply")]
    assert verify(story.home) == []


def test_an_effort_keeps_within_its_limits_as_it_goes(tmp_path: Path, efforts: list[Effort]) -> None:
    proposals = tmp_path / "proposals"
    proposals.mkdir()
    for number, width in enumerate((2.0, 5.0, 6.0, 1.0)):
        (proposals / f"{number}.py").write_text(train_py(width))
    effort = start(efforts, tmp_path / "home", Replay(proposals))
    effort.components.prune = Retention(effort.home, RetentionConfig(log_bytes=0)).prune
    effort.loop(experiments=5).run()
    assert logs(effort.home) == [0, 1, 4]
    assert verify(effort.home) == []
