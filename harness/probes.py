"""Probes of the worker's model: does it see the future, does it see other rows, does it remember?

A probe is a row whose first `agree` predictions must be those of another row that is scored too, its origin:

- a *twin* has the origin's tokens before a cut and another row's real text from there on. What was predicted
  before the cut, that of the true token at the cut included, must not change: otherwise it came from after
  the cut.
- a *repeat* is the origin again, somewhere else among the batches. If it changes, the model looks at the
  other rows of a batch.
- the *encore* is the first batch again, as it was, after everything else. If it changes, the model remembers.

Compared is what is scored, the nats of the true targets, so a leak that helps the score is a difference here.
It is of no use to behave well in twins only (the seam at the cut may be noticed): the leak is then in the
origin, whose score is already committed, and the two differ all the same. Nor can one be good in origins
only: which rows will have twins, and where they are cut, is drawn from a seed the worker does not know.

What these cannot see: a worker that remembers every row it was given can answer a beginning it knows with
what it answered before. For a score that would be kept a second, fresh worker therefore answers twins of
every row (see plan.py); it is given the origins' beginnings only.
"""

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Tokens = NDArray[np.int64]
Nats = NDArray[np.float64]

TWINS_SHARE = 0.2  # at most this many twins for each row to score
REPEATS_SHARE = 0.02  # at least this many repeats; the last batch is filled up with more

# Tolerances in nats, measured on small trained models of six kinds (attention, GRU, causal convolution, the
# same by FFT, linear attention, top-1 experts) at 256 tokens and a vocabulary of 1024. On a CPU, in float32,
# bfloat16 and under autocast, all were exact to the bit except the FFT (largest difference 4e-4). With every
# activation of the bfloat16 models multiplied by 1 + 2**-9 * normal, more than a change of kernels should do,
# the dense models differed by 0.11 at most, 0.012 in the mean magnitude and 0.005 in the mean; the experts,
# whose router then flips for two tokens in a thousand, by 1.1, 0.015 and 0.003. Not measured: a GPU.
LEAST_TOKEN_NATS, MOST_TOKEN_NATS = 0.25, 2.0
LEAST_MEAN_NATS, MOST_MEAN_NATS = 0.005, 0.03
MEAN_ERRORS = 5.0  # standard errors by which a mean may miss LEAST_MEAN_NATS, where they are well known
KNOWN_ERROR_COUNT = 30  # with fewer numbers the standard error itself is a guess


class Twins(NamedTuple):
    """Rows with a different future, [N] of them."""

    rows: Tokens
    """[N, T + 1] tokens: of the origin before the cut, of another row from the cut on."""
    origins: Tokens
    """[N] the row each one is a twin of."""
    cuts: Tokens
    """[N] index of the first token that differs, 1 to T - 1."""


def draw_twins(rows: Tokens, count: int, random: np.random.Generator) -> Twins:
    """Up to `count` twins of different rows [R, T + 1], their cuts spread evenly over 1 to T - 1.

    One cut falls into each of `count` equal parts of the row, at a random place in a random order: each cut
    alone is uniform, and together they leave no gap wider than two parts. Fewer twins only if no row has
    another token at the cut.
    """
    length = rows.shape[1] - 1
    origins = random.permutation(len(rows))[:count]
    strata = (random.permutation(len(origins)) + random.random(len(origins))) / max(1, len(origins))
    cuts = 1 + np.floor(strata * (length - 1)).astype(np.int64)
    twins = rows[origins]
    kept = np.zeros(len(origins), np.bool_)
    for i, (origin, cut) in enumerate(zip(origins, cuts, strict=True)):
        donors = np.flatnonzero(rows[:, cut] != rows[origin, cut])
        if cut < length and len(donors):
            twins[i, cut:] = rows[random.choice(donors), cut:]
            kept[i] = True
    return Twins(twins[kept], origins[kept], cuts[kept])


# --- what a number of twins promises ---------------------------------------------


def chance_to_miss(fraction: float, reach: int, length: int) -> float:
    """Probability that one twin misses a leak; for what is assumed about it see `twins_needed`."""
    cuts = np.arange(1, length)
    return float(np.mean((1 - fraction) ** np.minimum(cuts, reach)))


def twins_needed(fraction: float, miss_probability: float, reach: int, length: int) -> int:
    """How many twins find a leak of this size, but for `miss_probability`.

    The leak: a share `fraction` of all positions, each independently of the others, predicts with the help of
    any token up to `reach` tokens ahead, such that its nats change by more than the tolerance when that text
    is another. A twin cut at c shows it if one of the min(c, reach) positions before the cut leaks. With the
    cut uniform on 1 to T - 1, one twin misses with probability

        m = mean over c of (1 - fraction) ** min(c, reach)

    and N twins of different rows with at most m ** N (evenly spread cuts do no worse: a product of means is
    at most the power of their mean). So N = ln(miss_probability) / ln(m).

    For a leak of the next token alone (reach 1) this is ln(miss_probability) / ln(1 - fraction), and no other
    choice of rows does better: rows with common beginnings form a tree, each further row adds one fork, and
    the position before a fork is the only one at which the next token alone is another.

    Not independent: leaks at the same places of all rows are found more surely, since the cuts are spread;
    leaks gathered in a few rows less surely, a share f of rows by N twins with 1 - (1 - f) ** N at least.
    """
    return math.ceil(math.log(miss_probability) / math.log(chance_to_miss(fraction, reach, length)))


def smallest_leak(twins: int, miss_probability: float, reach: int, length: int) -> float:
    """The smallest fraction that `twins` find but for `miss_probability`: `twins_needed` solved for it.

    1.0 if not even a leak at every position is promised, as without twins.
    """
    if twins == 0:
        return 1.0
    low, high = 0.0, 1.0
    for _ in range(50):
        middle = (low + high) / 2
        if chance_to_miss(middle, reach, length) ** twins > miss_probability:
            low = middle
        else:
            high = middle
    return high


# --- comparing -------------------------------------------------------------------


class Tolerance(NamedTuple):
    """What rounding may do to an honest model, nats."""

    token: float
    """Bound on the difference of one prediction."""
    mean: float
    """Bound on the mean magnitude, and on the mean at any range of distances before the cut."""


REPEATS = Tolerance(MOST_TOKEN_NATS, MOST_MEAN_NATS)
ENCORE = Tolerance(MOST_TOKEN_NATS, LEAST_MEAN_NATS)  # the very same computation twice


class Differences(NamedTuple):
    """Probe minus origin, prediction by prediction: [M] of them."""

    nats: Nats
    distances: Tokens
    """From the end of what must agree, at least 1."""
    probes: Tokens
    """Which probe each belongs to."""


def differences(probe: Nats, origin: Nats, agree: Tokens, first: int = 0, number: int = 0) -> Differences:
    """What must agree of `probe` and `origin`, both [N, C], of the columns from `first` on.

    The first agree[i] columns of the whole row i must. The probes are numbered from `number` on.
    """
    distances = agree[:, None] - np.arange(first, first + probe.shape[1])
    known = distances > 0
    return Differences((probe - origin)[known], distances[known], number + np.nonzero(known)[0])


def join(parts: list[Differences]) -> Differences:
    """All of them as one."""
    return Differences(*map(np.concatenate, zip(*parts, strict=True)))


class Comparison(NamedTuple):
    """How probes of one kind agree with their origins: the differences probe minus origin, in nats."""

    rows: int
    """Probes compared."""
    positions: int
    """Predictions compared."""
    largest: float
    """Largest difference by magnitude."""
    spread: float
    """Mean magnitude of the differences."""
    bias: float
    """Mean in the range of distances where it is furthest from 0; positive: origins do better."""
    error: float
    """Standard error of that mean; infinite if there are too few numbers to know it."""

    def agrees(self, tolerance: Tolerance) -> bool:
        """Is all of it within what rounding does to an honest model?

        Rounding has no direction. Of many numbers the mean must therefore be small however noisy they are, or
        a worker could hide a steady help in noise that it makes itself.
        """
        bias = min(tolerance.mean, LEAST_MEAN_NATS + MEAN_ERRORS * self.error)
        return self.largest <= tolerance.token and self.spread <= tolerance.mean and abs(self.bias) <= bias

    def tolerance(self) -> Tolerance:
        """What repeats that agree so well allow twins: the more the noisier, up to the bounds of repeats."""
        token = min(max(4 * self.largest, LEAST_TOKEN_NATS), MOST_TOKEN_NATS)
        return Tolerance(token, min(max(2 * self.spread, LEAST_MEAN_NATS), MOST_MEAN_NATS))

    def summary(self) -> dict[str, Any]:
        """For the judge's result."""
        return {
            "rows": self.rows,
            "positions": self.positions,
            "largest_nats": round(self.largest, 6),
            "spread_nats": round(self.spread, 6),
            "bias_nats": round(self.bias, 6),
        }


def compare(found: Differences) -> Comparison:
    """Sum up how probes differ from their origins.

    The mean difference is taken by distance d from the end of what must agree, in the ranges d = 1, 2 to 3,
    4 to 7 and so on: a small but steady help from the very next token would vanish in a mean over all
    positions, of which it concerns one in each row.
    """
    change = found.nats
    octave = np.frexp(found.distances)[1]  # 1 for 1, 2 for 2 and 3, 3 for 4 to 7
    counts = np.bincount(octave, minlength=1)
    means = np.bincount(octave, change, minlength=1) / np.maximum(counts, 1)
    worst = int(np.abs(means).argmax())
    there = change[octave == worst]
    known = len(there) >= KNOWN_ERROR_COUNT
    return Comparison(
        rows=len(np.unique(found.probes)),
        positions=len(change),
        largest=float(np.abs(change).max(initial=0)),
        spread=float(np.abs(change).sum() / max(1, len(change))),
        bias=float(means[worst]),
        error=float(there.std(ddof=1)) / math.sqrt(len(there)) if known else math.inf,
    )


def describe(found: Differences, tolerance: Tolerance) -> str:
    """What disagrees, in words and numbers of our own."""
    bad = np.abs(found.nats) > tolerance.token
    compared = compare(found)
    return (
        f"{bad.sum()} of {compared.positions} predictions in {len(np.unique(found.probes[bad]))}"
        f" of {compared.rows} rows are off by more than {tolerance.token:.3g} nats, by"
        f" {compared.largest:.3g} at most; mean magnitude {compared.spread:.3g}, mean at some distance"
        f" {compared.bias:.3g}"
    )
