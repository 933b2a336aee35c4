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
from collections.abc import Iterator
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Tokens = NDArray[np.int64]
Nats = NDArray[np.float64]

TWINS_SHARE = 0.2  # at most this many twins for each row to score
REPEATS_SHARE = 0.02  # at least this many repeats; the last batch is filled up with more

# Tolerances in nats; docs/decisions/probes.md has the measurements that they come from. The first of each
# three holds where repeats and the encore are exact; elsewhere the second is the least, the third the most.
EXACT_NATS = 1e-6  # no more than the arithmetic of the judge itself
TOKEN_NATS = (0.1, 0.25, 2.0)
SPREAD_NATS = (0.0002, 0.005, 0.03)
HELP_NATS = (0.0002, 0.005)  # what a confirmation lets pass, whatever the noise
FEW_HELP_NATS = 0.03  # the same of so few twins as the first worker gets, as estimated
KNOWN_PROBES = 30  # with fewer probes in a range of distances its mean is a guess


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
    spread: float
    """Bound on the mean magnitude."""
    help: float
    """Bound on the mean at any range of distances before the cut, its confidence limit included."""
    noise: float = 0.0
    """Root mean square of what repeats show: means are taken to be known no better than that allows."""
    sigmas: float = 0.0
    """How many standard errors the confidence limit is away from the mean; 0: the mean itself is meant."""


# The mean of repeats by distance says nothing: they have no cut. Their spread bounds it.
REPEATS = Tolerance(TOKEN_NATS[2], SPREAD_NATS[2], math.inf)
ENCORE = Tolerance(TOKEN_NATS[2], SPREAD_NATS[1], math.inf)  # the very same computation twice


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


class Range(NamedTuple):
    """The differences in one range of distances from the end of what must agree, nats."""

    probes: int
    mean: float
    """Positive: origins do better."""
    error: float
    """Standard error of the mean. What one probe shows counts as one observation, however many positions."""
    weight: float
    """What the single probe that is furthest from the mean moves it by."""

    def limit(self, sigmas: float, noise: float) -> float:
        """The largest mean that is still likely, by magnitude: so many standard errors from the one found.

        A help that is given rarely is found rarely, and then its mean is no normal variable: of events that
        come k times, up to k + z^2 / 2 + z sqrt(k) were to be expected, within 5 % for k > 1 and z = 3.
        """
        error = max(self.error, noise / math.sqrt(self.probes))
        return abs(self.mean) + sigmas * error + sigmas**2 / 2 * self.weight


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
    noise: float
    """Root of their mean square."""
    ranges: tuple[Range, ...]
    """By distance: 1, 2 to 3, 4 to 7 and so on, where KNOWN_PROBES or more were compared."""

    @property
    def bias(self) -> float:
        """The mean in the range where it is furthest from 0."""
        return max((there.mean for there in self.ranges), key=abs, default=0.0)

    def help(self, tolerance: Tolerance) -> float:
        """The largest mean help at any distance that these differences leave likely."""
        return max((there.limit(tolerance.sigmas, tolerance.noise) for there in self.ranges), default=0.0)

    def agrees(self, tolerance: Tolerance) -> bool:
        """Is all of it within what rounding does to an honest model?

        Rounding has no direction, a leak that is worth anything has one. The mean must be shown to be small:
        noise, of which a worker can make as much as it likes, only makes that harder.
        """
        return (
            self.largest <= tolerance.token
            and self.spread <= tolerance.spread
            and self.help(tolerance) <= tolerance.help
        )

    def summary(self) -> dict[str, Any]:
        """For the judge's result. Two digits: a worker could speak with more."""
        return {
            "rows": self.rows,
            "positions": self.positions,
            "largest_nats": two_digits(self.largest),
            "spread_nats": two_digits(self.spread),
            "bias_nats": two_digits(self.bias),
        }


def twin_tolerance(same: tuple[Comparison, ...], sigmas: float) -> Tolerance:
    """What twins may differ by where answers to the `same` rows, asked again, differ as these do.

    The noisier those are, the further a single prediction may be off, up to the bounds of repeats; a mean may
    not. `sigmas` is 0 for the few twins of the first worker.
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
    """So many standard errors is a normal variable above its mean with this probability."""
    return NormalDist().inv_cdf(1 - miss_probability)


def compare(found: Differences) -> Comparison:
    """Sum up how probes differ from their origins.

    The mean difference is taken by distance d from the end of what must agree, in the ranges d = 1, 2 to 3,
    4 to 7 and so on: a small but steady help from the very next token would vanish in a mean over all
    positions, of which it concerns one in each row.
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
    """What disagrees, in words and numbers of our own: as few digits as a person needs."""
    bad = np.abs(found.nats) > tolerance.token
    compared = compare(found)
    rows = len(np.unique(found.probes[bad])) / max(1, compared.rows)
    return (
        f"by up to {compared.largest:.1g} nats where {tolerance.token:.1g} are rounding, beyond it in"
        f" {rows:.0%} of rows; on average by {compared.spread:.1g}, in one direction by {compared.bias:.1g}"
        " at some distance"
    )
