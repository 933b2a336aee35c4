"""What a power cut could undo is made durable before the journal says that it happened."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from controller.store.journal import blob_path, sha256
from tests.support.story import BASELINE

PROJECT = Path(__file__).parents[2]

EFFORT = """
import sys
from pathlib import Path
from controller.core.events import SessionStopped
from controller.sandbox.inputs import HarnessFiles
from controller.store.journal import Journal
from controller.store.run_log import RunLog
from controller.store.snapshot import EVERY, Snapshot, standing
from tests.support.story import BASELINE, Story, TickingClock

home = Path(sys.argv[1])
Journal(home / "at" / "once", TickingClock()).append(SessionStopped(reason="nothing else was written before"))
story = Story(home)
HarnessFiles.materialise(Path("harness"), home)
story.begin()
story.experiment(BASELINE, 2.0, "baseline")
number = story.propose(BASELINE + "A = 1\\n")
log = RunLog(story.runs.folder(number) / "own.log", head_bytes=10, tail_bytes=10)
log.write(b"x" * 100)
log.close()
story.train(number)
story.judge(number, 1.0)
story.decide(number)
state, archive = standing(home)
archive.stored = -EVERY
Snapshot(home, archive).publish(state)
story.journal.put_blob(BASELINE.encode())
story.journal.append(story.state.session)
"""

_CALL = re.compile(r"^(?:\d+ +)?(\w+)\((.*)\)\s+= (-?\d+)(?:<([^>]*)>)?")
#: Git finds the repository's branches behind a link in a folder of ours.
_VIEW = re.compile(r'[^"<>]*/glovebox-git-[^/"<>]*/refs\b')
_PATH = re.compile(r"<([^>]*)>")


@dataclass
class Disk:
    """Follows the system calls of one process: what a power cut now could undo."""

    home: str
    contents: set[str] = field(default_factory=set)
    """Files written to and not synced."""
    names: set[str] = field(default_factory=set)
    """Folders with a new name in them and not synced."""
    lines: int = 0
    synced: list[set[str]] = field(default_factory=lambda: [set()])
    """Files and folders that were synced, one set for each line of the journal: before it was written."""
    wrong: list[str] = field(default_factory=list)
    _known: set[str] = field(default_factory=set)

    def call(self, line: str) -> None:
        line = _VIEW.sub(f"{self.home}/repo/.git/refs", line)
        parsed = _CALL.match(line)
        if parsed is None or int(parsed[3]) < 0:
            return
        name, arguments = parsed[1], parsed[2]
        quoted = re.findall(r'"([^"]*)"', arguments)
        path = (_PATH.search(arguments) or _PATH.search("<>") or [None, ""])[1] or ""
        match name:
            case "openat" if "O_CREAT" in arguments:
                self._new(str(parsed[4]))
            case "mkdir":
                self._new(quoted[0])
            case "write" | "ftruncate" if self._ours(path):
                self._written(path)
            case "fsync":
                self.contents.discard(path)
                self.names.discard(path)
                self.synced[-1].add(path)
            case "rename":
                if quoted[0] in self.contents:
                    self.wrong.append(f"{quoted[0]} was renamed before it was synced")
                self._named(quoted[1])
            case "link":
                self._named(quoted[1])

    def _new(self, path: str) -> None:
        if path not in self._known:
            self._named(path)

    def _named(self, path: str) -> None:
        if self._ours(path):
            self._known.add(path)
            self.names.add(str(Path(path).parent))

    def _written(self, path: str) -> None:
        if path.endswith("/audit.jsonl"):
            self.lines += 1
            self.synced.append(set())
            self.wrong += [f"{left} before line {self.lines}" for left in self.contents | self.names]
        self.contents.add(path)

    def _ours(self, path: str) -> bool:
        """The story writes run.log without a RunLog. The index of git is made anew at every start."""
        aside = path.endswith("/run.log") or "/.git/index" in path
        return path.startswith(self.home + "/") and not aside


def test_everything_is_durable_before_the_next_line_of_the_journal(tmp_path: Path) -> None:
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed")
    home, trace = tmp_path / "home", tmp_path / "trace"
    home.mkdir()
    calls = "trace=openat,write,ftruncate,fsync,rename,link,mkdir"
    command = [
        "strace",
        "-f",
        "-qq",
        "-y",
        "-e",
        calls,
        "-o",
        str(trace),
        sys.executable,
        "-c",
        EFFORT,
        str(home),
    ]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=False)
    if "Operation not permitted" in done.stderr:
        pytest.skip("this machine lets nobody trace a process")
    assert done.returncode == 0, done.stderr
    disk = Disk(str(home))
    for line in trace.read_text(errors="replace").splitlines():
        disk.call(line)
    assert disk.lines == 21
    assert disk.wrong == []
    again = blob_path(home, sha256(BASELINE.encode())).parent
    assert str(again) in disk.synced[-2], "who stored a blob before may have died before its name was durable"
