"""The exchange between judge and worker: two folders, each written by one side only.

The judge writes token rows into the requests folder, the worker writes logits into the replies folder. Each
mounts the other's folder read-only, so neither can change the other's messages. A folder holds `SLOTS` slot
files that are reused in turn: message number n is in slot n % SLOTS. The judge sends message n + SLOTS only
after it has read reply n, so a slot is never overwritten before it was read, and up to `SLOTS` batches are in
flight.

A slot file is one page with the header, then the payload:

    offset 0     u8   mark     1 + n % 255, written last, alone; 0 or missing: no message yet
    offset 1     u8   dtype    code in `ITEM_BYTES` (replies) or 0 (requests)
    offset 4     u32  rows     B
    offset 8     u32  length   T
    offset 12    u32  vocab    V
    offset 16    u32  first    requests: the first column whose logits are wanted; replies: 0
    offset 20    u32  last     requests: the column after the last one wanted; replies: 0
    offset 4096  payload       request: int32 [B, T] tokens
                               reply: [B, T', V] logits of a dtype below, T' = last - first its length

All little-endian. The mark is a single byte because a byte cannot be read half-written. Anything after the
payload is ignored. Readers never map a file: if the other side truncated it, a mapping would kill the reader
with SIGBUS. A writer may map its own files.

The dtypes of logits: bfloat16 and float32 as they are, and float16 *minus the largest of the row*, preceded
by the index of the largest in each row, int32 [B, T']. The logits that matter are mostly within 16 of the
largest, where the error of float16 is at most 0.004, an eighth of that of bfloat16.

Size of the replies folder: SLOTS * (4096 + B * T * V * 4) bytes hold every reply of an honest worker.
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

SLOTS = 4  # one each being judged, written and computed, and one in reserve, so that nothing waits
HEADER_BYTES = 4096  # one page, so that the payload is page-aligned
BFLOAT16, FLOAT32, FLOAT16_LESS_LARGEST = 1, 2, 3
ITEM_BYTES = {BFLOAT16: 2, FLOAT32: 4, FLOAT16_LESS_LARGEST: 2}
PLACE_BYTES = 4
CLOSED = "closed"  # a file of this name means that the folder's owner sends nothing more

# Both sides poll. A futex does not work across two containers' mounts, and inotify on a shared tmpfs does not
# work under gVisor. At half a millisecond, polling costs about one percent of a core; a batch takes tens of
# milliseconds.
POLL_SECONDS = 0.0005
WORD = signal.SIGUSR1

_HEADER = struct.Struct("<BBxxIIIII")


def await_word() -> None:
    """Wait for the controller's start signal, which PID 1 of the container forwards.

    Judge and workers are started while the trainer or another worker still runs, and import what they need
    meanwhile. Nothing of an experiment is read before the signal. A process that waits here is not scheduled,
    so other processes leave no trace in its counters. The signal is blocked from the start: it stays pending
    if we are late, and a second one has no effect.
    """
    signal.sigwait({WORD})


class ExchangeError(Exception):
    """The other side broke the protocol; the message is our own text and safe to print."""


class Closed(Exception):
    """The other side sends nothing more."""


class Header(NamedTuple):
    """The writer's description of a payload; the reader has to check it."""

    dtype: int
    rows: int
    length: int
    vocab: int
    first: int = 0
    last: int = 0


def payload_bytes(dtype: int, positions: int, vocab: int) -> int:
    """Size of a reply with logits for `positions` positions."""
    places = PLACE_BYTES * positions if dtype == FLOAT16_LESS_LARGEST else 0
    return positions * vocab * ITEM_BYTES[dtype] + places


def usable_cpus() -> int:
    """CPUs this process may really use: its affinity, limited by the container's CPU quota, at least 1.

    A quota (`--cpus`) does not show in the affinity; with one thread per visible core, threads would mostly
    be throttled.
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
        """Publish message `number` with a payload of bytes. Raises OSError, e.g. if the folder is full."""
        file, offset = self._open(number), HEADER_BYTES
        while payload:
            written = os.pwrite(file, payload, offset)
            payload, offset = payload[written:], offset + written
        self.publish(number, header)

    def space(self, number: int, size: int) -> memoryview:
        """Memory for the payload of message `number`, `size` bytes; reused while it is large enough.

        Its pages are allocated, so writing to it cannot fail. Raises OSError if the folder is full.
        """
        file, slot = self._open(number), number % SLOTS
        if slot not in self._spaces or len(self._spaces[slot]) < size:
            os.posix_fallocate(file, 0, HEADER_BYTES + size)
            self._spaces[slot] = memoryview(mmap.mmap(file, HEADER_BYTES + size))[HEADER_BYTES:]
        return self._spaces[slot][:size]

    def publish(self, number: int, header: Header) -> None:
        """Publish message `number`, whose payload is already in place."""
        file = self._open(number)
        packed = _HEADER.pack(_mark(number), *header)
        os.pwrite(file, packed[1:], 1)
        os.pwrite(file, packed[:1], 0)

    def close(self) -> None:
        """Announce that no more messages follow: the worker gives up."""
        (self._folder / CLOSED).touch()

    def _open(self, number: int) -> int:
        slot = number % SLOTS
        if slot not in self._files:
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
            self._files[slot] = os.open(_slot_path(self._folder, number), flags, 0o644)
            os.fchmod(self._files[slot], 0o644)  # whatever our umask: it is read by another user
        return self._files[slot]


class SlotReader:
    """Reads numbered messages from a folder that the other side owns and may have filled with anything."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files: dict[int, int] = {}

    def wait(self, number: int, deadline: float) -> Header:
        """The header of message `number`, once it has arrived.

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
        """The header of message `number`, or None if it has not arrived yet.

        Raises ExchangeError if the slot is not a regular file, cannot be opened, or holds a message out of
        turn.
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
        """Copy payload bytes [start, start + len(into)) of message `number` into our own memory.

        Raises ExchangeError if the payload is too short. Later changes to the file have no effect.
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
