"""Whether a chain of keeps is a gain: its head and the last certified program run in pairs. Pure.

A keep is provisional: one run was better than the frontier, which is what chance alone does now and then.
After a few of them the head of the chain and the last certified head run again, interleaved, under fresh
seeds. What they say is weighed after each pair, until the evidence is enough, there is no hope of it, or the
pairs are used up.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from controller.core.events import CertificateDecided, CertificateOutcome
from controller.core.statistics import evidence
from controller.core.statistics.distributions import student_cdf
from controller.core.statistics.evidence import Block, Sums
from controller.core.statistics.replicates import DRIFT_P_VALUE, LEAST_DF
from controller.core.statistics.spread import Spread
from controller.core.values import Evidence

CERTAIN = 100.0
"""Evidence that certifies a gain: chance reaches it at most once in a hundred chains without one."""
CONTRADICTED = 20.0
"""Evidence for a loss on the hold-out from which a gain is not believed."""
FAILED_RUNS = 2
"""Runs of the head without a score that end the matter: a program must not choose the runs that count."""
SPARE_PAIRS = 3
"""Pairs beyond the setting that may be lost because the old program gave no score."""
LATEST_RUNS = 4
"""So many of the old program's earlier runs tell what it was before the certificate."""
LEAST_PAIRS = 3
"""Before a chain may be given up for what the first pairs say."""


class CertifyConfig(BaseModel):
    """Settings of how keeps are certified."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    share: Annotated[float, Field(ge=0, le=1)] = 0.1
    """Share of all runs that may be spent on certificates; 0: none is sought."""
    keeps: Annotated[int, Field(ge=1)] = 5
    """Provisional keeps after which a certificate is sought."""
    gain: Annotated[float, Field(gt=0)] = 6.0
    """The same for a provisional gain, in standard deviations of a run."""
    pairs: Annotated[int, Field(ge=1)] = 12
    """Most pairs of runs for one certificate."""


NO_CERTIFICATES = CertifyConfig(share=0.0)


@dataclass(frozen=True)
class PairRun:
    """One run of a pair."""

    experiment: int
    pair: int
    is_head: bool
    slot: int
    val_bpb: float | None = None
    """None if it gave no score."""
    fresh_bpb: float | None = None
    """What the score would be on fresh rows as difficult as the scored ones."""


@dataclass(frozen=True)
class Certificate:
    """A chain whose head is compared with the last certified program, both named by their experiments."""

    number: int
    base: int
    head: int
    runs: tuple[PairRun, ...] = ()
    """Those that are finished."""

    @property
    def pairs(self) -> list[tuple[PairRun, PairRun]]:
        """(base, head) of each pair of which both have finished, in the order in which they were begun."""
        by_side = {(run.pair, run.is_head): run for run in self.runs}
        whole = sorted({pair for pair, is_head in by_side if is_head and (pair, False) in by_side})
        return [(by_side[pair, False], by_side[pair, True]) for pair in whole]

    def with_run(self, run: PairRun) -> Certificate:
        """After one more run."""
        return replace(self, runs=(*self.runs, run))


def first_runs(pair: int) -> tuple[bool, bool]:
    """Whether the head runs first and second in a pair: in turn, so that a slow drift favours neither."""
    return (True, False) if pair % 2 == 0 else (False, True)


def weigh(certificate: Certificate, spread: Spread | None, fresh: Spread | None) -> Evidence:
    """What the pairs say so far. `spread`, `fresh`: of scores and of those on fresh rows, from other runs."""
    scored = _scored(certificate)
    told = evidence.sums(_blocks(scored, "val_bpb"), spread)
    on_fresh = evidence.sums(_blocks(scored, "fresh_bpb"), fresh)
    low, high = evidence.interval(told)
    fresh_low, fresh_high = evidence.interval(on_fresh)
    return Evidence(
        pairs=len(scored),
        gain=told.gain,
        low=_finite(low),
        high=_finite(high),
        e_value=evidence.e_value(told),
        sigma=math.sqrt(told.residual / (told.df - 1)) if told.df > 1 else None,
        df=max(told.df - 1, 0),
        holdout_gain=on_fresh.gain if on_fresh.weight else None,
        holdout_low=_finite(fresh_low),
        holdout_high=_finite(fresh_high),
        holdout_e_against=evidence.e_value(evidence.opposite(on_fresh)),
    )


def conclude(
    certificate: Certificate,
    spread: Spread | None,
    fresh: Spread | None,
    most_pairs: int,
    earlier: Sequence[float] = (),
) -> tuple[CertificateOutcome, str, Evidence] | None:
    """What comes of the certificate, the rule in words and the figures; None while more pairs are needed.

    `earlier`: scores of the old program before this certificate, the oldest first.
    """
    scored = _scored(certificate)
    told = evidence.sums(_blocks(scored, "val_bpb"), spread)
    found, pairs = evidence.e_value(told), len(scored)
    lost = sum(head.val_bpb is None for _, head in certificate.pairs)
    if lost >= FAILED_RUNS:
        rule = f"{lost} runs of the head gave no score"
    elif found >= CERTAIN:
        weighed = weigh(certificate, spread, fresh)
        if (why := _overfit(weighed)) is not None:
            return "overfit", why, weighed
        if (why := _is_worse_than_it_was([base.val_bpb for base, _ in scored], earlier, spread)) is not None:
            return "failed", why, weighed
        return "certified", f"evidence {found:.3g}, at least {CERTAIN:g}", weighed
    elif pairs >= most_pairs or len(certificate.pairs) >= most_pairs + SPARE_PAIRS:
        rule = f"evidence {found:.3g} after {pairs} pairs, less than {CERTAIN:g}"
    elif pairs >= LEAST_PAIRS and _is_hopeless(told, most_pairs):
        rule = f"hopeless after {pairs} pairs: evidence {found:.3g}"
    else:
        return None
    return "failed", rule, weigh(certificate, spread, fresh)


def _overfit(found: Evidence) -> str | None:
    """Why the hold-out contradicts a gain.

    It is measured on other rows in each scoring, so that chance alone often turns the sign of a small gain. A
    sign counts if the hold-out is precise enough to tell it from the gain on the scored rows.
    """
    if found.holdout_e_against >= CONTRADICTED:
        return f"a loss on the hold-out: evidence {found.holdout_e_against:.3g}, at least {CONTRADICTED:g}"
    gain, high = found.holdout_gain, found.holdout_high
    if gain is not None and gain < 0.0 and high is not None and high < found.gain:
        return f"a loss of {-gain:.6f} on the hold-out, too precise to hide a gain of {found.gain:.6f}"
    return None


def _is_worse_than_it_was(
    now: Sequence[float | None], earlier: Sequence[float], spread: Spread | None
) -> str | None:
    """Why a gain over the old program is not believed: a program could get worse by the clock, so that its
    successor only has to leave that out."""
    scores, recent = [score for score in now if score is not None], earlier[-LATEST_RUNS:]
    if not recent or not scores or spread is None or spread.df < LEAST_DF or spread.sigma == 0.0:
        return None
    change = math.fsum(scores) / len(scores) - math.fsum(recent) / len(recent)
    t = change / (spread.sigma * math.sqrt(1 / len(scores) + 1 / len(recent)))
    if change <= 0.0 or student_cdf(-t, spread.df) >= DRIFT_P_VALUE:
        return None
    return f"the old program is {change:.6f} worse than it was, so that the gain may be its loss"


def _is_hopeless(told: Sums, most_pairs: int) -> bool:
    """Whether all pairs would not be evidence enough, even if the gain were a standard error larger."""
    if told.weight == 0.0:
        return False
    variance = told.residual / max(told.df - 1, 1)
    gain = told.gain + math.sqrt(variance / told.weight)
    weight, more = 0.5 * most_pairs, round(2 * most_pairs - 4 * told.weight)
    squares = told.residual + more * variance + weight * gain**2
    return evidence.e_value(Sums(weight, weight * gain, squares, told.df + more)) < CERTAIN


def _scored(certificate: Certificate) -> list[tuple[PairRun, PairRun]]:
    """Pairs of which both gave a score, on one slot: only those compare."""
    return [
        (base, head)
        for base, head in certificate.pairs
        if base.val_bpb is not None and head.val_bpb is not None and base.slot == head.slot
    ]


def _blocks(pairs: Sequence[tuple[PairRun, PairRun]], name: str) -> list[Block]:
    """By slot, since each may have an offset of its own; the pairs that were measured at all."""
    blocks: dict[int, tuple[list[float], list[float]]] = {}
    for base, head in pairs:
        scores = getattr(base, name), getattr(head, name)
        if None not in scores:
            old, new = blocks.setdefault(base.slot, ([], []))
            old.append(scores[0])
            new.append(scores[1])
    return [Block(old, new) for old, new in blocks.values()]


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def note(decided: CertificateDecided, head: str) -> str:
    """The git note of a certified commit: the figures, and the hash that the journal ended with."""
    return json.dumps(decided.model_dump(mode="json") | {"journal": head}, indent=2) + "\n"


def taken_back(decided: CertificateDecided) -> str:
    """Subject of the commit that takes a chain back."""
    return f"Back to experiment {decided.base}: certificate {decided.certificate} {decided.outcome}"


def is_same(one: Evidence, other: Evidence) -> bool:
    """Up to rounding: another machine's logarithm may differ in its last bit."""
    pairs = zip(one.model_dump().values(), other.model_dump().values(), strict=True)
    return all(a == b or (None not in (a, b) and math.isclose(a, b, rel_tol=1e-6)) for a, b in pairs)
