"""A worker that does to the exchange what a script says; steps are data, so that a failing script prints."""

from __future__ import annotations

import os
import struct
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from exchange import CLOSED, HEADER_BYTES, SLOTS, Closed, ExchangeError, SlotReader
from numpy.typing import NDArray

from tests.harness.scoring import LENGTH, VOCAB

_WRITE = os.O_WRONLY | os.O_CREAT | os.O_NONBLOCK | os.O_NOFOLLOW
_HEADER = struct.Struct("<BBxxIIIII")

#: What an honest model says after each token; so it depends on nothing else.
TABLE = np.random.default_rng(8).normal(0, 2, (VOCAB, VOCAB)).astype(np.float32)


@dataclass(frozen=True)
class Answer:
    """Answer the next request, honestly but for what is named here."""

    bfloat16: bool = False
    mark: int = 0
    """Added to the number of the message that the slot claims to hold."""
    header: tuple[tuple[int, int], ...] = ()
    """(field, value): what to say instead; fields are dtype, rows, length, vocab, first, last."""
    bits: tuple[tuple[int, int], ...] = ()
    """(place, bits): logits to put, as bit patterns."""
    surplus: int = 0
    """Bytes to add to the payload, or to leave away."""
    header_first: bool = False
    """Publish before the payload is there."""

    def do(self, worker: Hostile) -> None:
        number = worker.answered
        header = worker.requests.wait(number, time.monotonic() + worker.patience)
        tokens = np.empty((header.rows, header.length), np.int32)
        worker.requests.read(number, 0, tokens.data.cast("B"))
        logits = self._logits(tokens[:, header.first : header.last])
        fields = [1 if self.bfloat16 else 2, header.rows, header.last - header.first, header.vocab, 0, 0]
        for place, value in self.header:
            fields[place] = value & (0xFF if place == 0 else 0xFFFFFFFF)
        payload = logits.tobytes()
        payload = payload[: len(payload) + self.surplus] + bytes(max(0, self.surplus))
        packed = _HEADER.pack(1 + (number + self.mark) % 255, *fields)
        parts = [(0, packed), (HEADER_BYTES, payload)]
        for offset, part in parts if self.header_first else parts[::-1]:
            worker.write(number % SLOTS, offset, part)
            if part is payload:
                os.truncate(worker.slot(number % SLOTS), HEADER_BYTES + len(payload))
        worker.answered += 1

    def _logits(self, tokens: NDArray[np.int32]) -> NDArray[np.uint32] | NDArray[np.uint16]:
        numbers = TABLE[tokens].view(np.uint32)
        if self.bfloat16:
            upper = (numbers >> 16).astype(np.uint16)
            for place, bits in self.bits:
                upper.flat[place % upper.size] = bits >> 16
            return upper
        for place, bits in self.bits:
            numbers.flat[place % numbers.size] = bits
        return numbers


@dataclass(frozen=True)
class Write:
    """Bytes somewhere in a slot file."""

    slot: int
    offset: int
    content: bytes

    def do(self, worker: Hostile) -> None:
        worker.write(self.slot, self.offset, self.content)


@dataclass(frozen=True)
class Truncate:
    """Cut a slot file, or grow it with a hole."""

    slot: int
    size: int

    def do(self, worker: Hostile) -> None:
        os.truncate(worker.slot(self.slot), self.size)


Kind = Literal["nothing", "file", "directory", "fifo", "zeros", "other slot", "loop", "dangling", "locked"]


@dataclass(frozen=True)
class Become:
    """Put something else in the place of a slot file, or of the word that the folder is closed."""

    slot: int | None
    kind: Kind

    def do(self, worker: Hostile) -> None:
        path = worker.replies / CLOSED if self.slot is None else worker.slot(self.slot)
        path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)
        targets = {"zeros": "/dev/zero", "other slot": "slot-1", "loop": path.name, "dangling": "nowhere"}
        if self.kind in targets:
            path.symlink_to(targets[self.kind])
        elif self.kind == "directory":
            path.mkdir()
        elif self.kind == "fifo":
            os.mkfifo(path)
        elif self.kind != "nothing":
            path.touch(mode=0 if self.kind == "locked" else 0o644)


@dataclass(frozen=True)
class Storm:
    """Do something over and over from now on, while the judge reads."""

    what: Write | Truncate | Become

    def do(self, worker: Hostile) -> None:
        worker.storms.append(self.what)


@dataclass(frozen=True)
class Stall:
    """Do nothing any more."""

    def do(self, worker: Hostile) -> None:
        worker.over.wait()


Step = Answer | Write | Truncate | Become | Storm | Stall


@dataclass
class Hostile:
    """Follows its script, then answers honestly what is still asked."""

    requests_folder: Path
    replies: Path
    script: Sequence[Step]
    patience: float
    """Seconds to wait for a request."""
    answered: int = 0
    storms: list[Write | Truncate | Become] = field(default_factory=list)
    over: threading.Event = field(default_factory=threading.Event)
    """Set when the judge has ended."""

    def __post_init__(self) -> None:
        self.requests = SlotReader(self.requests_folder)
        self._threads = [threading.Thread(target=target, daemon=True) for target in (self._work, self._storm)]

    def __enter__(self) -> Hostile:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.over.set()
        (self.requests_folder / CLOSED).touch()  # nobody can kill a thread
        for thread in self._threads:
            thread.join()

    def slot(self, number: int) -> Path:
        return self.replies / f"slot-{number}"

    def write(self, slot: int, offset: int, content: bytes) -> None:
        file = os.open(self.slot(slot), _WRITE, 0o644)
        try:
            os.pwrite(file, content, offset)
        finally:
            os.close(file)

    def _work(self) -> None:
        with suppress(Closed, TimeoutError):
            for step in self.script:
                with suppress(OSError, ExchangeError):  # what a script breaks for itself is its own fault
                    step.do(self)
            while not self.over.is_set():
                with suppress(OSError, ExchangeError):
                    Answer().do(self)

    def _storm(self) -> None:
        while not self.over.wait(0.0005):
            for what in tuple(self.storms):
                with suppress(OSError):
                    what.do(self)


#: What one honest answer of four whole rows takes in bytes.
ANSWER_BYTES = HEADER_BYTES + 4 * LENGTH * VOCAB * 4
