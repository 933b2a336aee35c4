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
what it answered before. Only a second worker, one that never saw the origins, could answer the twins without
that. What bounds such a worker's gain here is the last prediction of each row: its true token is never sent,
so it cannot be better than honest, and it must not be much worse than the others (`look_at_edge`).
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

# Honest models, trained for a minute on real text: an excess of 0.2 nats or less, with a standard error of
# 0.12 over 384 rows of 256 tokens.
EDGE_NATS = 0.5
EDGE_ERRORS = 5.0  # standard errors on top
EDGE_ROWS = 100  # with fewer rows the standard error itself is a guess, and nothing is concluded


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

    def agrees(self, tolerance: Tolerance) -> bool:
        """Is all of it within what rounding does to an honest model?"""
        return self.largest <= tolerance.token and max(abs(self.bias), self.spread) <= tolerance.mean

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


def compare(probe: Nats, origin: Nats, agree: Tokens) -> Comparison:
    """Compare the first agree[i] columns of row i of `probe` and `origin`, both [N, T]; agree [N].

    The mean difference is taken by distance d from the end of what must agree, in the ranges d = 1, 2 to 3,
    4 to 7 and so on: a small but steady help from the very next token would vanish in a mean over all
    positions, of which it concerns one in each row.
    """
    distances = agree[:, None] - np.arange(probe.shape[1])
    known = distances > 0
    change = (probe - origin)[known]
    octave = np.frexp(distances[known])[1]  # 1 for 1, 2 for 2 and 3, 3 for 4 to 7
    sums, counts = np.bincount(octave, change), np.bincount(octave)
    means = sums[counts > 0] / counts[counts > 0]
    return Comparison(
        rows=len(probe),
        positions=len(change),
        largest=float(np.abs(change).max(initial=0)),
        spread=float(np.abs(change).sum() / max(1, len(change))),
        bias=float(max(means, key=abs, default=0.0)),
    )


def describe(probe: Nats, origin: Nats, agree: Tokens, tolerance: Tolerance) -> str:
    """What disagrees, in words and numbers of our own."""
    bad = (np.abs(probe - origin) > tolerance.token) & (np.arange(probe.shape[1]) < agree[:, None])
    found = compare(probe, origin, agree)
    return (
        f"{bad.sum()} of {found.positions} predictions in {bad.any(axis=1).sum()} of {found.rows} rows"
        f" are off by more than {tolerance.token:.3g} nats, by {found.largest:.3g} at most;"
        f" mean magnitude {found.spread:.3g}, mean at some distance {found.bias:.3g}"
    )


# --- the last prediction ---------------------------------------------------------


class Edge(NamedTuple):
    """How the last prediction of each row compares with the others."""

    rows: int
    excess: float
    """Mean over the rows of nats at the last position minus the mean of nats before it."""
    bound: float
    """EDGE_NATS and EDGE_ERRORS standard errors of the excess."""

    @property
    def agrees(self) -> bool:
        """Is the excess no more than a honest model may have? Yes if there are too few rows to tell."""
        return self.rows < EDGE_ROWS or self.excess <= self.bound

    def summary(self) -> dict[str, Any]:
        """For the judge's result."""
        return {
            "rows": self.rows,
            "excess_nats": round(self.excess, 6),
            "bound_nats": round(self.bound, 6),
        }


def look_at_edge(nats: Nats) -> Edge:
    """Compare the last column of nats [R, T], T > 1, with the mean of the others.

    A model that sees tokens ahead lacks them here. The first positions of a row, which have little context,
    make the others worse if anything.
    """
    excess = nats[:, -1] - nats[:, :-1].mean(axis=1)
    error = float(excess.std()) / math.sqrt(len(excess))
    return Edge(len(excess), float(excess.mean()), EDGE_NATS + EDGE_ERRORS * error)
