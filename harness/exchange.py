"""The exchange between judge and worker: two folders, each written by one side only.

The judge writes token rows into the requests folder, the worker writes logits into the replies folder; each
mounts the other's folder read-only, so neither can touch what the other says. A folder holds `SLOTS` slot
files that are rewritten in turn: message number n lives in slot n % SLOTS. The judge sends message n + SLOTS
only after it has taken reply n, so a slot is never overwritten before it was read and up to `SLOTS` batches
are in flight.

A slot file is one page with the header, then the payload:

    offset 0     u8   mark     1 + n % 255, written last, alone; 0 or missing: nothing here yet
    offset 1     u8   dtype    code in `ITEM_BYTES` (replies) or 0 (requests)
    offset 4     u32  rows     B
    offset 8     u32  length   T
    offset 12    u32  vocab    V
    offset 16    u32  first    requests: the first column whose logits are wanted; replies: 0
    offset 20    u32  last     requests: the column behind the last one wanted; replies: 0
    offset 4096  payload       request: int32 [B, T] tokens
                               reply: [B, T', V] logits of a dtype below, T' = last - first its length

All little-endian. The mark is a single byte because one byte cannot be read half written. What follows the
payload means nothing. Readers never map a file: a mapping of a file that the other side truncates kills
the reader with SIGBUS. A writer may map its own.

The dtypes of logits: bfloat16 and float32 as they are, and float16 *less the largest of the row*; before
these stands, int32 [B, T'], where in its row the largest is. What matters of a model's logits is mostly
within 16 of the largest, where float16 is off by 0.004 at most, an eighth of what bfloat16 of the same size
is.

Size of the replies folder: SLOTS * (4096 + B * T * V * 4) bytes hold every reply an honest worker can give.
"""

import math
import mmap
import os
import signal
import stat
import struct
import time
from pathlib import Path
from typing import NamedTuple

SLOTS = 4  # one is judged, one is written, one is computed, and one waits, so that none of the three has to
HEADER_BYTES = 4096  # one page, so that the payload is page-aligned
BFLOAT16, FLOAT32, FLOAT16_LESS_LARGEST = 1, 2, 3
ITEM_BYTES = {BFLOAT16: 2, FLOAT32: 4, FLOAT16_LESS_LARGEST: 2}
PLACE_BYTES = 4
CLOSED = "closed"  # a file of this name says that the folder's owner sends nothing more

# Both sides poll. A futex does not reach across two containers' mounts, and inotify on a shared tmpfs stays
# silent under gVisor. At half a millisecond a waiting process costs about one percent of a core, and a batch
# takes tens.
POLL_SECONDS = 0.0005
WORD = signal.SIGUSR1

_HEADER = struct.Struct("<BBxxIIIII")


def await_word() -> None:
    """Wait until the controller gives its word that this side may begin: PID 1 of the container hands it on.

    Judge and workers are started while the trainer still runs, or another worker, and import what they need
    meanwhile. Nothing of an experiment is read before the word; a process that waits here is not scheduled,
    so what others do beside it leaves no trace in its counters. The signal was blocked when we were started:
    it waits for us if we are late, and a second one changes nothing.
    """
    signal.sigwait({WORD})


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


def payload_bytes(dtype: int, positions: int, vocab: int) -> int:
    """Size of a reply with logits for so many positions."""
    places = PLACE_BYTES * positions if dtype == FLOAT16_LESS_LARGEST else 0
    return positions * vocab * ITEM_BYTES[dtype] + places


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
        self._spaces: dict[int, memoryview] = {}

    def write(self, number: int, header: Header, payload: memoryview) -> None:
        """Publish message `number` with a payload of bytes. Raises OSError, as when the folder is full."""
        file, offset = self._open(number), HEADER_BYTES
        while payload:
            written = os.pwrite(file, payload, offset)
            payload, offset = payload[written:], offset + written
        self.publish(number, header)

    def space(self, number: int, size: int) -> memoryview:
        """Where the payload of message `number`, `size` bytes, belongs; the same memory while it is enough.

        Its pages are there: to write to it cannot fail. Raises OSError if the folder is full.
        """
        file, slot = self._open(number), number % SLOTS
        if slot not in self._spaces or len(self._spaces[slot]) < size:
            os.posix_fallocate(file, 0, HEADER_BYTES + size)
            self._spaces[slot] = memoryview(mmap.mmap(file, HEADER_BYTES + size))[HEADER_BYTES:]
        return self._spaces[slot][:size]

    def publish(self, number: int, header: Header) -> None:
        """Publish message `number`, whose payload is where it belongs."""
        file = self._open(number)
        packed = _HEADER.pack(_mark(number), *header)
        os.pwrite(file, packed[1:], 1)
        os.pwrite(file, packed[:1], 0)

    def close(self) -> None:
        """Say that no further message follows: the worker gives up."""
        (self._folder / CLOSED).touch()

    def _open(self, number: int) -> int:
        slot = number % SLOTS
        if slot not in self._files:
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
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
