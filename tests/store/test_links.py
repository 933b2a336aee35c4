"""A link in the place of a file of ours is replaced or refused: nothing is written to where it leads."""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from controller.core.errors import UserError
from controller.observers import heartbeat
from controller.observers.heartbeat import Heartbeat
from controller.store import pause
from controller.store.journal import NAME, Journal, read_records
from controller.store.lock import HomeLock
from controller.store.run_log import RunLog
from controller.store.snapshot import EVERY, SNAPSHOT, Snapshot, standing
from controller.system import logs
from controller.views import report
from tests.support.fakes import HandClock
from tests.support.story import BASELINE, Story, TickingClock, tell

PRECIOUS = "of somebody else"


class Console(io.StringIO):
    def isatty(self) -> bool:
        return True


def snapshot(home: Path) -> None:
    state, archive = standing(home)
    archive.stored = -EVERY
    Snapshot(home, archive).publish(state)


def run_log(home: Path) -> None:
    log = RunLog(home / "runs" / "000001" / "run.log", head_bytes=10, tail_bytes=10)
    log.write(b"printed")
    log.close()


def log_of_run(home: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.stdout", Console())
        with logs.stream_of_run(home) as stream:
            stream.write("{}\n")


def close_run(home: Path) -> None:
    story = Story(home)
    story.runs.finish(story.state.experiments[1])


def write_proposal(home: Path) -> None:
    Story(home).runs.write_proposal(1, train_py=BASELINE, diff="+A")


def write_report(home: Path) -> None:
    report.write(list(read_records(home)), home / "report")


def lock(home: Path) -> None:
    with suppress(UserError), HomeLock(home):
        raise AssertionError("held")


def append(home: Path) -> None:
    with suppress(UserError):
        Journal(home, TickingClock())


def ledger(home: Path) -> None:
    story = Story(home)
    story.ledger.publish(story.state)


WRITERS: dict[str, Callable[[Path], object]] = {
    NAME: append,
    "lock": lock,
    "results.tsv": ledger,
    SNAPSHOT: snapshot,
    heartbeat.NAME: lambda home: Heartbeat(home, HandClock(), scoring_seconds=1, asking_seconds=1),
    pause.NAME: lambda home: pause.write(home, paused=True),
    "glovebox.log": log_of_run,
    "runs/000001/train.py": write_proposal,
    "runs/000001/change.diff": write_proposal,
    "runs/000001/run.log": run_log,
    "runs/000001/experiment.json": close_run,
    "repo/train.py": lambda home: Story(home).repository.reset(),
    "report/report.md": write_report,
    "report/report.html": write_report,
    "report/progress.svg": write_report,
    "report/holdout.svg": write_report,
}
REFUSED = {NAME, "lock", heartbeat.NAME}


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tell(tmp_path_factory.mktemp("told")).home


@pytest.mark.parametrize("name", WRITERS)
def test_nothing_is_written_through_a_link(told: Path, tmp_path: Path, name: str) -> None:
    home, outside = shutil.copytree(told, tmp_path / "home"), tmp_path / "outside"
    outside.write_text(PRECIOUS)
    path = home / name
    path.parent.mkdir(exist_ok=True)
    path.unlink(missing_ok=True)
    path.symlink_to(outside)
    WRITERS[name](home)
    assert outside.read_text() == PRECIOUS
    assert path.is_symlink() == (name in REFUSED)
    assert path.is_symlink() or path.read_bytes() != PRECIOUS.encode()
