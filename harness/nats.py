"""The judge's arithmetic: logits in any dtype of the exchange and the true targets → exact nats.

Nothing here trusts a worker to have normalised anything.
"""

import math
import threading
from typing import Any

import numpy as np
from numpy.typing import NDArray

from probes import Nats

Targets = NDArray[np.int64]

# Nats per vocabulary entry. Values below come from logits at least 16 below the largest; a float32 difference
# of that size has an error of up to a millionth, and its exp the same relative error.
NEAR_CERTAIN = 2.0**-23
PART_NUMBERS = 1 << 17  # 512 kB in float32


class Refused(Exception):
    """The worker's answers cannot be scored; `cause` is for programs, the message a line of our own text."""

    def __init__(self, cause: str, detail: str) -> None:
        super().__init__(detail)
        self.cause = cause


def not_finite() -> Refused:
    return Refused("not-finite", "logits hold NaN or infinity")


class Memory(threading.local):
    """One thread's buffers for logits and intermediate results.

    They are reused: allocating memory for every chunk would cost as much as the arithmetic.
    """

    def __init__(self) -> None:
        self._raw = self._numbers = np.empty(0, np.uint8)

    def raw(self, size: int) -> NDArray[np.uint8]:
        """`size` bytes to read logits into."""
        if len(self._raw) < size:
            self._raw = np.empty(size, np.uint8)
        return self._raw[:size]

    def numbers(self, vocab: int) -> NDArray[np.float32]:
        """float32 [some rows, vocab] to work on, half of an L2 cache."""
        rows = max(1, PART_NUMBERS // vocab)
        if len(self._numbers) < 4 * rows * vocab:
            self._numbers = np.empty(4 * rows * vocab, np.uint8)
        return self._numbers[: 4 * rows * vocab].view(np.float32).reshape(rows, vocab)


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
    ):  # an overflowing difference is -inf, whose exp is correctly 0
        others = logits - largest[:, None]
        np.exp(others, out=others)
    others[rows, top] = 0
    nats: Nats = gap + np.log1p(others.sum(axis=1).astype(np.float64))
    return nats


def less_largest_nats(
    logits: NDArray[np.float16], largest: NDArray[np.int32], targets: Targets, memory: NDArray[np.float32]
) -> Nats:
    """`token_nats` for float16 logits [N, V] minus the largest of the row, whose index is `largest` [N].

    Overwrites the largest; `memory` [n, V] is a buffer for n rows at a time. The formula holds for any logit
    in place of the largest, as long as no exp overflows; it has to be 0, and the target's no larger, so that
    nothing needs to be subtracted. Minus infinity means probability 0, as does any logit a hundred below.
    torch takes a third of NumPy's time for this. Raises Refused if the largest is not 0, or if a sum is not
    finite.
    """
    import torch  # takes two seconds, and other dtypes do not need it

    rows = np.arange(len(targets))
    if largest.min() < 0 or largest.max() >= logits.shape[1]:
        raise Refused("protocol", "the largest logit of a row is nowhere in it")
    gap, top = -logits[rows, targets].astype(np.float64), logits[rows, largest]
    logits[rows, largest] = -math.inf
    others, numbers = torch.empty(len(targets)), torch.from_numpy(memory)
    step = len(memory)
    for part, sums in zip(
        torch.split(torch.from_numpy(logits), step), torch.split(others, step), strict=True
    ):
        torch.sum(numbers[: len(part)].copy_(part).exp_(), 1, out=sums)
    with np.errstate(invalid="ignore"):  # refused below
        nats: Nats = gap + np.log1p(others.numpy().astype(np.float64))
    if not np.isfinite(nats).all():
        raise not_finite()
    if top.any() or gap.min() < 0:
        raise Refused("protocol", "the largest logit of a row is not 0")
    return nats


def widen(raw: NDArray[Any]) -> NDArray[np.float32]:
    """float32 unchanged; bfloat16 bits (uint16) as the upper half of a float32."""
    if raw.dtype == np.float32:
        return raw
    upper: NDArray[np.uint32] = np.left_shift(raw, 16, dtype=np.uint32)
    return upper.view(np.float32)
