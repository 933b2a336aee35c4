"""The state of a home's effort, without replaying its whole journal.

`snapshot.json` is a projection: the result of `fold` up to one line, and where in audit.jsonl each experiment
begins. It is valid only if the journal up to that line is unchanged byte for byte and the same code folds it;
otherwise the journal is replayed from its start. Finished experiments are read from the journal on demand, so
neither start-up time nor memory grows with their number. docs/decisions/snapshot.md says why.
"""

from __future__ import annotations

import bisect
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from functools import cache
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from controller.core.errors import InfrastructureError, VerificationFailed
from controller.core.events import (
    AgentFailed,
    Committed,
    Decided,
    ExperimentOpened,
    ProposalAsked,
    ProposalDropped,
    ProposalMade,
    ProposalRebased,
    ProposalRefused,
    ProposalRehearsed,
    Record,
    SessionStarted,
)
from controller.core.experiment import Experiment
from controller.core.sequences import AppendOnly
from controller.core.state import ResearchState, apply
from controller.failpoints import reach
from controller.files import write_atomic
from controller.store.journal import BEGINNING, NAME, Position, read_from, read_lines

SNAPSHOT = "snapshot.json"
#: Experiments between two snapshots; at least this many stay in memory.
EVERY = 200
_CHUNK = 1024**2


class _PrefixHash:
    """Hashes longer and longer prefixes of a file, each byte once."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._digest, self._size = hashlib.sha256(), 0

    def sha256(self, size: int) -> str:
        """Hash of the first `size` bytes, or of all if there are fewer; `size` must never decrease.

        Raises OSError.
        """
        with self._path.open("rb") as file:
            file.seek(self._size)
            while self._size < size and (chunk := file.read(min(size - self._size, _CHUNK))):
                self._digest.update(chunk)
                self._size += len(chunk)
        return self._digest.copy().hexdigest()


@dataclass
class Archive:
    """Finds the journal's lines about one experiment. Thread-safe to read."""

    home: Path
    position: Position = BEGINNING
    """How far the journal has been read."""
    experiments: list[int] = field(default_factory=list)
    """By number: the byte of the journal at which the question for its proposal begins."""
    ends: list[int] = field(default_factory=list)
    """By number: the byte at which the experiment's last line ends; 0 while it is open."""
    proposals: dict[int, int] = field(default_factory=dict)
    """By the number of one that is not an experiment yet: where the question for it begins."""
    sessions: list[int] = field(default_factory=list)
    """The same for every SessionStarted."""
    stored: int = 0
    """How many experiments the snapshot on disk covers."""

    def __post_init__(self) -> None:
        self.prefix = _PrefixHash(self.home / NAME)
        self._forgotten = 0

    def follow(self) -> Iterator[Record]:
        """The records added since the last call. Raises VerificationFailed if the chain is broken."""
        for record, end in read_from(self.home, self.position):
            self._index(record, self.position.offset, end.offset)
            self.position = end
            yield record

    def _index(self, record: Record, begin: int, end: int) -> None:
        event = record.data
        match event:
            case SessionStarted():
                self.sessions.append(begin)
            case ProposalAsked():
                self.proposals[event.proposal] = begin
            case ExperimentOpened():
                self.experiments.append(self.proposals.pop(event.proposal, begin))
                self.ends.append(0)
            case Decided(experiment=number) | Committed(experiment=number) if number < len(self.ends):
                self.ends[number] = end
            case (
                ProposalDropped(proposal=number)
                | ProposalRefused(proposal=number)
                | AgentFailed(proposal=number)
            ):
                self.proposals.pop(number, None)
            case _:
                return

    def records(self, number: int) -> list[Record]:
        """The lines of one experiment, oldest first. Raises VerificationFailed if one of them is damaged."""
        return [record for record in self.around(number) if record.experiment == number]

    def experiment(self, number: int) -> Experiment:
        """An experiment as `fold` gives it. Raises VerificationFailed if its lines are damaged."""
        lines = list(self.around(number))
        proposal = next(
            r.data.proposal for r in lines if isinstance(r.data, ExperimentOpened) and r.experiment == number
        )
        state = ResearchState(experiments=AppendOnly(first=number), next_proposal=proposal)
        for record in lines:
            event = record.data
            of_proposal = isinstance(
                event, ProposalAsked | ProposalMade | ProposalRehearsed | ProposalRebased
            ) and (event.proposal == proposal)
            if record.experiment == number or of_proposal or isinstance(event, SessionStarted):
                apply(state, record)
        return state.experiments[number]

    def forget(self, state: ResearchState) -> None:
        """Drop all but the latest experiments of a state from memory; the open one always stays."""
        # Only now and then: dropping them one at a time would copy the rest each time.
        if state.next_number >= self._forgotten + 2 * EVERY:
            oldest = state.open[0].number if state.open else state.next_number
            self._forgotten = min(len(self.experiments), oldest, state.next_number - EVERY)
            state.experiments.forget(self._forgotten, self.experiment)

    def around(self, number: int) -> Iterator[Record]:
        """First the start of its proposal's session, then the lines from the question to its last one, those
        of other slots among them. Raises VerificationFailed if one of them is damaged."""
        begin = self.experiments[number]
        if session := bisect.bisect(self.sessions, begin):
            yield from read_lines(self.home, self.sessions[session - 1], self.sessions[session - 1] + 1)
        yield from read_lines(self.home, begin, self.ends[number] or self.position.offset)


@dataclass(frozen=True)
class _Stored:
    """The content of snapshot.json."""

    code: str
    """Fingerprint of the code that folded the state."""
    journal: str
    """sha256 of the journal up to `position`."""
    position: Position
    experiments: list[int]
    ends: list[int]
    proposals: dict[int, int]
    sessions: list[int]
    state: ResearchState


_STORED = TypeAdapter(_Stored)


def standing(home: Path) -> tuple[ResearchState, Archive]:
    """The state of an effort, and its archive. Read-only; raises VerificationFailed, OSError."""
    state, archive = _load(home)
    for record in archive.follow():
        apply(state, record)
        archive.forget(state)
    return state, archive


def contradicts(home: Path, state: ResearchState, archive: Archive) -> bool:
    """True if `standing` disagrees with the whole journal, from which `state` and `archive` were built.

    A snapshot is protected only by a hash of itself, which anybody can forge. Raises OSError.
    """
    try:
        told, found = standing(home)
    except (VerificationFailed, LookupError, ValueError):
        return True  # replaying the journal did not raise
    if found.position != archive.position:
        return False  # a controller is at work, and this one saw more of what it did
    places = all(
        getattr(found, name) == getattr(archive, name)
        for name in ("experiments", "ends", "proposals", "sessions")
    )
    return not places or any(
        getattr(told, part.name) != getattr(state, part.name)
        for part in fields(ResearchState)
        if part.name != "experiments"  # read from the journal, at the places just compared
    )


class Snapshot:
    """Writes the snapshots of one home while its loop runs."""

    def __init__(self, home: Path, archive: Archive) -> None:
        self._path = home / SNAPSHOT
        self._archive = archive

    def publish(self, state: ResearchState) -> None:
        """Write a snapshot if the last one is old. The state must include the journal's last line.

        Raises InfrastructureError if it cannot be written.
        """
        archive = self._archive
        if state.next_number < archive.stored + EVERY:
            return
        for _ in archive.follow():
            pass
        stored = _Stored(
            code=_fingerprint(),
            journal=archive.prefix.sha256(archive.position.offset),
            position=archive.position,
            experiments=archive.experiments,
            ends=archive.ends,
            proposals=archive.proposals,
            sessions=archive.sessions,
            state=state,
        )
        content = _STORED.dump_json(stored, exclude={"state": {"experiments"}})
        reach("snapshot-due")
        try:
            write_atomic(self._path, hashlib.sha256(content).hexdigest().encode() + b"\n" + content)
        except OSError as error:
            raise InfrastructureError(f"{self._path} cannot be written: {error.strerror}.") from error
        reach("snapshot-written")
        archive.stored = state.next_number
        archive.forget(state)


def _load(home: Path) -> tuple[ResearchState, Archive]:
    """The content of the snapshot if it is valid; an empty state otherwise."""
    nothing = ResearchState(), Archive(home)
    try:
        digest, _, content = (home / SNAPSHOT).read_bytes().partition(b"\n")
        if digest != hashlib.sha256(content).hexdigest().encode():
            return nothing
        stored = _STORED.validate_json(content)
        known = len(stored.experiments)
        archive = Archive(
            home, stored.position, stored.experiments, stored.ends, stored.proposals, stored.sessions, known
        )
        if stored.code != _fingerprint() or stored.journal != archive.prefix.sha256(stored.position.offset):
            return nothing
    except (OSError, ValidationError):
        return nothing
    taken = [slot.experiment for slot in stored.state.slots.values() if slot.experiment is not None]
    latest = max(min([known - 1, *taken]), 0)
    stored.state.experiments = AppendOnly(map(archive.experiment, range(latest, known)), first=latest)
    stored.state.experiments.forget(latest, archive.experiment)
    return stored.state, archive


@cache
def _fingerprint() -> str:
    """Changes with all code that affects the result of folding a journal."""
    digest = hashlib.sha256()
    core = Path(__file__).parents[1] / "core"
    for path in (Path(__file__), *sorted(core.rglob("*.py"))):
        digest.update(path.read_bytes())
    return digest.hexdigest()
