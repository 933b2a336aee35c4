"""Probes of the worker's model: does it see the future, other rows, or earlier batches?

A probe is a row whose first `agree` predictions must equal those of another row that is also sent, its
origin:

- a *twin* has the origin's tokens before a cut and another row's real text from there on. Predictions before
  the cut, including the one of the token at the cut, must not change: otherwise they depend on what follows
  the cut.
- a *repeat* is the origin again, elsewhere among the batches. If its predictions change, the model looks at
  other rows of a batch.
- the *encore* is the first batch again, unchanged, after everything else. If its predictions change, the
model
  keeps state.

The comparison uses what is scored, the nats of the true targets, so any leak that helps the score shows up as
a difference. Behaving well only in twins (a model may notice the seam at the cut) does not help: then the
leak is in the origin, whose score is already committed, and the two still differ. Behaving well only in
origins that have twins is impossible: which rows these are, and where they are cut, is drawn from a seed that
the worker does not know.

Not detected: a worker that remembers every row it was given can answer a known prefix as it did before. If a
score would be kept, a second, fresh worker therefore answers twins of every row (see plan.py); it is given
only the origins' prefixes.
"""

import math
from collections.abc import Iterator
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Tokens = NDArray[np.int64]
Nats = NDArray[np.float64]

TWINS_SHARE = 0.2  # most twins per row to score
REPEATS_SHARE = 0.02  # fewest repeats per row to score; more fill up the last batch

# Tolerances in nats, from the measurements in docs/decisions/probes.md. The first of each applies if repeats
# and encore are exact; otherwise the tolerance lies between the second and the third.
EXACT_NATS = 1e-6  # no more than the judge's own arithmetic
TOKEN_NATS = (0.1, 0.25, 2.0)
SPREAD_NATS = (0.0002, 0.005, 0.03)
HELP_NATS = (0.0002, 0.005)  # allowed in a confirmation, whatever the noise
FEW_HELP_NATS = 0.03  # the same for the first worker's few twins, without a confidence limit
KNOWN_PROBES = 30  # a range of distances with fewer probes has no reliable mean


class Twins(NamedTuple):
    """N rows with a different future."""

    rows: Tokens
    """[N, T + 1] tokens: of the origin before the cut, of another row from the cut on."""
    origins: Tokens
    """[N] the row each one is a twin of."""
    cuts: Tokens
    """[N] index of the first token that differs, 1 to T - 1."""


def draw_twins(rows: Tokens, count: int, random: np.random.Generator) -> Twins:
    """Up to `count` twins of different rows [R, T + 1], their cuts spread evenly over 1 to T - 1.

    One cut falls into each of `count` equal parts of the row, at a random place and in random order: each cut
    by itself is uniform, and together they leave no gap wider than two parts. There are fewer twins only if
    no row has another token at the cut.
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


# --- what a number of twins detects ----------------------------------------------


def chance_to_miss(fraction: float, reach: int, length: int) -> float:
    """Probability that one twin misses a leak; see `twins_needed` for the assumptions."""
    cuts = np.arange(1, length)
    return float(np.mean((1 - fraction) ** np.minimum(cuts, reach)))


def twins_needed(fraction: float, miss_probability: float, reach: int, length: int) -> int:
    """How many twins detect a leak of this size, except with probability `miss_probability`.

    The leak: a share `fraction` of all positions, independently of each other, uses any token up to `reach`
    tokens ahead, such that its nats change by more than the tolerance if that text is replaced. A twin cut at
    c detects it if one of the min(c, reach) positions before the cut leaks. With the cut uniform on 1 to T -
    1, one twin misses with probability

        m = mean over c of (1 - fraction) ** min(c, reach)

    and N twins of different rows with at most m ** N (evenly spread cuts do no worse: a product of means is
    at most the power of their mean). So N = ln(miss_probability) / ln(m).

    For a leak of only the next token (reach 1) this is ln(miss_probability) / ln(1 - fraction), and no other
    choice of rows does better: rows with common prefixes form a tree, each further row adds one fork, and the
    position before a fork is the only one at which just the next token differs.

    If leaks are not independent: leaks at the same positions of all rows are detected with higher
    probability, since the cuts are spread; leaks in only a share f of the rows, by N twins, with at least 1 -
    (1 - f) ** N.
    """
    return math.ceil(math.log(miss_probability) / math.log(chance_to_miss(fraction, reach, length)))


def smallest_leak(twins: int, miss_probability: float, reach: int, length: int) -> float:
    """The smallest fraction that `twins` twins detect: `twins_needed` solved for `fraction`.

    1.0 if not even a leak at every position is sure to be detected, as without twins.
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
    """The differences that rounding may cause in an honest model, nats."""

    token: float
    """Bound on the difference of one prediction."""
    spread: float
    """Bound on the mean magnitude."""
    help: float
    """Bound on the mean at any range of distances before the cut, its confidence limit included."""
    noise: float = 0.0
    """Root mean square difference of repeats; a lower bound on the uncertainty of means."""
    sigmas: float = 0.0
    """Standard errors from the mean to its confidence limit; 0: use the mean itself."""


# The mean by distance is meaningless for repeats, which have no cut. Their spread bounds it.
REPEATS = Tolerance(TOKEN_NATS[2], SPREAD_NATS[2], math.inf)
ENCORE = Tolerance(TOKEN_NATS[2], SPREAD_NATS[1], math.inf)  # exactly the same computation twice


class Differences(NamedTuple):
    """M differences, probe minus origin, one per prediction."""

    nats: Nats
    distances: Tokens
    """[M] distances from the end of what must agree, at least 1."""
    probes: Tokens
    """[M] which probe each belongs to."""


def differences(probe: Nats, origin: Nats, agree: Tokens, first: int = 0, number: int = 0) -> Differences:
    """Differences of `probe` and `origin`, both [N, C], columns `first` and up, where they must agree.

    Row i must agree in its first agree[i] columns. The probes are numbered from `number` on.
    """
    distances = agree[:, None] - np.arange(first, first + probe.shape[1])
    known = distances > 0
    return Differences((probe - origin)[known], distances[known], number + np.nonzero(known)[0])


def join(parts: list[Differences]) -> Differences:
    """Concatenate differences."""
    return Differences(*map(np.concatenate, zip(*parts, strict=True)))


class Range(NamedTuple):
    """The differences in one range of distances from the end of what must agree, nats."""

    probes: int
    mean: float
    """Positive: origins do better."""
    error: float
    """Standard error of the mean; each probe counts as one observation, however many positions it has."""
    weight: float
    """How much the single most extreme probe shifts the mean."""

    def limit(self, sigmas: float, noise: float) -> float:
        """The largest mean, by magnitude, that is still likely: `sigmas` standard errors from the observed.

        Rare help is rarely observed, and then its mean is not normally distributed: if an event was observed
        k times, up to k + z^2 / 2 + z sqrt(k) were to be expected, within 5 % for k > 1 and z = 3.
        """
        error = max(self.error, noise / math.sqrt(self.probes))
        return abs(self.mean) + sigmas * error + sigmas**2 / 2 * self.weight


class Comparison(NamedTuple):
    """How well probes of one kind agree with their origins: differences probe minus origin, in nats."""

    rows: int
    """Probes compared."""
    positions: int
    """Predictions compared."""
    largest: float
    """Largest difference by magnitude."""
    spread: float
    """Mean magnitude of the differences."""
    noise: float
    """Root of their mean square."""
    ranges: tuple[Range, ...]
    """By distance: 1, 2 to 3, 4 to 7 and so on, where KNOWN_PROBES or more were compared."""

    @property
    def bias(self) -> float:
        """The mean of the range in which it is furthest from 0."""
        return max((there.mean for there in self.ranges), key=abs, default=0.0)

    def help(self, tolerance: Tolerance) -> float:
        """The largest mean help at any distance that is still likely given these differences."""
        return max((there.limit(tolerance.sigmas, tolerance.noise) for there in self.ranges), default=0.0)

    def agrees(self, tolerance: Tolerance) -> bool:
        """Whether everything is within what rounding does to an honest model.

        Rounding has no direction; any useful leak has one. The mean must be shown to be small, and noise,
        which a worker could add at will, only makes that harder.
        """
        return (
            self.largest <= tolerance.token
            and self.spread <= tolerance.spread
            and self.help(tolerance) <= tolerance.help
        )

    def summary(self) -> dict[str, Any]:
        """For the judge's result. Two digits only: a worker could send a message in more."""
        return {
            "rows": self.rows,
            "positions": self.positions,
            "largest_nats": two_digits(self.largest),
            "spread_nats": two_digits(self.spread),
            "bias_nats": two_digits(self.bias),
        }


def twin_tolerance(same: tuple[Comparison, ...], sigmas: float) -> Tolerance:
    """The tolerance for twins, given how answers to the `same` rows differed when repeated.

    The noisier those are, the more single predictions may differ, up to the bounds of repeats; means may not.
    `sigmas` is 0 for the few twins of the first worker.
    """
    largest = max(compared.largest for compared in same)
    exact = largest <= EXACT_NATS
    token, spread, steady = (
        bounds[0] if exact else bounds[1] for bounds in (TOKEN_NATS, SPREAD_NATS, HELP_NATS)
    )
    return Tolerance(
        token=min(max(4 * largest, token), TOKEN_NATS[2]),
        spread=min(max(2 * max(compared.spread for compared in same), spread), SPREAD_NATS[2]),
        help=steady if sigmas else FEW_HELP_NATS,
        noise=max(compared.noise for compared in same),
        sigmas=sigmas,
    )


def sigmas_of(miss_probability: float) -> float:
    """How many standard errors a normal variable exceeds its mean by with this probability."""
    return NormalDist().inv_cdf(1 - miss_probability)


def compare(found: Differences) -> Comparison:
    """Summarise how probes differ from their origins.

    The mean difference is taken by distance d from the end of what must agree, in the ranges d = 1, 2 to 3,
    4 to 7 and so on: a small but steady help from the very next token affects one position per row and would
    vanish in a mean over all positions.
    """
    change = found.nats
    return Comparison(
        rows=len(np.unique(found.probes)),
        positions=len(change),
        largest=float(np.abs(change).max(initial=0)),
        spread=float(np.abs(change).sum() / max(1, len(change))),
        noise=math.sqrt(float(np.square(change).sum()) / max(1, len(change))),
        ranges=tuple(_ranges(found)),
    )


def _ranges(found: Differences) -> Iterator[Range]:
    """The ranges of distances with enough probes."""
    octaves = np.frexp(found.distances)[1]  # 1 for 1, 2 for 2 and 3, 3 for 4 to 7
    for octave in np.unique(octaves):
        here = octaves == octave
        counts = np.bincount(found.probes[here])
        there = counts > 0
        counts, sums = counts[there], np.bincount(found.probes[here], found.nats[here])[there]
        probes, positions = len(counts), counts.sum()
        if probes < KNOWN_PROBES:
            continue
        mean = sums.sum() / positions
        residues = np.abs(sums - mean * counts)
        error = math.sqrt(np.square(residues).sum() * probes / (probes - 1)) / positions
        yield Range(probes, float(mean), float(error), float(residues.max() / positions))


def two_digits(number: float) -> float:
    """Rounded to two significant digits."""
    return float(f"{number:.1e}")


def describe(found: Differences, tolerance: Tolerance) -> str:
    """What disagrees, in our own words and with as few digits as a person needs."""
    bad = np.abs(found.nats) > tolerance.token
    compared = compare(found)
    rows = len(np.unique(found.probes[bad])) / max(1, compared.rows)
    return (
        f"by up to {compared.largest:.1g} nats where {tolerance.token:.1g} are rounding, beyond it in"
        f" {rows:.0%} of rows; on average by {compared.spread:.1g}, in one direction by {compared.bias:.1g}"
        " at some distance"
    )
