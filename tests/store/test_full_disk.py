"""A full disk stops an effort with a sentence, harms nothing, and is forgotten once there is space again."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from controller.core.errors import AgentExhausted, GloveboxError, InfrastructureError, UserError
from controller.core.events import SessionStopped
from controller.core.experiment import Experiment
from controller.core.rules import RetryConfig
from controller.core.values import Change, Verdict
from controller.ports import Context
from controller.recovery import recover
from controller.store.journal import Journal, read_records
from controller.store.lock import HomeLock
from controller.store.pause import HomeSurroundings
from controller.store.run_log import RunLog
from controller.store.snapshot import EVERY, SNAPSHOT, Snapshot, standing
from controller.store.verify import verify
from controller.views import report
from tests.loop.effort import Effort, Workspaces
from tests.support.fakes import HandClock, Hasty, train_py
from tests.support.story import BASELINE, TickingClock, tell
from tests.support.two_slots import HomeOfTwo

PAGE = 4096


class Disk:
    """A small file system of its own."""

    def __init__(self, folder: Path) -> None:
        self.home = folder / "home"
        self._filler = folder / "filler"

    def fill(self, free_pages: int = 0) -> None:
        """Leave room for so many pages: each file takes at least one."""
        with self._filler.open("wb", buffering=0) as file:
            try:
                while True:
                    file.write(b"x" * PAGE)
            except OSError:
                os.ftruncate(file.fileno(), file.tell() // PAGE * PAGE - free_pages * PAGE)

    def free(self) -> None:
        self._filler.unlink()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("only root may mount a small file system")
    yield Disk(folder)
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


class Better:
    """Every proposal of it is kept."""

    name = "better"
    asks_ahead = False

    def propose(self, context: Context) -> Change:
        if len(context.history) == 3:
            raise AgentExhausted("enough")
        return Change(train_py=train_py(2.9 - 0.1 * len(context.history)), description="better")

    def fix(self, context: Context, crashed: Experiment) -> None:
        return None

    def combine(self, context: Context, behind: Experiment) -> None:
        return None


def test_wherever_the_disk_is_full_an_effort_goes_on_when_it_is_not(disk: Disk) -> None:
    """The room that is left grows, so that every kind of write is once the first to find none."""
    failed = set()
    for free_pages in range(0, 60, 2):
        effort = Effort(disk.home, Better())
        effort.rule(retry=RetryConfig(stop_after=3))
        effort.loop(experiments=1).run()
        disk.fill(free_pages)
        try:
            with capture_logs() as logged:
                effort.loop(experiments=3).run()
        except GloveboxError as error:
            assert isinstance(error, InfrastructureError | UserError)
            assert "\n" not in str(error)
            faults = [line["error"] for line in logged if line["event"] == "infrastructure_fault"]
            failed |= {_kind(fault) for fault in [*faults, str(error)]}
        else:
            break
        _start_again(effort, disk)
        effort.close()
        subprocess.run(["rm", "-rf", str(disk.home)], check=True)
    assert {"blob", "runs", "git", "journal"} <= failed


def test_an_effort_waits_for_room_before_it_is_needed(disk: Disk) -> None:
    """Nothing fails and nothing is repeated: nothing begins below the limit, and above it goes on."""
    effort = Effort(disk.home, Better())
    clock = HandClock()
    waits: list[str] = []

    def meanwhile() -> None:
        state, _ = standing(disk.home)
        assert state.pause is not None
        waits.append(state.pause.event.reason)
        if len(waits) == 3:
            disk.free()

    effort.components.clock, effort.components.stop = clock, Hasty(clock, meanwhile)
    effort.components.surroundings = HomeSurroundings(disk.home, min_free_bytes=2 * 1024**2)
    effort.loop(experiments=1).run()
    disk.fill(free_pages=300)
    loop = effort.loop(experiments=3)
    loop.run()
    assert len(waits) == 3 and set(waits) == {waits[0]} and str(disk.home) in waits[0]
    assert [experiment.attempt for experiment in loop.state.experiments] == [1, 1, 1]
    assert loop.state.pause is None and verify(disk.home) == []
    effort.close()


def _start_again(effort: Effort, disk: Disk) -> None:
    """Once while the disk is still full, then with room."""
    try:
        effort.restart()
        effort.loop(experiments=3)
    except (GloveboxError, OSError) as error:
        assert isinstance(error, GloveboxError)
    disk.free()
    effort.restart()
    loop = effort.loop(experiments=3)
    recover(effort.components, Workspaces(effort.trainer), loop.state)
    loop.run()
    assert [experiment.verdict for experiment in loop.state.experiments] == [Verdict.KEEP] * 3
    assert len(effort.git_log()) == 4
    assert verify(disk.home) == []


def _kind(message: str) -> str:
    kinds = {
        "journal": "The journal",
        "blob": "A blob",
        "git": r"git [a-z-]+ failed|work tree",
        "runs": "/runs/|run.log",
    }
    kinds |= {"ledger": "The ledger"}
    found = [kind for kind, pattern in kinds.items() if re.search(pattern, message)]
    assert found, message
    return found[0]


def test_the_journal_is_as_it_was(disk: Disk) -> None:
    journal = Journal(disk.home, TickingClock())
    journal.append(SessionStopped(reason="before"))
    content = (disk.home / "audit.jsonl").read_bytes()
    disk.fill()
    with pytest.raises(
        InfrastructureError, match=r"The journal cannot be written: No space left on device\."
    ):
        journal.append(SessionStopped(reason="x" * 2 * PAGE))
    assert (disk.home / "audit.jsonl").read_bytes() == content
    with pytest.raises(InfrastructureError, match="A blob cannot be written"):
        journal.put_blob(b"x" * 2 * PAGE)
    disk.free()
    journal.append(SessionStopped(reason="after"))
    assert len(list(read_records(disk.home))) == 2
    assert journal.get_blob(journal.put_blob(b"x")) == b"x"


def test_ledger_runs_snapshot_and_report_say_so_and_come_back(disk: Disk) -> None:
    story = tell(disk.home)
    state, archive = standing(disk.home)
    archive.stored = -EVERY
    (disk.home / "results.tsv").unlink()
    (disk.home / "runs" / "000004" / "experiment.json").unlink()
    disk.fill()
    with pytest.raises(InfrastructureError, match=r"The ledger .* No space left"):
        story.ledger.publish(state)
    with pytest.raises(InfrastructureError, match=r"000004 cannot be written: No space left"):
        story.runs.finish(state.experiments[4])
    with pytest.raises(InfrastructureError, match=r"snapshot.json cannot be written: No space left"):
        Snapshot(disk.home, archive).publish(state)
    assert not (disk.home / SNAPSHOT).exists()
    with pytest.raises(UserError, match=r"The report cannot be written .* No space left"):
        report.write(list(read_records(disk.home)), disk.home / "report")
    disk.free()
    assert not [path for path in disk.home.rglob(".*") if ".git" not in path.parts]
    story.ledger.publish(state)
    story.runs.finish(state.experiments[4])
    Snapshot(disk.home, archive).publish(state)
    assert verify(disk.home) == []
    assert standing(disk.home)[0] == state


def test_a_commit_that_does_not_fit_is_made_later(disk: Disk) -> None:
    tell(disk.home)
    story = HomeOfTwo(disk.home)
    number = story.propose(BASELINE + "A = 5\n")
    story.train(number)
    story.judge(number, 1.0)
    story.decide(number)
    disk.fill()
    with pytest.raises(InfrastructureError, match=r"git .* failed"):
        story.commit(number)
    disk.free()
    assert verify(disk.home) == []
    assert story.commit(number) == story.commit(number)
    assert verify(disk.home) == []


def test_a_run_log_that_does_not_fit_is_noticed(disk: Disk) -> None:
    disk.home.mkdir()
    log = RunLog(disk.home / "run.log", head_bytes=10 * PAGE, tail_bytes=10 * PAGE)
    disk.fill()
    log.write(b"x" * PAGE)
    log.close()
    assert log.failure is not None and "No space left" in str(log.failure)


def test_a_home_can_be_taken_over_on_a_full_disk(disk: Disk) -> None:
    """Whoever makes room must be able to start."""
    with HomeLock(disk.home):
        pass
    (disk.home / "lock").write_bytes(b"")
    disk.fill()
    with HomeLock(disk.home):
        assert (disk.home / "lock").read_bytes() == b""
