"""audit.jsonl and its blobs: the only state that is authoritative.

One event a line, as canonical JSON (core/canonical.py). Each line holds the hash of the line before it and

    hash = sha256(prev + canonical JSON of the line without its hash)

so that no line can be changed, dropped or inserted without breaking the chain behind it. Lines cut off at the
end are found elsewhere: a kept commit carries the journal's head at that time as a trailer (see verify.py).
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from pydantic import ValidationError

from controller.core.canonical import encode, plain
from controller.core.events import AnyEvent, JournalRepaired, Record
from controller.core.model import InfrastructureError, UserError, VerificationFailed
from controller.core.untrusted import clean_line
from controller.files import make_folder, sync_folder, write_atomic
from controller.ports import Clock

NAME = "audit.jsonl"
GENESIS = "0" * 64

_SHA256 = re.compile(r"[0-9a-f]{64}")
_REMOVED_CHARACTERS = 2000


class HomeLock:
    """Held by the one process that writes to a home. The kernel lets go of it when that process dies."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self._descriptor: int | None = None

    def __enter__(self) -> Self:
        """Raises UserError if another process holds it or the home cannot be written to."""
        try:
            make_folder(self._home)
            descriptor = os.open(self._home / "lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
        except OSError as error:
            raise _not_writable(self._home, error) from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            owner = clean_line(os.pread(descriptor, 200, 0).decode("utf-8", "replace")) or "another process"
            os.close(descriptor)
            raise UserError(
                f"The home {self._home} is in use by {owner}; stop that one or choose another --home."
            ) from error
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
        self._descriptor = descriptor
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def home_in_use(home: Path) -> bool:
    """True while some process holds the home's lock."""
    try:
        descriptor = os.open(home / "lock", os.O_RDONLY | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


class Journal:
    """The journal of one home, open for writing. Only the holder of the HomeLock may construct one.

    A torn last line, left by a process that died while writing, is cut off and reported as an event.
    Raises UserError if the home cannot be written to, VerificationFailed if the chain is broken.
    """

    def __init__(self, home: Path, clock: Clock) -> None:
        self._home = home
        self._clock = clock
        path = home / NAME
        try:
            make_folder(home)
            flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW
            self._descriptor = os.open(path, flags, 0o644)
            sync_folder(home)
        except OSError as error:
            raise _not_writable(home, error) from error
        try:
            self._seq, self.head = -1, GENESIS
            for record in read_records(home):
                self._seq, self.head = record.seq, record.hash
            torn = _torn_tail(path)
            self._size = os.fstat(self._descriptor).st_size - len(torn)
            if torn:
                os.ftruncate(self._descriptor, self._size)
                removed = torn.decode("utf-8", "backslashreplace")
                self.append(JournalRepaired(removed=clean_line(removed, _REMOVED_CHARACTERS)))
        except BaseException:
            self.close()
            raise

    def append(self, event: AnyEvent) -> Record:
        """Write one event durably and return it as a replay would.

        Raises InfrastructureError if the disk does not take it; the journal is then as it was.
        """
        line = _line(event, self._seq + 1, self._clock.now().isoformat(timespec="microseconds"), self.head)
        record = _parse(line, self._seq + 1, self.head)
        try:
            _write(self._descriptor, line + b"\n")
            os.fsync(self._descriptor)
        except OSError as error:
            os.ftruncate(self._descriptor, self._size)
            raise InfrastructureError(f"The journal cannot be written: {error.strerror}.") from error
        self._size += len(line) + 1
        self._seq, self.head = record.seq, record.hash
        return record

    def records(self) -> Iterator[Record]:
        """Everything so far, oldest first. Raises VerificationFailed at a broken link."""
        return read_records(self._home)

    def put_blob(self, content: bytes) -> str:
        """Store `content` durably under its sha256 and return that. Raises InfrastructureError."""
        name = sha256(content)
        path = blob_path(self._home, name)
        try:
            if not (path.is_file() and path.read_bytes() == content):
                make_folder(path.parent.parent)
                make_folder(path.parent)
                write_atomic(path, content)
        except OSError as error:
            raise InfrastructureError(f"A blob cannot be written: {error.strerror}.") from error
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

    A last line without its newline is left out: its writer may be at work on it, or have died there.
    Raises VerificationFailed naming the line where the chain breaks.
    """
    head, path = GENESIS, home / NAME
    if not path.exists():
        return
    with path.open("rb") as file:
        for seq, line in enumerate(file):
            if not line.endswith(b"\n"):
                return
            record = _parse(line[:-1], seq, head)
            head = record.hash
            yield record


def read_blob(home: Path, name: str) -> bytes:
    """Raises VerificationFailed if the blob is missing or is not what its name says."""
    if not _SHA256.fullmatch(name):
        raise VerificationFailed(f"{clean_line(name)!r} is no name of a blob")
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


def torn_tail(home: Path) -> bytes:
    """What follows the last newline of the journal; empty in a healthy one."""
    path = home / NAME
    return _torn_tail(path) if path.exists() else b""


def _torn_tail(path: Path) -> bytes:
    content = path.read_bytes()
    return content[content.rfind(b"\n") + 1 :]


def _line(event: AnyEvent, seq: int, time: str, prev: str) -> bytes:
    data = plain(event)
    content = {
        "data": data,
        "event": data.pop("event"),
        "experiment": data.get("experiment"),
        "prev": prev,
        "seq": seq,
        "time": time,
    }
    return encode({**content, "hash": _digest(prev, content)})


def _parse(line: bytes, seq: int, prev: str) -> Record:
    """One line as a Record. Raises VerificationFailed if it is not the one that belongs at this place."""
    where = f"{NAME} line {seq + 1}"
    try:
        content = json.loads(line)
        claimed = content.pop("hash")
        intact = claimed == _digest(prev, content) and line == encode({**content, "hash": claimed})
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
        raise VerificationFailed(f"{where} is damaged: {clean_line(str(error))}") from error
    if not intact or content["prev"] != prev or content["seq"] != seq:
        raise VerificationFailed(f"{where} does not continue the chain of the lines before it")
    try:
        data = {"event": content.pop("event"), **content.pop("data")}
        record = Record.model_validate({**content, "data": data, "hash": claimed})
    except (ValidationError, KeyError, TypeError) as error:
        raise VerificationFailed(f"{where} holds no event this version knows") from error
    if getattr(record.data, "experiment", None) != record.experiment:
        raise VerificationFailed(f"{where} contradicts itself about its experiment")
    return record


def _digest(prev: str, content: dict[str, Any]) -> str:
    return sha256(prev.encode("ascii") + encode(content))


def _write(descriptor: int, content: bytes) -> None:
    while content:
        content = content[os.write(descriptor, content) :]


def _not_writable(home: Path, error: OSError) -> UserError:
    return UserError(
        f"The home {home} cannot be written to ({error.strerror}); "
        "choose another --home or mend its permissions."
    )
