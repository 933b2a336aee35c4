"""What the judge sends: the rows to score mixed with probes, and the rows for a second worker to confirm.

The first worker answers a `Plan`: every row once, with twins, repeats and the encore among them (probes.py).
If the score would be kept, a second worker, a fresh process that has seen none of it, answers a
`Confirmation`: twins of the scored rows, to be compared with what the first worker answered there.

What the second worker can know determines what its answers prove. To repeat a leak it would need the true
token after the cut, and that token is nowhere in its input:

- Twins are sent in order of their cuts, so that before the answer for a cut at c, nothing of any origin from
c on
  is known; and two twins of one row are at least SLOTS batches apart, since that many are in flight.
- Every alternative future is taken from decoys, a few rows drawn from the seed that are not origins
themselves.

Such a row is cut to one of a few lengths: its future does not matter as long as it is not the true one, and
short rows cost less. If a model answers short rows differently from whole ones, its worker gives it whole
rows (answers.py).

It does not help the second worker to notice that it is being probed, or where the cut is: what it must repeat
is on record, and it can only repeat what follows from the tokens before the cut. Nor can anything reach the
first worker: it has ended, with its answers on record, before the second one starts.

Decoys are also sent unchanged, before the twins. A fresh process must answer them as the first worker did:
otherwise the first worker used more than the row, for instance what it learnt from other rows.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple

import numpy as np
from exchange import SLOTS
from numpy.typing import NDArray

import probes
from probes import Tokens

# Most decoys, and at most one row in eight. Few, since decoys are not checked for leaks; but enough to offer
# another token at any cut.
DECOYS, DECOYS_SHARE = 16, 8
LENGTHS = 8  # twins are an eighth of a row long, or two eighths, ...


class Batch(NamedTuple):
    """One request and what its answer is scored against."""

    inputs: NDArray[np.int32]
    """[B, T] tokens; the only part that leaves this process."""
    targets: Tokens
    """[B, last - first] the token that follows each input in columns first to last - 1."""
    first: int
    last: int


class Role(IntEnum):
    """Why a row is sent. Only the first two count."""

    VALIDATION = 0
    HOLDOUT = 1
    TWIN = 2  # another row up to a cut, see probes.py
    REPEAT = 3  # another row among other neighbours; also fills up the last batch
    ENCORE = 4  # of the first batch, sent once more after the last one


@dataclass(frozen=True)
class Plan:
    """Everything that will be sent, in sending order, and what it will be scored against."""

    inputs: NDArray[np.int32]
    """[rows, T] tokens; the only part that leaves this process."""
    targets: Tokens
    """[rows, T] the token that follows each input; for a twin its origin's tokens."""
    roles: NDArray[np.int8]
    """[rows] a `Role` each."""
    origins: Tokens
    """[rows] the row that each must agree with; itself if it is not a probe."""
    agree: Tokens
    """[rows] how many of its first predictions must agree."""
    places: Tokens
    """[R] position of each row to score, validation first."""

    def batches(self, batch_rows: int) -> list[Batch]:
        """All rows as batches, every column wanted."""
        starts = range(0, len(self.inputs), batch_rows)
        length = self.inputs.shape[1]
        return [
            Batch(self.inputs[i : i + batch_rows], self.targets[i : i + batch_rows], 0, length)
            for i in starts
        ]


def make_plan(validation: Tokens, holdout: Tokens, batch_rows: int, seed: int, twins: int) -> Plan:
    """Mix the rows [., T + 1] of both splits and their probes in an order drawn from `seed`.

    Every batch is full, and the first one is repeated at the end.
    """
    random = np.random.default_rng(seed)
    rows = np.concatenate([validation, holdout])
    drawn = probes.draw_twins(rows, twins, random)
    least = len(rows) + len(drawn.rows) + math.ceil(probes.REPEATS_SHARE * len(rows))
    total = math.ceil(least / batch_rows) * batch_rows
    repeats = random.choice(len(rows), size=total - len(rows) - len(drawn.rows))

    whole = rows.shape[1] - 1
    parts = [len(validation), len(holdout), len(drawn.rows), len(repeats)]
    roles = np.repeat(np.array([Role.VALIDATION, Role.HOLDOUT, Role.TWIN, Role.REPEAT], np.int8), parts)
    inputs = np.concatenate([rows, drawn.rows, rows[repeats]])[:, :-1].astype(np.int32)
    origins = np.concatenate([np.arange(len(rows)), drawn.origins, repeats])
    targets = rows[origins, 1:]
    agree = np.where(roles == Role.TWIN, 0, whole)
    agree[roles == Role.TWIN] = drawn.cuts

    order = random.permutation(total)
    place = np.argsort(order)
    first = np.arange(batch_rows)
    encore = order[first]
    return Plan(
        inputs=np.concatenate([inputs[order], inputs[encore]]),
        targets=np.concatenate([targets[order], targets[encore]]),
        roles=np.concatenate([roles[order], np.full(batch_rows, Role.ENCORE, np.int8)]),
        origins=np.concatenate([place[origins[order]], first]),
        agree=np.concatenate([agree[order], np.full(batch_rows, whole)]),
        places=place[: len(rows)],
    )


# --- the confirmation ------------------------------------------------------------


class Question(NamedTuple):
    """One batch for the second worker, and what its answers must agree with."""

    batch: Batch
    origins: Tokens
    """[B] the scored row that each must agree with, by its index among the rows to score."""
    agree: Tokens
    """[B] how many of its first predictions must agree; 0: padding."""


class Confirmation(NamedTuple):
    """Everything sent to the second worker, in order: fresh rows, controls, twins."""

    fresh: list[Batch]
    """The fresh rows, every column wanted; some are repeated to fill the last batch."""
    controls: list[Question]
    twins: list[Question]


def make_confirmation(
    rows: Tokens, fresh: Tokens, batch_rows: int, seed: int, twins: int, window: int
) -> Confirmation:
    """Fresh rows [., T + 1], decoys of the rows [R, T + 1], then `twins` twins, some of each other row.

    At least as many twins as there are rows, at most as many as there are different ones. A batch has
    `batch_rows` rows, or more if they are short; all batches of one length have the same number. Answers are
    wanted for `window` columns before the cuts of a batch.
    """
    random = np.random.default_rng([seed, 2])
    mixed = random.permutation(len(rows))
    count = max(1, min(DECOYS, len(rows) // DECOYS_SHARE))
    decoys, origins = mixed[:count], mixed[count:]
    # With at most half the rows in flight, there is always a choice of the next one.
    most_rows = max(1, len(origins) // (2 * SLOTS))
    batch_rows = min(batch_rows, most_rows)
    length = rows.shape[1] - 1
    number = min(max(twins, len(rows)), len(origins) * (length - 1))
    order = origins[_cycles(len(origins), number, SLOTS * most_rows, random)]
    # One cut in each of equal parts of the row, in rising order.
    cuts = 1 + np.floor((np.arange(len(order)) + random.random(len(order))) / len(order) * (length - 1))
    return Confirmation(
        [
            _whole(np.resize(fresh[i : i + batch_rows], (batch_rows, length + 1)))
            for i in range(0, len(fresh), batch_rows)
        ],
        [
            _control(rows, np.resize(decoys[i : i + batch_rows], batch_rows))
            for i in range(0, len(decoys), batch_rows)
        ],
        [
            _twins(rows, decoys, order[part], cuts[part].astype(np.int64), shape, window, random)
            for part, shape in _portions(cuts, batch_rows, most_rows, length)
        ],
    )


def _portions(
    cuts: NDArray[np.float64], batch_rows: int, most_rows: int, length: int
) -> Iterator[tuple[slice, tuple[int, int]]]:
    """(twins, (rows, columns)) of each batch; the last batch of a length may not be full."""
    lengths = sorted({math.ceil(length * part / LENGTHS) for part in range(1, LENGTHS + 1)})
    start = 0
    for columns in lengths:
        end = int(np.searchsorted(cuts, columns))  # at least one token after the cut is included
        rows = min(most_rows, batch_rows * length // columns)
        for first in range(start, end, rows):
            yield slice(first, min(first + rows, end)), (rows, columns)
        start = end


def _cycles(origins: int, number: int, gap: int, random: np.random.Generator) -> Tokens:
    """[number] origins: repeated random permutations of all of them, none twice within `gap` places.

    Since cuts rise, each origin is cut once in each part of the row that a cycle covers, at a place that
    cannot be predicted from earlier cuts: leaks concentrated in a few rows, or at regular distances, are
    found as reliably as any.
    """
    cycle = random.permutation(origins).tolist()
    found = list(cycle)
    while len(found) < number and origins >= gap:
        free, waiting = cycle[: origins - gap + 1], cycle[origins - gap + 1 :]
        cycle = []
        while free:
            pick = int(random.integers(len(free)))
            free[pick], free[-1] = free[-1], free[pick]
            cycle.append(free.pop())
            if waiting:
                free.append(waiting.pop(0))
        found += cycle
    return np.array(found[:number], np.int64)


def _whole(rows: Tokens) -> Batch:
    """Unchanged rows, every column wanted."""
    return Batch(rows[:, :-1].astype(np.int32), rows[:, 1:], 0, rows.shape[1] - 1)


def _control(rows: Tokens, decoys: Tokens) -> Question:
    return Question(_whole(rows[decoys]), decoys, np.full(len(decoys), rows.shape[1] - 1))


def _twins(
    rows: Tokens,
    decoys: Tokens,
    origins: Tokens,
    cuts: Tokens,
    shape: tuple[int, int],
    window: int,
    random: np.random.Generator,
) -> Question:
    """A batch of twins of `origins` with `shape` [B, L], filled up with decoys.

    A row is also replaced by a decoy if no decoy differs from it at the cut.
    """
    count, columns = shape
    first, last = max(0, int(cuts.min()) - window), int(cuts.max())
    origins = np.concatenate([origins, np.full(count - len(origins), decoys[0])])
    agree = np.concatenate([cuts, np.zeros(count - len(cuts), np.int64)])
    inputs = rows[origins, :columns].astype(np.int32)
    for i, cut in enumerate(cuts.tolist()):
        others = decoys[rows[decoys, cut] != rows[origins[i], cut]]
        if len(others):
            inputs[i, cut:] = rows[random.choice(others), cut:columns]
        else:
            inputs[i], agree[i] = rows[decoys[0], :columns], 0
    return Question(Batch(inputs, rows[origins, first + 1 : last + 1], first, last), origins, agree)
