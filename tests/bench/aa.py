"""`make aa`: how often chance is kept, and certified.

(a) efforts of identical programs: keeps, and false certificates for each 100 candidates;
(b) what certificates find: power and runs by the true gain, and progress under each rule of keeping;
(c) in containers: the baseline under many seeds, and one effort with certificates.
Ends with one line of figures, and with status 1 if an aim is missed. `simulated` is (a) and (b), `real` (c).
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from random import Random

from controller.core.rules import KeepConfig, Limits, ReplicatesConfig, Rules
from controller.core.statistics.certificate import Certificate, CertifyConfig, PairRun, conclude
from controller.core.statistics.spread import Spread
from controller.core.values import Verdict
from tests.bench import real
from tests.bench.simulated import (
    Effects,
    Effort,
    as_published,
    false_certificates,
    lower_limit,
    none,
    progress,
    upper_limit,
)

AIM_FALSE = 0.05
"""False certificates for each 100 candidates, at most."""
AIM_POWER = 0.9
"""Share of gains of 3 σ that are certified within AIM_PAIRS pairs, at least."""
AIM_PAIRS = 4
GAINS = (0.5, 1.0, 2.0, 3.0, 5.0, 7.0)
"""True gains, in standard deviations of a run."""
KNOWN_DF = 20
"""Degrees of freedom of the spread that power is given for: an effort has them after about 150 runs."""


@dataclass
class Tally:
    """What a number of efforts came to."""

    efforts: int = 0
    candidates: int = 0
    keeps: int = 0
    runs: int = 0
    certificate_runs: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    false: int = 0
    certified_gain: float = 0.0
    frontier_gain: float = 0.0

    def add(self, other: Tally) -> None:
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + value)


def effort_of(
    keep: KeepConfig, certify: CertifyConfig, candidates: int, effects: Effects, seed: int
) -> Tally:
    """One simulated effort."""
    rules = Rules(
        agent="tuner",
        limits=Limits(experiments=candidates + 1),
        replicates=ReplicatesConfig(),
        keep=keep,
        certify=certify,
    )
    effort = Effort(rules, Random(seed), effects)
    state = effort.run()
    certified, frontier = progress(effort)
    return Tally(
        efforts=1,
        candidates=candidates,
        keeps=state.count(Verdict.KEEP) - 1,
        runs=len(state.order),
        certificate_runs=state.certificate_runs,
        outcomes=Counter(decided.outcome for decided in state.certificates),
        false=false_certificates(effort),
        certified_gain=certified,
        frontier_gain=frontier,
    )


def tally(
    pool: ProcessPoolExecutor,
    efforts: int,
    keep: KeepConfig,
    candidates: int,
    effects: Effects,
    certify: CertifyConfig | None = None,
) -> Tally:
    """Many efforts, in several processes."""
    total = Tally()
    one = partial(effort_of, keep, certify or CertifyConfig(), candidates, effects)
    for found in pool.map(one, range(efforts), chunksize=max(1, efforts // 64)):
        total.add(found)
    return total


def identical(pool: ProcessPoolExecutor, efforts: int, candidates: int) -> tuple[float, bool]:
    """(a). The rate of false certificates for each 100 candidates, and whether the aim is met."""
    found = tally(pool, efforts, KeepConfig(), candidates, none)
    unit = 100 / found.candidates
    low, high = lower_limit(found.false) * unit, upper_limit(found.false) * unit
    rate = found.false * unit
    print(
        f"identical programs, {efforts} efforts of {candidates} candidates: for each 100 candidates "
        f"{found.keeps * unit:.2f} keeps and {rate:.4f} false certificates (95 % interval {low:.4f} to "
        f"{high:.4f}; aim: ≤ {AIM_FALSE}); {dict(found.outcomes)}; "
        f"{found.certificate_runs / found.runs:.1%} of all runs were for certificates",
        flush=True,
    )
    return rate, high <= AIM_FALSE


def single(gain: float, df: int, seed: int, most_pairs: int = CertifyConfig().pairs) -> tuple[str, int]:
    """One certificate for a true gain in σ: what came of it, and after how many pairs."""
    random = Random(seed)
    spread = Spread((sum(random.gauss(0, 1) ** 2 for _ in range(df)) / df) ** 0.5, df)
    certificate, number = Certificate(0, 0, 1), 2
    for pair in range(most_pairs):
        for is_head in (True, False):
            score = random.gauss(-gain if is_head else 0.0, 1.0)
            certificate = certificate.with_run(PairRun(number, pair, is_head, 0, score))
            number += 1
        if (found := conclude(certificate, spread, None, most_pairs)) is not None:
            return found[0], pair + 1
    raise AssertionError("a certificate comes to an end")


def power(pool: ProcessPoolExecutor, tries: int) -> tuple[float, bool]:
    """(b), single steps. The power at 3 σ within AIM_PAIRS pairs, and whether the aim is met."""
    print(f"certificate of one step, σ known from {KNOWN_DF} degrees of freedom, {tries} tries each")
    print("  gain  certified  within 4 pairs  within 8  pairs, mean")
    at_three = 0.0
    for gain in (0.0, *GAINS):
        ends = [*pool.map(partial(single, gain, KNOWN_DF), range(tries), chunksize=tries // 16)]
        good = [pairs for outcome, pairs in ends if outcome == "certified"]
        within = [sum(pairs <= most for pairs in good) / tries for most in (AIM_PAIRS, 8)]
        if gain == 3.0:
            at_three = within[0]
        print(
            f"  {gain:3g}σ  {len(good) / tries:9.3f}  {within[0]:14.3f}  {within[1]:8.3f}  "
            f"{statistics.fmean(pairs for _, pairs in ends):11.1f}",
            flush=True,
        )
    return at_three, at_three >= AIM_POWER


RULES = {
    "strict, no certificates": (KeepConfig(), CertifyConfig(share=0.0)),
    "strict": (KeepConfig(), CertifyConfig()),
    "strict, share 0.2": (KeepConfig(), CertifyConfig(share=0.2)),
    "margin of 1σ": (KeepConfig(rule="margin", margin=1.0), CertifyConfig()),
    "margin of 2σ": (KeepConfig(rule="margin", margin=2.0), CertifyConfig()),
    "each keep certified": (KeepConfig(rule="certified"), CertifyConfig()),
}


def rules(pool: ProcessPoolExecutor, efforts: int, candidates: int) -> None:
    """(b), chains: what each rule of keeping comes to, with effects as published."""
    print(f"rules: {efforts} efforts of {candidates} candidates, effects as published, gains in σ an effort")
    print(f"  {'rule':26} runs  keeps  for certificates  certified  frontier  per 100 runs  false /100")
    for name, (keep, certify) in RULES.items():
        found = tally(pool, efforts, keep, candidates, as_published, certify)
        ended = ", ".join(f"{count} {outcome}" for outcome, count in sorted(found.outcomes.items()))
        print(
            f"  {name:26} {found.runs / efforts:4.0f}  {found.keeps / efforts:5.1f}  "
            f"{found.certificate_runs / found.runs:16.1%}  {found.certified_gain / efforts:9.1f}  "
            f"{found.frontier_gain / efforts:8.1f}  {100 * found.frontier_gain / found.runs:12.1f}  "
            f"{100 * found.false / found.candidates:10.4f}  {ended}",
            flush=True,
        )


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.aa")
    parser.add_argument("only", nargs="?", choices=["simulated", "real"], help="one part of it")
    parser.add_argument("--efforts", type=int, default=2000, help="simulated efforts of identical programs")
    parser.add_argument("--candidates", type=int, default=100, help="candidates in each")
    parser.add_argument("--tries", type=int, default=4000, help="simulated certificates for each gain")
    parser.add_argument("--compared", type=int, default=200, help="simulated efforts for each rule")
    of_real = parser.add_argument_group("real")
    of_real.add_argument("--seeds", type=int, default=30, help="runs of the baseline")
    of_real.add_argument("--runs", type=int, default=40, help="runs of the effort, more or less")
    of_real.add_argument("--budget", type=float, default=20.0, help="seconds of each run")
    of_real.add_argument("--keep", type=Path, help="where the two homes are made, to stay")
    options = parser.parse_args()
    parts = {"simulated": _simulated, "real": _real}
    chosen = [part for name, part in parts.items() if options.only in (None, name)]
    figures, aims = zip(*(found for part in chosen for found in part(options)), strict=True)
    missed = sum(not met for met in aims)
    print(f"{', '.join(figures)}: {f'{missed} aims missed' if missed else 'all aims met'}")
    return int(missed > 0)


def _simulated(options: argparse.Namespace) -> Iterator[tuple[str, bool]]:
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        at_three, met = power(pool, options.tries)
        yield f"power at 3σ within {AIM_PAIRS} pairs {at_three:.2f} (aim ≥ {AIM_POWER})", met
        rules(pool, options.compared, options.candidates)
        rate, met = identical(pool, options.efforts, options.candidates)
        yield f"false certificates {rate:.4f} for each 100 candidates (aim ≤ {AIM_FALSE})", met


def _real(options: argparse.Namespace) -> Iterator[tuple[str, bool]]:
    with contextlib.ExitStack() as until_the_end:
        folder = options.keep or Path(until_the_end.enter_context(tempfile.TemporaryDirectory()))
        yield real.seeds(folder / "seeds", options.seeds, options.budget)
        yield real.effort(folder / "effort", options.runs, options.budget)


if __name__ == "__main__":
    sys.exit(main())
