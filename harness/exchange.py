"""The exchange between judge and worker: two folders, each written by one side only.

The judge writes token rows into the requests folder, the worker writes logits into the replies folder; each
mounts the other's folder read-only, so neither can touch what the other says. A folder holds `SLOTS` slot
files that are rewritten in turn: message number n lives in slot n % SLOTS. The judge sends message n + SLOTS
only after it has taken reply n, so a slot is never overwritten before it was read and up to `SLOTS` batches
are in flight.

A slot file is one page with the header, then the payload:

    offset 0     u8   mark     1 + n % 255, written last, alone; 0 or missing: nothing here yet
    offset 1     u8   dtype    code in `DTYPES` (replies) or 0 (requests)
    offset 4     u32  rows     B
    offset 8     u32  length   T
    offset 12    u32  vocab    V
    offset 16    u32  first    requests: the first column whose logits are wanted; replies: 0
    offset 20    u32  last     requests: the column behind the last one wanted; replies: 0
    offset 4096  payload       request: int32 [B, T] tokens
                               reply: bfloat16 or float32 [B, T', V] logits, T' = last - first its length

All little-endian. The mark is a single byte because one byte cannot be read half written. Nothing is ever
memory-mapped: a mapping of a file that the other side truncates kills the reader with SIGBUS.

Size of the replies folder: SLOTS * (4096 + B * T * V * 4) bytes hold every reply an honest worker can give.
"""

import math
import os
import stat
import struct
import time
from pathlib import Path
from typing import NamedTuple

SLOTS = 2
HEADER_BYTES = 4096  # one page, so that the payload is page-aligned
DTYPES = {1: ("bfloat16", 2), 2: ("float32", 4)}  # code: (name, bytes per number)
CLOSED = "closed"  # a file of this name says that the folder's owner sends nothing more

# Both sides poll. A futex does not reach across two containers' mounts, and inotify on a shared tmpfs stays
# silent under gVisor. At half a millisecond a waiting process costs about one percent of a core, and a batch
# takes tens.
POLL_SECONDS = 0.0005

_HEADER = struct.Struct("<BBxxIIIII")


class ExchangeError(Exception):
    """The other side broke the protocol; the message is our own text and safe to print."""


class Closed(Exception):
    """The other side has said that it sends nothing more."""


class Header(NamedTuple):
    """What a slot says about its payload: the writer's word, for the reader to check."""

    dtype: int
    rows: int
    length: int
    vocab: int
    first: int = 0
    last: int = 0


def usable_cpus() -> int:
    """CPUs this process may really use: its affinity, cut to the container's CPU quota, at least 1.

    A quota (`--cpus`) does not show in the affinity; a thread per visible core would then mostly be
    throttled.
    """
    cpus = len(os.sched_getaffinity(0))
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
    except (OSError, ValueError):
        return cpus
    return cpus if quota == "max" else max(1, min(cpus, math.ceil(int(quota) / int(period))))


def _mark(number: int) -> int:
    return 1 + number % 255


def _slot_path(folder: Path, number: int) -> Path:
    return folder / f"slot-{number % SLOTS}"


class SlotWriter:
    """Writes numbered messages into the slot files of a folder that this side owns."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files: dict[int, int] = {}

    def write(self, number: int, header: Header, payload: memoryview) -> None:
        """Publish message `number` with a payload of bytes. Raises OSError, as when the folder is full."""
        file = self._open(number)
        offset = HEADER_BYTES
        if os.fstat(file).st_size > offset + len(payload):
            os.ftruncate(file, offset + len(payload))  # the slot's last payload was a longer one
        while payload:
            written = os.pwrite(file, payload, offset)
            payload, offset = payload[written:], offset + written
        packed = _HEADER.pack(_mark(number), *header)
        os.pwrite(file, packed[1:], 1)
        os.pwrite(file, packed[:1], 0)

    def close(self) -> None:
        """Say that no further message follows: the worker gives up."""
        (self._folder / CLOSED).touch()

    def _open(self, number: int) -> int:
        slot = number % SLOTS
        if slot not in self._files:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
            self._files[slot] = os.open(_slot_path(self._folder, number), flags, 0o644)
            os.fchmod(self._files[slot], 0o644)  # the other side runs as another user, whatever our umask
        return self._files[slot]


class SlotReader:
    """Reads numbered messages from a folder that the other side owns and may have filled with anything."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files: dict[int, int] = {}

    def wait(self, number: int, deadline: float) -> Header:
        """The header of message `number`, once it is there.

        Raises TimeoutError after `deadline` (seconds, time.monotonic), Closed, ExchangeError as `poll` does.
        """
        while (header := self.poll(number)) is None:
            if os.path.lexists(self._folder / CLOSED):
                raise Closed
            if time.monotonic() >= deadline:
                raise TimeoutError(f"message {number} did not come in time")
            time.sleep(POLL_SECONDS)
        return header

    def poll(self, number: int) -> Header | None:
        """The header of message `number`, or None if it is not there yet.

        Raises ExchangeError if the slot is no regular file, cannot be opened, or holds a message out of turn.
        """
        file = self._open(number)
        if file is None:
            return None
        mark = os.pread(file, 1, 0)
        if mark in (b"", b"\0", bytes([_mark(number - SLOTS)])):
            return None
        if mark[0] != _mark(number):
            raise ExchangeError("a slot carries another message's number")
        packed = os.pread(file, _HEADER.size, 0)
        if len(packed) < _HEADER.size:
            raise ExchangeError("the header of a message is cut short")
        return Header(*_HEADER.unpack(packed)[1:])

    def read(self, number: int, start: int, into: memoryview) -> None:
        """Copy payload bytes [start, start + len(into)) of message `number` into memory of our own.

        Raises ExchangeError if the payload ends early. What the other side does to the file afterwards has no
        effect.
        """
        file = self._files[number % SLOTS]
        offset = HEADER_BYTES + start
        while into:
            count = os.preadv(file, [into], offset)
            if count == 0:
                raise ExchangeError("the payload of a message is cut short")
            into, offset = into[count:], offset + count

    def payload_bytes(self, number: int) -> int:
        """Size of the payload area of message `number`'s slot file, as the file system reports it."""
        return os.fstat(self._files[number % SLOTS]).st_size - HEADER_BYTES

    def _open(self, number: int) -> int | None:
        slot = number % SLOTS
        if slot not in self._files:
            # O_NONBLOCK: opening a FIFO, a device or a file under a lease must not block us.
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            try:
                file = os.open(_slot_path(self._folder, number), flags)
            except FileNotFoundError:
                return None
            except OSError:
                raise ExchangeError("a slot file cannot be opened") from None
            if not stat.S_ISREG(os.fstat(file).st_mode):
                os.close(file)
                raise ExchangeError("a slot file is not a regular file")
            self._files[slot] = file
        return self._files[slot]
