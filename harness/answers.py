"""Sends a worker's logits to the judge: encoded in place, copied into their slot, published in order.

On a GPU this overlaps with the model: on a separate stream, the driver copies logits straight into the slot's
file, which the worker has mapped, and a thread publishes what has arrived. On the CPU the model needs every
core, so the steps are sequential.
"""

import contextlib
import itertools
import math
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NoReturn

import torch
from exchange import (
    BFLOAT16,
    FLOAT16_LESS_LARGEST,
    FLOAT32,
    ITEM_BYTES,
    POLL_SECONDS,
    SLOTS,
    Header,
    SlotReader,
    SlotWriter,
    payload_bytes,
)
from torch import Tensor

DTYPES = {BFLOAT16: torch.bfloat16, FLOAT32: torch.float32, FLOAT16_LESS_LARGEST: torch.float16}
LOWEST = torch.finfo(torch.float16).min
PART_TOKENS = 2048  # encoded at a time: 64 MB for each of a few temporaries at a vocabulary of 8192


def less_largest(logits: Tensor) -> tuple[Tensor, Tensor]:
    """float16 logits [..., V] minus the largest of each row, and its index, int32 [...].

    Non-finite logits become NaN. A difference beyond the range of float16 is clamped: its probability is 0 in
    float32 as well.
    """
    numbers = logits.float()
    largest = numbers.argmax(-1, keepdim=True)
    below = numbers - numbers.gather(-1, largest)
    coded = below.clamp_(min=LOWEST).half().masked_fill_(numbers == -math.inf, math.nan)
    return coded, largest.squeeze(-1).int()


def describe(logits: object, asked: Header, compact: bool) -> Header:
    """The header of a reply. A reply that the judge must refuse has no payload; its header says why."""
    wanted = asked.last - asked.first
    if not isinstance(logits, Tensor) or not logits.is_floating_point():
        return Header(0, asked.rows, wanted, asked.vocab)
    if tuple(logits.shape) != (asked.rows, asked.length, asked.vocab):
        shape = logits.shape if logits.dim() == 3 else (0, 0, 0)
        return Header(FLOAT32, *(min(n, 0xFFFFFFFF) for n in shape))
    code = BFLOAT16 if logits.dtype == torch.bfloat16 else FLOAT32
    return Header(FLOAT16_LESS_LARGEST if compact else code, asked.rows, wanted, asked.vocab)


class Replies:
    """Writes replies in order."""

    def __init__(
        self,
        folder: Path,
        device: torch.device,
        *,
        compact: bool,
        blaming: Callable[[], AbstractContextManager[None]] = contextlib.nullcontext,
    ) -> None:
        """`compact`: two bytes per logit whatever the model's dtype. Computation runs inside `blaming`."""
        self._writer, self._compact, self._blaming = SlotWriter(folder), compact, blaming
        self._gpu = Copies(device) if device.type == "cuda" else None
        self._under_way: deque[Future[None]] = deque()
        self._publisher = ThreadPoolExecutor(1)
        self._spaces: dict[int, Tensor] = {}

    def send(self, number: int, logits: object, asked: Header) -> None:
        """Encode and send reply `number`. On a GPU it may still be in flight on return. Raises OSError."""
        header = describe(logits, asked, self._compact)
        if header[1:4] != (asked.rows, asked.last - asked.first, asked.vocab) or header.dtype == 0:
            self._writer.publish(number, header)
            return
        assert isinstance(logits, Tensor)
        space, places = self._space(number, header)
        with self._blaming():
            self._put(logits[:, asked.first : asked.last], space, places)
        if self._gpu is None:
            self._writer.publish(number, header)
        else:
            arrived = self._gpu.arrival()
            self._under_way.append(self._publisher.submit(self._publish, number, header, arrived))

    def _put(self, logits: Tensor, space: Tensor, places: Tensor) -> None:
        """Encode logits [B, T', V] into `space`; on a GPU, asynchronously."""
        copy = self._gpu.copy if self._gpu else Tensor.copy_
        step = max(1, PART_TOKENS // logits.size(1))
        for start in range(0, len(logits), step):
            part = slice(start, start + step)
            if self._compact:
                coded, largest = less_largest(logits[part])
                copy(space[part], coded)
                copy(places[part], largest)
            else:
                copy(space[part], logits[part])

    def _publish(self, number: int, header: Header, arrived: torch.cuda.Event) -> None:
        arrived.synchronize()
        self._writer.publish(number, header)

    def look(self) -> None:
        """Raise any error of a copy in flight."""
        while self._under_way and self._under_way[0].done():
            with self._blaming():
                self._under_way.popleft().result()

    def _space(self, number: int, header: Header) -> tuple[Tensor, Tensor]:
        """Memory for reply `number`: logits [B, T', V], and indices of the largest [B, T'] or [0]."""
        positions, vocab = math.prod(header[1:3]), header.vocab
        size = payload_bytes(header.dtype, positions, vocab)
        slot = number % SLOTS
        if slot not in self._spaces or self._spaces[slot].numel() < size:
            self._spaces[slot] = torch.frombuffer(self._writer.space(number, size), dtype=torch.uint8)
            if self._gpu:
                self._gpu.register(self._spaces[slot])
        numbers = positions * vocab * ITEM_BYTES[header.dtype]
        places, logits = torch.split(self._spaces[slot][:size], [size - numbers, numbers])
        shape = header[1:3] if self._compact else (0,)
        return logits.view(DTYPES[header.dtype]).view(header[1:4]), places.view(torch.int32).view(shape)


class Copies:
    """Asynchronous copies from a GPU into our memory."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream: Any = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def register(self, memory: Tensor) -> None:
        """Pin this memory so that the GPU can write to it. If the driver refuses, copies are only slower."""
        failed = True
        with contextlib.suppress(RuntimeError):
            driver: Any = torch.cuda.cudart()  # type: ignore[no-untyped-call]
            failed = bool(int(driver.cudaHostRegister(memory.data_ptr(), memory.nbytes, 0)))
        if failed:
            with contextlib.suppress(RuntimeError):
                torch.zeros(1, device=self._device)  # the next launch would report the refusal as its own

    def copy(self, into: Tensor, source: Tensor) -> None:
        """Start to copy as soon as `source` is computed."""
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream):
            into.copy_(source, non_blocking=True)
        source.record_stream(self._stream)

    def arrival(self) -> torch.cuda.Event:
        """An event that fires when all copies started so far have arrived."""
        event: torch.cuda.Event = self._stream.record_event()
        return event


def answer(
    requests: SlotReader, replies: Replies, predict: Callable[[Tensor], object], total_seconds: float
) -> NoReturn:
    """Answer the judge's batches in order. Raises TimeoutError after `total_seconds`."""
    deadline = time.monotonic() + total_seconds
    for number in itertools.count():
        while (asked := requests.poll(number)) is None:
            replies.look()
            if time.monotonic() >= deadline:
                raise TimeoutError(f"request {number} did not come in time")
            time.sleep(POLL_SECONDS)
        tokens = torch.empty((asked.rows, asked.length), dtype=torch.int32)
        requests.read(number, 0, tokens.numpy().data.cast("B"))
        replies.send(number, predict(tokens), asked)
    raise AssertionError


# --- inputs to the model ----------------------------------------------------------


class Parts:
    """Splits batches into as many rows as fit into the device's memory."""

    def __init__(self, model: Callable[[Tensor], object]) -> None:
        self._model = model
        self._rows: int | None = None

    def __call__(self, tokens: Tensor) -> object:
        """tokens [B, T] -> the model's output, concatenated if the batch was split."""
        while True:
            rows = self._rows or len(tokens)
            try:
                if rows >= len(tokens):
                    return self._model(tokens)
                return torch.cat([self._tensor(part) for part in torch.split(tokens, rows)])
            except torch.OutOfMemoryError:
                if rows == 1:
                    raise
            self._rows = -(-rows // 2)
            torch.cuda.empty_cache()

    def _tensor(self, tokens: Tensor) -> Tensor:
        logits = self._model(tokens)
        if not isinstance(logits, Tensor):
            raise TypeError(f"the model gives a {type(logits).__name__}")
        return logits


class Lengths:
    """Serves rows shorter than the model's context, which a confirmation sends to save time.

    Short rows are passed on as they are if that gives bit-identical results, which is tested once for each
    length. Otherwise, or if the model needs whole rows, they are padded: what follows a prediction must not
    matter.
    """

    def __init__(self, model: Callable[[Tensor], object], context: int) -> None:
        self._model, self._context = model, context
        self._exact: dict[int, bool] = {}
        self._rows = 1
        """Rows in a batch of full length."""

    def __call__(self, tokens: Tensor) -> object:
        """tokens [B, T], T at most the context -> the model's output."""
        length = tokens.size(1)
        if length >= self._context:
            self._rows = len(tokens)
            return self._model(tokens)
        if length in self._exact:
            return self._model(tokens) if self._exact[length] else self._filled_up(tokens)
        filled = self._filled_up(tokens)
        self._exact[length] = self._same(tokens, filled)
        return filled

    def _same(self, tokens: Tensor, filled: object) -> bool:
        try:
            short = self._model(tokens)
            return isinstance(short, Tensor) and isinstance(filled, Tensor) and torch.equal(short, filled)
        except Exception:
            return False

    def _filled_up(self, tokens: Tensor) -> object:
        whole = torch.nn.functional.pad(tokens, (0, self._context - tokens.size(1)))
        found = []
        for rows in torch.split(whole, self._rows):
            logits = self._model(rows)
            if not isinstance(logits, Tensor) or logits.dim() != 3:
                return logits
            found.append(logits[:, : tokens.size(1)])
        return torch.cat(found)
