"""Keeps in memory where the effort in a home stands, by following its journal line by line.

The controller is another process: it appends to the journal, its last line may be half written, and the home
may be new, emptied or replaced. The journal is read from its beginning once, in the background.
"""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import structlog

from controller.core.errors import GloveboxError
from controller.core.events import Record, Steered
from controller.core.experiment import Phase
from controller.core.state import ResearchState, apply
from controller.core.untrusted import clean_line
from controller.core.values import Conditions
from controller.store import pause, requests, verified
from controller.store.journal import NAME as JOURNAL
from controller.store.runs import Runs
from controller.store.snapshot import Archive
from controller.views import steering
from controller.views.holdout import BothScores, both_scores
from controller.views.stairs import Stairs
from controller.web.live import LiveLog
from controller.web.rows import Row, row_of

log = structlog.stdlib.get_logger(__name__)

_POLL_SECONDS = 0.2
_BATCH, _TURN_SECONDS = 200, 0.001
"""Records between two moments in which readers have their turn, and how long that is: a lock is not fair."""
_WATCHED = (pause.NAME, verified.NAME)
"""Files besides the journal and the requests whose change is worth a new look."""
_ANSWERS = 6

Identity = tuple[int, int] | None
"""Device and inode of the journal; None while there is none."""


@dataclass
class Standing:
    """Everything that is shown of a home, as far as its journal has been read."""

    home: Path
    state: ResearchState = field(default_factory=ResearchState)
    rows: list[Row] = field(default_factory=list)
    """By number."""
    stairs: Stairs = field(default_factory=Stairs)
    both: list[BothScores] = field(default_factory=list)
    """Of the kept experiments, in the order in which they finished."""
    conditions: dict[int, tuple[int, Conditions]] = field(default_factory=dict)
    """By slot: its latest experiment that was watched, and what the machine was like."""
    live: dict[int, tuple[int, LiveLog]] = field(default_factory=dict)
    """By experiment that trains: its attempt, and what that has printed."""
    commits: dict[str, int] = field(default_factory=dict)
    """By commit: the experiment that it keeps."""
    answers: deque[tuple[str, str]] = field(default_factory=lambda: deque(maxlen=_ANSWERS))
    """What came of persons' latest requests: when, and in words."""
    wishes: list[Record] = field(default_factory=list)
    """Persons' requests that were granted: an experiment's story may begin with one of long before."""
    archive: Archive = field(init=False)
    failure: str | None = None
    """Why the journal was not read further; None: it was, or will be."""
    complete: bool = False
    """Whether its end was reached."""

    def __post_init__(self) -> None:
        self.archive = Archive(self.home)

    def add(self, record: Record) -> None:
        """One more line of the journal. Raises VerificationFailed if it cannot follow the others."""
        state = self.state
        apply(state, record)
        self.archive.forget(state)
        self.stairs.follow(state)
        if (answer := steering.sentence(record.data)) is not None:
            self.answers.append((record.time, answer))
        if isinstance(record.data, Steered):
            self.wishes.append(record)
        if (number := record.experiment) is None:
            return
        experiment = state.experiments[number]
        self.rows[number : number + 1] = [row_of(experiment)]
        if experiment.phase is not Phase.DONE:
            return
        if experiment.commit is not None:
            self.commits[experiment.commit] = number
        if (pair := both_scores(experiment)) is not None:
            self.both.append(pair)
        if experiment.outcome is not None and experiment.outcome.conditions is not None:
            self.conditions[experiment.slot] = number, experiment.outcome.conditions


class Follower:
    """Looks at a home several times a second, in a thread of its own. Holds neither engine nor lock."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self._lock = threading.Lock()
        self._standing = Standing(home)
        self._identity: Identity = None
        self._seen: object = None
        self._unreadable = False
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="follower", daemon=True)
        self.version = 0
        """Grows when anything has changed but what runs have printed."""
        self.printed = 0
        """Grows when a run has printed something."""

    def __enter__(self) -> Follower:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    @contextlib.contextmanager
    def standing(self) -> Iterator[Standing]:
        """What is known now; it does not change until the block ends."""
        with self._lock:
            yield self._standing

    def look(self) -> None:
        """Read what is new. Never raises."""
        try:
            self._look()
        except OSError as error:
            self._fail(f"The journal in {self._home} cannot be read: {error.strerror}.")
            self._unreadable = True

    def _follow(self) -> None:
        while not self._stop.is_set():
            try:
                self.look()
            except Exception:  # a bug of ours must be seen, and must not end the updates
                log.exception("following_failed")
                self._fail("The journal could not be followed; the server's log says why.")
            self._stop.wait(_POLL_SECONDS)

    def _look(self) -> None:
        size = self._meet()
        if self._unreadable:
            self._unreadable = False
            self._begin(self._identity)
        standing = self._standing
        if standing.failure is None and size > standing.archive.position.offset:
            self._read()
        elif not standing.complete:
            self._complete()
        self._look_at_logs()
        seen = [requests.names(self._home), *(_modified(self._home / name) for name in _WATCHED)]
        if seen != self._seen:
            self._seen = seen
            self.version += 1

    def _meet(self) -> int:
        """Size of the journal; if it is another one than before, everything begins anew."""
        try:
            found = (self._home / JOURNAL).stat()
        except (FileNotFoundError, NotADirectoryError):
            identity, size = None, 0
        else:
            identity, size = (found.st_dev, found.st_ino), found.st_size
        if identity != self._identity or size < self._standing.archive.position.offset:
            self._begin(identity)
        return size

    def _begin(self, identity: Identity) -> None:
        with self._lock:
            self._identity = identity
            self._standing = Standing(self._home)
        self.version += 1

    def _read(self) -> None:
        archive = self._standing.archive
        records, began = archive.follow(), archive.position.offset
        try:
            while self._read_batch(records) and not self._stop.wait(_TURN_SECONDS):
                self.version += 1
        except (GloveboxError, LookupError) as error:
            if began:  # it may be another journal in the same file
                self._begin(self._identity)
            else:
                self._fail(clean_line(str(error), 500))
            return
        self.version += archive.position.offset > began
        if not self._standing.complete and not self._stop.is_set():
            self._complete()

    def _complete(self) -> None:
        with self._lock:
            self._standing.complete = True
        self.version += 1

    def _read_batch(self, records: Iterator[Record]) -> bool:
        """Whether there may be more."""
        with self._lock:
            for _ in range(_BATCH):
                record = next(records, None)
                if record is None:
                    return False
                self._standing.add(record)
        return True

    def _fail(self, sentence: str) -> None:
        with self._lock:
            changed = self._standing.failure != sentence
            self._standing.failure, self._standing.complete = sentence, True
        self.version += changed

    def _look_at_logs(self) -> None:
        standing, runs = self._standing, Runs(self._home)
        training = {e.number: e for e in standing.state.open if e.phase is Phase.TRAINING}
        kept = {
            number: known
            for number, known in standing.live.items()
            if number in training and training[number].attempt == known[0]
        }
        for number, experiment in training.items():
            if number not in kept:
                path = runs.folder(number) / "run.log"
                kept[number] = experiment.attempt, LiveLog(path, experiment.budget_seconds or 300.0)
        with self._lock:
            standing.live = kept
        self.printed += sum(live.follow() for _, live in kept.values())


def _modified(path: Path) -> int | None:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return None
