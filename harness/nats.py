"""The judge's arithmetic: logits of any dtype of the exchange and the true targets → nats, exactly.

Whatever a worker sends is judged as what it is: nothing here trusts a worker to have normalised anything.
"""

import math
import threading
from typing import Any

import numpy as np
from exchange import BFLOAT16, FLOAT16_LESS_LARGEST, ITEM_BYTES
from numpy.typing import NDArray

from probes import Nats

Targets = NDArray[np.int64]

# Nats per vocabulary entry. Below it they come from logits 16 and more under the largest, and a float32
# difference of that size is off by up to a millionth; so is its exp, relatively.
NEAR_CERTAIN = 2.0**-23
NOT_FINITE_BITS = 0x7C00  # of a float16 without its sign: infinity; above it NaN
NO_LOGIT = np.array(-65504, np.float16).view(np.int16)  # bits of the lowest float16, whose exp is 0
PART_NUMBERS = 1 << 17  # worked on at a time: 512 kB in float32, half of an L2 cache


class Refused(Exception):
    """The worker's answers cannot be scored; `cause` is for programs, the message a line of our own text."""

    def __init__(self, cause: str, detail: str) -> None:
        super().__init__(detail)
        self.cause = cause


def not_finite() -> Refused:
    return Refused("not-finite", "logits hold NaN or infinity")


class Judging(threading.local):
    """One thread's memory for logits and for working on them, used again and again.

    New memory for every chunk would cost as much as the arithmetic.
    """

    def __init__(self) -> None:
        self._raw = np.empty(0, np.uint8)
        self._memory = np.empty((0, 0), np.float32)

    def raw(self, size: int) -> NDArray[np.uint8]:
        """`size` bytes to read logits into."""
        if len(self._raw) < size:
            self._raw = np.empty(size, np.uint8)
        return self._raw[:size]

    def nats(self, dtype: int, raw: NDArray[np.uint8], targets: Targets) -> Nats:
        """Negative log-softmax at the targets: logits [N, V] as bytes, targets [N] -> nats [N] >= 0.

        Raises Refused if a logit is NaN or infinite, or if the largest of a row that says so is not 0.
        """
        vocab = len(raw) // (ITEM_BYTES[dtype] * len(targets))
        shape = len(targets), vocab
        if dtype == FLOAT16_LESS_LARGEST:
            if self._memory.shape[1] != vocab:
                self._memory = np.empty((max(1, PART_NUMBERS // vocab), vocab), np.float32)
            return less_largest_nats(raw.view(np.int16).reshape(shape), targets, self._memory)
        logits = raw.view(np.uint16 if dtype == BFLOAT16 else np.float32)
        return token_nats(widen(logits).reshape(shape), targets)


def token_nats(logits: NDArray[np.float32], targets: Targets) -> Nats:
    """Negative log-softmax at the targets: logits [N, V], targets [N] -> nats [N] >= 0.

    With m the largest logit, -log p(t) = (m - x_t) + log1p(sum over all others of exp(x - m)). Both terms are
    non-negative, so nothing cancels. The sum runs in float32, and once more in float64 where the model is
    near-certain, so every token is good to a millionth of itself. Finite for every finite input. Raises
    Refused if a logit is NaN or infinite.
    """
    if not math.isfinite(logits.min()) or not math.isfinite(logits.max()):
        raise not_finite()
    nats = _nats(logits, targets)
    certain = nats < NEAR_CERTAIN * logits.shape[1]
    if certain.any():
        nats[certain] = _nats(logits[certain].astype(np.float64), targets[certain])
    return nats


def _nats(logits: NDArray[Any], targets: Targets) -> Nats:
    """The formula of `token_nats` in the precision of the logits."""
    rows = np.arange(len(targets))
    top = logits.argmax(axis=1)
    largest = logits[rows, top]
    gap = largest.astype(np.float64) - logits[rows, targets]
    with np.errstate(
        over="ignore", under="ignore"
    ):  # a difference beyond the type is -inf, its exp rightly 0
        others = logits - largest[:, None]
        np.exp(others, out=others)
    others[rows, top] = 0
    nats: Nats = gap + np.log1p(others.sum(axis=1).astype(np.float64))
    return nats


def less_largest_nats(bits: NDArray[np.int16], targets: Targets, memory: NDArray[np.float32]) -> Nats:
    """`token_nats` of float16 logits less the largest of the row, given as their bits [N, V]; changes them.

    `memory` [n, V] is what a part of them is worked on in, in float32. As integers, the bits of numbers below
    0 are below 0, so the largest integer of a row is 0 if its largest number is: what is above 0 or NaN shows
    there, minus infinity in the largest unsigned one. Nothing is subtracted from anything, so float32 is good
    to a millionth everywhere. torch takes a third of NumPy's time for this. Raises Refused.
    """
    import torch  # takes two seconds, and the other dtypes do without it

    rows = np.arange(len(targets))
    top = bits.argmax(axis=1)
    largest = bits[rows, top]
    if bits.view(np.uint16).max() >= NOT_FINITE_BITS + 0x8000 or largest.max() >= NOT_FINITE_BITS:
        raise not_finite()
    if largest.any():
        raise Refused("protocol", "the largest logit of a row is not 0")
    logits = bits.view(np.float16)
    gap = -logits[rows, targets].astype(np.float64)
    bits[rows, top] = NO_LOGIT
    others = np.empty(len(targets), np.float32)
    for start in range(0, len(targets), len(memory)):
        part = torch.from_numpy(logits[start : start + len(memory)])
        numbers = torch.from_numpy(memory[: len(part)])
        torch.sum(numbers.copy_(part).exp_(), 1, out=torch.from_numpy(others[start : start + len(part)]))
    nats: Nats = gap + np.log1p(others.astype(np.float64))
    return nats


def widen(raw: NDArray[Any]) -> NDArray[np.float32]:
    """float32 unchanged; bfloat16 bits (uint16) as the upper half of a float32."""
    if raw.dtype == np.float32:
        return raw
    upper: NDArray[np.uint32] = np.left_shift(raw, 16, dtype=np.uint32)
    return upper.view(np.float32)
