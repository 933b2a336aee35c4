"""What passes for rounding: noise that a worker makes on purpose gains it nothing, a machine's own passes."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import probes
from probes import Comparison, Differences, Nats

TWINS = 6905
SIGMAS = probes.sigmas_of(0.001)
LIMIT = probes.HELP_NATS[1]

Noise = Callable[[np.random.Generator, int], Nats]
"""Numbers of mean 0 that a worker adds where it likes."""


def next_to_cuts(nats: Nats) -> Differences:
    """One difference for each twin, all at distance 1."""
    numbers = np.arange(len(nats))
    return Differences(nats, np.ones(len(nats), np.int64), numbers)


def silent(random: np.random.Generator, count: int) -> Nats:
    return np.zeros(count)


def gaussian(random: np.random.Generator, count: int) -> Nats:
    return random.normal(0, 0.035, count)


def rare(random: np.random.Generator, count: int) -> Nats:
    """Up to 1.9 nats, which single predictions may be off by, at one position in a hundred."""
    return np.where(random.random(count) < 0.01, random.choice([-1.9, 1.9], count), 0.0)


def alternating(random: np.random.Generator, count: int) -> Nats:
    return np.where(np.arange(count) % 2, 0.029, -0.029)


def heavy(random: np.random.Generator, count: int) -> Nats:
    nats: Nats = np.clip(0.01 * random.standard_t(1.5, count), -1.9, 1.9)
    return nats


def shown_by(noise: Noise, random: np.random.Generator) -> Comparison:
    """What the repeats of a worker show that makes them noisy: 8 rows of 256."""
    nats = noise(random, 8 * 256)
    return probes.compare(Differences(nats, np.tile(np.arange(1, 257), 8), np.repeat(np.arange(8), 256)))


SPARSE = 1.9
"""Nats of help at a time, where help is given at a few positions only."""


def helped(how: str, help_nats: float, noise: Noise, random: np.random.Generator) -> Nats:
    """Differences next to the cuts: a mean help and what it is hidden in."""
    if how == "sparse":
        return np.where(random.random(TWINS) < help_nats / SPARSE, SPARSE, 0.0)
    return help_nats + noise(random, TWINS)


ATTACKS: dict[str, tuple[str, Noise, Noise]] = {
    "no noise": ("steady", silent, silent),
    "noise in repeats": ("steady", gaussian, silent),
    "noise in twins": ("steady", silent, gaussian),
    "noise in both": ("steady", gaussian, gaussian),
    "rare and large in both": ("steady", rare, rare),
    "rare in repeats, help rare": ("sparse", rare, silent),
    "heavy tails in both": ("steady", heavy, heavy),
    "alternating in both": ("steady", alternating, alternating),
}
"""How the help is given, the noise in repeats, the noise in twins at distance 1."""


def is_confirmed(how: str, in_repeats: Noise, in_twins: Noise, nats: float, seed: int) -> bool:
    random = np.random.default_rng(seed)
    repeats = shown_by(in_repeats, random)
    if not repeats.agrees(probes.REPEATS):
        return False
    twins = probes.compare(next_to_cuts(helped(how, nats, in_twins, random)))
    return twins.agrees(probes.twin_tolerance((repeats,), SIGMAS))


@pytest.mark.parametrize("name", ATTACKS)
def test_help_above_the_bound_is_found_whatever_noise_hides_it(name: str) -> None:
    assert not any(is_confirmed(*ATTACKS[name], 1.05 * LIMIT, seed) for seed in range(50))


@pytest.mark.slow
def test_best_confirmed_gain_is_below_the_bound(capsys: pytest.CaptureFixture[str]) -> None:
    """100 scorings of each attack and help: the largest help that any of them was confirmed with."""
    lines = ["attack                        largest help confirmed"]
    for name, attack in ATTACKS.items():
        falling = np.arange(1.5 * LIMIT, 0, -0.0005).tolist()
        confirmed = (h for h in falling if any(is_confirmed(*attack, h, seed) for seed in range(100)))
        best = next(confirmed, 0.0)
        lines.append(f"{name:30} {best:.4f}")
        assert best <= LIMIT
    with capsys.disabled():
        print("", *lines, sep="\n")


@given(st.integers(0, 10**6), st.floats(0, 0.02), st.floats(0, 0.05), st.floats(1, 4))
def test_more_noise_never_helps(seed: int, help_nats: float, noise: float, more: float) -> None:
    unit = np.random.default_rng(seed).normal(0, 1, 500)
    unit -= unit.mean()  # so that only the noise grows
    repeats = shown_by(gaussian, np.random.default_rng(seed))
    allowed = probes.twin_tolerance((repeats,), SIGMAS)

    def limit(scale: float) -> float:
        return probes.compare(next_to_cuts(help_nats + scale * unit)).help(allowed)

    assert limit(noise) <= limit(noise * more) + 1e-12
    noisier = allowed._replace(noise=allowed.noise * more)
    twins = probes.compare(next_to_cuts(help_nats + noise * unit))
    assert twins.help(allowed) <= twins.help(noisier)


def test_limit_of_rare_events_is_that_of_the_poisson_distribution() -> None:
    """Of 1000 twins k differ by 1: with which mean would no more than k be seen once in a thousand?"""
    upper = {2: 11.229, 5: 16.455, 10: 23.746, 20: 36.3}
    for count, expected in upper.items():
        twins = probes.compare(next_to_cuts(np.where(np.arange(1000) < count, 1.0, 0.0)))
        limit = twins.help(probes.Tolerance(1, 1, 1, 0.0, SIGMAS))
        assert 1000 * limit == pytest.approx(expected, rel=0.06)


def test_exact_repeats_leave_little_room_and_noisy_ones_the_usual() -> None:
    exact = probes.twin_tolerance((shown_by(silent, np.random.default_rng(0)),), SIGMAS)
    assert (exact.token, exact.spread, exact.help) == (
        probes.TOKEN_NATS[0],
        probes.SPREAD_NATS[0],
        probes.HELP_NATS[0],
    )
    noisy = probes.twin_tolerance((shown_by(gaussian, np.random.default_rng(0)),), SIGMAS)
    assert noisy.token > probes.TOKEN_NATS[1] and noisy.spread > probes.SPREAD_NATS[1]
    assert noisy.help == LIMIT  # this never widens
    both = probes.twin_tolerance((probes.compare(next_to_cuts(np.zeros(40))), shown_by(gaussian, RANDOM)), 0)
    assert both.help == probes.FEW_HELP_NATS


RANDOM = np.random.default_rng(1)
