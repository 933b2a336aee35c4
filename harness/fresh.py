"""Which rows are scored, which are fresh, and whether a model does worse on the fresh ones.

The judge's text is packed into rows and shuffled, always the same way. The first rows are *scored*: the same
ones in every scoring, so that scores compare. The others are the *reserve*: each scoring of an effort takes
the next few of them, its *fresh* rows, which no worker was ever given before. They are the hold-out, and a
tripwire: a worker has to see the scored rows, and a later run may learn what it saw, but cannot have learnt
about fresh rows. Scored and fresh rows are random samples of one text, so any model that has seen neither
does equally well on both, and one that knows scored rows does better on those.

The reserve is finite. Most scores are discarded and need little proof: a quarter of the reserve is for first
workers, a few rows each. The rest is for confirmations, in larger portions: if a share f of the scored rows
is known, K fresh rows reveal it with an error of (1 - f) ** K at best. Each portion is a share of what is
left. Once all rows have been used they are reused in the same order, and the result says so.
"""

import itertools
import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from prepare import pack_rows, read_documents

Tokens = NDArray[np.int64]
Numbers = NDArray[np.floating[Any]]

PACKING_BUFFER = 1000  # documents the packer chooses from; upstream's loader uses the same number
POOL_TOKENS = 1 << 25  # of each split, at most: packing them takes a fraction of a second
ENOUGH = 16  # a validation split this many times larger than what is scored does not need the hold-out split
ORDER_SEED = 20_261_127

SCORING_SHARE = 4  # a quarter of the reserve is for first workers

# A frontier is selected by its score on the scored rows, so it is slightly better on those by selection
# alone: over two hundred experiments, by less than a hundredth of the score.
SLACK = 0.01
# A p-value is estimated by sampling, which stops early once enough samples are as extreme as the observation.
DRAWINGS, CHUNK, SETTLED = 40_000, 1000, 20


class Portions(NamedTuple):
    """The portions in which a reserve is used."""

    least: int
    """Fewest rows at a time, if there is room."""
    share: int
    """A portion is at least this fraction, 1 / share, of what is left."""
    aside: int
    """Rows set aside for scorings outside any effort."""


SCORING, CONFIRMATION = Portions(8, 512, 8), Portions(32, 64, 128)


class Portion(NamedTuple):
    """The fresh rows of one worker."""

    rows: Tokens
    """[K, T + 1] tokens."""
    left: int
    """Rows left in that part of the reserve after these."""
    asked_before: bool
    """That part of the reserve is used up, so some of these rows were used before."""


class Rows(NamedTuple):
    """The rows of one scoring, before probes are added."""

    scored: Tokens
    """[R, T + 1] tokens."""
    first: Portion
    """Fresh rows for the first worker."""
    second: Portion
    """Fresh rows for the second worker, if there is one."""


def draw(
    data: Path,
    manifest: dict[str, Any],
    *,
    score_tokens: int,
    most_fresh_tokens: int,
    scoring: int | None,
    confirmation: int | None,
) -> Rows:
    """The rows of scoring number `scoring` of an effort and of confirmation `confirmation`, both from 0.

    None: a scoring outside any effort. It gets the rows that are set aside and reused for such scorings.
    `score_tokens` are rounded up to whole rows; at least a quarter of all text is kept in reserve. Raises
    ValueError if there is not enough text for that.
    """
    length = int(manifest["max_seq_len"])
    wanted = math.ceil(score_tokens / length)
    pool = read_pool(data, length, int(manifest["bos_token_id"]), wanted)
    count = min(wanted, len(pool) - len(pool) // 4)
    if count == len(pool):
        raise ValueError("there are too few rows to keep any in reserve")
    scored, reserve = pool[:count], pool[count:]
    cut, most = math.ceil(len(reserve) / SCORING_SHARE), max(1, most_fresh_tokens // length)
    return Rows(
        scored,
        _portion(reserve[:cut], SCORING, most, scoring),
        _portion(reserve[cut:] if cut < len(reserve) else reserve, CONFIRMATION, most, confirmation),
    )


def _portion(reserve: Tokens, portions: Portions, most: int, number: int | None) -> Portion:
    aside = min(portions.aside, len(reserve) // 4)
    size = len(reserve) - aside
    if number is None:
        return Portion(reserve[-max(1, aside) :], size, asked_before=True)
    first, count = schedule(portions, size, most, number)
    places = np.arange(first, first + count) % size
    return Portion(reserve[places], max(0, size - first - count), asked_before=first + count > size)


def read_pool(data: Path, length: int, bos_token_id: int, wanted: int) -> Tokens:
    """All available rows, int64 [N, length + 1], in a fixed random order.

    From the validation split, and from the hold-out split too if the former is small. Raises ValueError if
    there are no rows.
    """
    rows: list[NDArray[np.int32]] = []
    for split in ("val", "holdout"):
        if len(rows) >= ENOUGH * wanted:
            break
        packed = pack_rows(read_documents(data / split, bos_token_id), length + 1, PACKING_BUFFER)
        rows += [row.astype(np.int32) for row in itertools.islice(packed, POOL_TOKENS // length)]
    if not rows:
        raise ValueError("no rows to score")
    pool = np.stack(rows)
    return pool[np.random.default_rng(ORDER_SEED).permutation(len(pool))].astype(np.int64)


def schedule(portions: Portions, size: int, most: int, number: int) -> tuple[int, int]:
    """(first row, number of rows) of portion `number`, from 0, of `size` rows that are used cyclically.

    At most `most` rows at a time, and never more than there are.
    """
    least, first = min(portions.least, most, size), 0
    for _ in range(number):
        first += max(least, min(max(0, size - first) // portions.share, most))
    return first, max(least, min(max(0, size - first) // portions.share, most))


# --- scored against fresh ---------------------------------------------------------


class Comparison(NamedTuple):
    """How much worse a model does on fresh rows than on scored rows of equal difficulty."""

    gap: float
    """Bits per byte; positive: worse on the fresh ones."""
    fresh_error: float
    """Standard error of the gap due to the choice of fresh rows, bits per byte."""
    scored_error: float
    """The same due to the choice of scored rows, which is the same in all scorings."""
    p_value: float
    """Probability of a gap at least this large for a model that knows neither. At least 1 / 40,001."""


def compare(nats: Numbers, sizes: Tokens, costs: Numbers, fresh: NDArray[np.bool_], seed: int) -> Comparison:
    """Compare rows by the model's nats beyond what their length and tokens predict.

    nats, sizes, costs, fresh: [N], one number per row: the model's nats over the tokens that stand for text,
    the bytes these stand for, their nats under the text's unigram distribution, and which rows are fresh.
    Rows vary widely in difficulty; a least-squares fit of the nats by bytes and costs, over all rows
    together, removes most of that (at the CPU scale the standard deviation falls from 0.6 to 0.27 bits per
    byte) and treats all rows alike.

    The p-value is that of a permutation test: if neither kind of row is known, every choice of K rows out of
    all of them is equally likely to be the fresh ones, so it is exact for any model and text. It allows for
    SLACK. It is estimated by sampling that stops early if it is large, as in Besag and Clifford,
    "Sequential Monte Carlo p-values", Biometrika 78 (1991).
    """
    design = np.stack([np.ones(len(nats)), sizes.astype(np.float64), costs], axis=1)
    weights = np.linalg.lstsq(design, nats, rcond=None)[0]
    excess = (nats - design @ weights) / (math.log(2) * sizes.mean())
    ours, others = excess[fresh], excess[~fresh]
    spread = math.sqrt((_squares(ours) + _squares(others)) / max(1, len(excess) - 2))
    slack = SLACK * float(nats.sum()) / (math.log(2) * float(sizes.sum()))
    return Comparison(
        gap=float(ours.mean() - others.mean()),
        fresh_error=spread / math.sqrt(len(ours)),
        scored_error=spread / math.sqrt(len(others)),
        p_value=_permuted(np.where(fresh, excess - slack, excess), fresh, seed),
    )


def result(drawn: Rows, rows: Tokens, nats: Numbers, token_bytes: Tokens, seed: int) -> dict[str, Any]:
    """For the judge's result: how a model does on scored and on fresh rows.

    rows: [R + K, T + 1] the scored rows, the first portion, and the second one if it was used; nats: [R + K,
    T]; token_bytes: [vocab] bytes that each token stands for.
    """
    targets, asked = rows[:, 1:], len(rows) - len(drawn.scored)
    both = asked > len(drawn.first.rows)
    counted = token_bytes[targets] > 0
    shares = np.bincount(targets[counted], minlength=len(token_bytes)) / max(1, counted.sum())
    surprise = -np.log(np.where(shares > 0, shares, 1.0))
    found = compare(
        np.where(counted, nats, 0.0).sum(axis=1),
        token_bytes[targets].sum(axis=1),
        np.where(counted, surprise[targets], 0.0).sum(axis=1),
        np.arange(len(rows)) >= len(drawn.scored),
        seed,
    )
    numbers = {name: round(value, 6) for name, value in found._asdict().items()} | {"p_value": found.p_value}
    left = drawn.first.left + drawn.second.left + (0 if both else len(drawn.second.rows))
    asked_before = drawn.first.asked_before or (both and drawn.second.asked_before)
    return {"rows": asked, "left": left, "asked_before": asked_before} | numbers


def _squares(numbers: Numbers) -> float:
    """Sum of squared deviations from the mean."""
    return float(((numbers - numbers.mean()) ** 2).sum())


def _permuted(excess: Numbers, fresh: NDArray[np.bool_], seed: int) -> float:
    """How often a random choice of K rows has a mean at least as large as that of the fresh rows."""
    random = np.random.default_rng([seed, 3])
    count, seen = int(fresh.sum()), float(excess[fresh].sum())
    extreme = drawn = 0
    while drawn < DRAWINGS and extreme < SETTLED:
        chosen = np.argpartition(random.random((CHUNK, len(excess))), count - 1, axis=1)[:, :count]
        extreme += int((excess[chosen].sum(axis=1) >= seen - 1e-12).sum())
        drawn += CHUNK
    return (extreme + 1) / (drawn + 1)
