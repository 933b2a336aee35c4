"""audit.jsonl and its blobs: the only authoritative state.

One event per line, as canonical JSON (core/canonical.py). Each line holds the hash of the line before it and

    hash = sha256(prev + canonical JSON of the line without its hash)

so that no line can be changed, dropped or inserted without breaking the chain after it. A journal truncated
at its end is detected elsewhere: a kept commit carries the journal's head at that time as a trailer
(verify.py).
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from controller.core.canonical import encode, plain
from controller.core.errors import InfrastructureError, UserError, VerificationFailed
from controller.core.events import AnyEvent, JournalRepaired, Record
from controller.core.untrusted import clean_line
from controller.failpoints import reach
from controller.files import make_folder, sync_folder, write_atomic
from controller.ports import Clock
from controller.store.lock import not_writable

NAME = "audit.jsonl"
GENESIS = "0" * 64


@dataclass(frozen=True)
class Position:
    """A place between two lines of the journal."""

    seq: int = -1
    """Number of the line before it."""
    head: str = GENESIS
    """Hash of the line before it."""
    offset: int = 0
    """Bytes from the start of the file."""


BEGINNING = Position()

_SHA256 = re.compile(r"[0-9a-f]{64}")
_HASH_KEY = b',"hash":"'
_REMOVED_CHARACTERS = 2000
#: Far more than any line.
_LONGEST_TORN = 16 * 1024**2


class Journal:
    """The journal of one home, open for writing. Only the holder of the HomeLock may construct one.

    A torn last line, left by a process that died while writing, is removed and reported as an event.
    Raises UserError if the home cannot be written to, VerificationFailed if the chain is broken.
    """

    def __init__(self, home: Path, clock: Clock, known: Position = BEGINNING) -> None:
        """The chain is checked from `known` on; the caller vouches for what precedes it."""
        self._home = home
        self._clock = clock
        path = home / NAME
        try:
            make_folder(home)
            flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW
            self._descriptor = os.open(path, flags, 0o644)
            sync_folder(home)
        except OSError as error:
            raise not_writable(home, error) from error
        try:
            self._end = known
            for _, self._end in read_from(home, known):
                pass
            if torn := os.pread(self._descriptor, _LONGEST_TORN, self._end.offset):
                os.ftruncate(self._descriptor, self._end.offset)
                removed = torn.decode("utf-8", "backslashreplace")
                self.append(JournalRepaired(removed=clean_line(removed, _REMOVED_CHARACTERS)))
        except BaseException:
            self.close()
            raise

    def append(self, event: AnyEvent) -> Record:
        """Write one event durably and return it as a replay would.

        Raises InfrastructureError if it cannot be written; the journal is then unchanged.
        """
        end, now = self._end, self._clock.now().isoformat(timespec="microseconds")
        line = encode_line(event, end.seq + 1, now, end.head)
        record = parse_line(line, end)
        reach(f"before-{event.event}")
        try:
            _write(self._descriptor, line + b"\n")
            os.fsync(self._descriptor)
        except OSError as error:
            os.ftruncate(self._descriptor, end.offset)
            raise InfrastructureError(f"The journal cannot be written: {error.strerror}.") from error
        self._end = Position(record.seq, record.hash, end.offset + len(line) + 1)
        reach(f"after-{event.event}")
        return record

    def put_blob(self, content: bytes) -> str:
        """Store `content` durably under its sha256 and return that. Raises InfrastructureError."""
        name = sha256(content)
        path = blob_path(self._home, name)
        try:
            if path.is_file() and path.read_bytes() == content:
                sync_folder(path.parent)  # the process that stored it may have died before this
            else:
                make_folder(path.parent.parent)
                make_folder(path.parent)
                write_atomic(path, content)
        except OSError as error:
            raise InfrastructureError(f"A blob cannot be written: {error.strerror}.") from error
        reach("blob-stored")
        return name

    def get_blob(self, name: str) -> bytes:
        """Raises VerificationFailed if the blob is missing or is not what its name says."""
        return read_blob(self._home, name)

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def read_records(home: Path) -> Iterator[Record]:
    """Replay a journal from its beginning, without opening it for writing.

    A last line without a newline is skipped: it is still being written, or its writer died.
    Raises VerificationFailed naming the line where the chain breaks.
    """
    return (record for record, _ in read_from(home, BEGINNING))


def read_from(home: Path, position: Position) -> Iterator[tuple[Record, Position]]:
    """The same from a known position on; yields each record with the position after it."""
    path = home / NAME
    if not path.exists():
        return
    with path.open("rb") as file:
        file.seek(position.offset)
        for line in file:
            if not line.endswith(b"\n"):
                return
            record = parse_line(line[:-1], position)
            position = Position(record.seq, record.hash, position.offset + len(line))
            yield record, position


def read_lines(home: Path, begin: int, end: int) -> Iterator[Record]:
    """The lines that begin in bytes `begin` to `end` - 1; the chain before them is not checked.

    `begin` must be the start of a line. Raises VerificationFailed if a line is not what its hash says.
    """
    with (home / NAME).open("rb") as file:
        file.seek(begin)
        while begin < end and (line := file.readline()):
            begin += len(line)
            yield parse_line(line.removesuffix(b"\n"))


def read_blob(home: Path, name: str) -> bytes:
    """Raises VerificationFailed if the blob is missing or is not what its name says."""
    if not _SHA256.fullmatch(name):
        raise VerificationFailed(f"{clean_line(name)!r} is not the name of a blob")
    try:
        content = blob_path(home, name).read_bytes()
    except OSError as error:
        raise VerificationFailed(f"blob {name} cannot be read: {error.strerror}") from error
    if sha256(content) != name:
        raise VerificationFailed(f"blob {name} is not what its name says")
    return content


def blob_path(home: Path, name: str) -> Path:
    return home / "blobs" / name[:2] / name


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def encode_line(event: AnyEvent, seq: int, time: str, prev: str) -> bytes:
    """One event as a line of the journal, without its newline."""
    data = plain(event)
    content = {
        "data": data,
        "event": data.pop("event"),
        "experiment": data.get("experiment"),
        "prev": prev,
        "seq": seq,
        "time": time,
    }
    return encode({**content, "hash": sha256(prev.encode("ascii") + encode(content))})


_OLDER_EVENTS = frozenset({"proposed", "prepared", "preparation_dropped", "rehearsed", "slot_calm"})
"""What only journals of Glovebox 0.1 hold. Every effort there has a `proposed`, right after its session."""


def parse_line(line: bytes, after: Position | None = None) -> Record:
    """One line as a Record. Raises VerificationFailed if it does not belong at this place."""
    where = f"{NAME} line {after.seq + 2}" if after else f"a line of {NAME}"
    try:
        content = json.loads(line)
        claimed = content.pop("hash")
        after = after or Position(content["seq"] - 1, content["prev"])
        # JSON readers differ on duplicate keys, so only the canonical spelling is accepted.
        intact = claimed == _hash_of(line, after.head) and line == encode({**content, "hash": claimed})
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
        raise VerificationFailed(f"{where} is damaged: {clean_line(str(error))}") from error
    if not intact or content["prev"] != after.head or content["seq"] != after.seq + 1:
        raise VerificationFailed(f"{where} does not continue the chain of the lines before it")
    try:
        data = {"event": content.pop("event"), **content.pop("data")}
        record = Record.model_validate({**content, "data": data, "hash": claimed})
    except (ValidationError, KeyError, TypeError) as error:
        if data["event"] in _OLDER_EVENTS:
            raise UserError(
                f"{where} was written by Glovebox 0.1, and only that version reads this home: use it, or "
                "begin in a new --home."
            ) from error
        raise VerificationFailed(f"{where} holds no event this version knows") from error
    if getattr(record.data, "experiment", None) != record.experiment:
        raise VerificationFailed(f"{where} contradicts itself about its experiment")
    return record


def _hash_of(line: bytes, prev: str) -> str:
    """What the line's hash must be. Raises ValueError if it has none."""
    # Only prev, seq and time follow "hash", and none of them can contain such a key.
    start = line.rindex(_HASH_KEY)
    return sha256(prev.encode("ascii") + line[:start] + line[start + len(_HASH_KEY) + 65 :])


def _write(descriptor: int, content: bytes) -> None:
    while content:
        content = content[os.write(descriptor, content) :]
