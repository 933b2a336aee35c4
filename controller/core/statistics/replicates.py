"""Runs that try nothing: a program that ran before runs again under another seed. Pure.

They tell how far chance moves a score, and what the incumbent is worth apart from the luck of the run that
selected it. A program's runs here are those that nothing was selected by: its replicates, and of the baseline
its own first run, too.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from controller.core.experiment import Experiment
from controller.core.statistics.spread import Spread, pooled, surprise
from controller.core.values import Cause

DRIFT_P_VALUE = 0.001
"""A replicate that chance explains more rarely than this means that the machine is no longer what it was."""
LEAST_RUNS = 2
"""Fresh runs of the incumbent from which their mean is what has to be beaten."""
LEAST_DF = 3
"""Degrees of freedom below which a spread is too uncertain for anything to be called rare."""


@dataclass(frozen=True)
class Run:
    """One score of a program that was not selected by it."""

    experiment: int
    slot: int
    val_bpb: float
    fresh_bpb: float | None = None
    """What the score would be on fresh rows as difficult as the scored ones."""


Runs = Mapping[int, Sequence[Run]]
"""By the experiment whose program ran."""


def run_of(finished: Experiment) -> tuple[int, Run] | None:
    """The program that ran, as the number of its first experiment, and the run; None for anything else."""
    score = finished.score
    program = finished.number if finished.number == 0 else finished.repeats
    counts = finished.cause in (None, Cause.REPLICATE)
    if program is None or score is None or not counts:
        return None
    return program, Run(finished.number, finished.slot, score.val_bpb, score.on_fresh_rows)


@dataclass(frozen=True)
class Pool:
    """The spread of all runs so far, kept up to date run by run: adding them up anew takes time."""

    squares: float = 0.0
    """Of the differences from the mean, over all programs and slots."""
    df: int = 0

    def adding(self, group: Sequence[float], score: float) -> Pool:
        """One more score of a program on a slot; `group`: those it has there already."""
        if not group:
            return self
        change = score - math.fsum(group) / len(group)
        return Pool(self.squares + change * change * len(group) / (len(group) + 1), self.df + 1)

    def without(self, runs: Runs, experiments: Collection[int], *, fresh: bool = False) -> Pool:
        """Leave experiments out, all of which are in `runs`, the whole runs of their programs."""
        all_squares, all_df = _sums(runs, (), fresh)
        squares, df = _sums(runs, experiments, fresh)
        return Pool(max(0.0, self.squares - all_squares + squares), self.df - all_df + df)

    @property
    def spread(self) -> Spread | None:
        """None unless a program was run twice."""
        return Spread(math.sqrt(self.squares / self.df), self.df) if self.df else None


def _sums(runs: Runs, without: Collection[int], fresh: bool) -> tuple[float, int]:
    found = spread_of(runs, without=without, fresh=fresh)
    return (found.df * found.sigma**2, found.df) if found is not None else (0.0, 0)


def mean(runs: Sequence[Run]) -> float:
    """Bits per byte. Of at least one run."""
    return math.fsum(run.val_bpb for run in runs) / len(runs)


def spread_of(runs: Runs, *, without: Collection[int] = (), fresh: bool = False) -> Spread | None:
    """Of single runs, pooled over programs; a slot may have an offset of its own, so each counts by itself.

    `without`: experiments that are left out. `fresh`: of the scores on fresh rows.
    """
    groups: dict[tuple[int, int], list[float]] = {}
    for program, made in runs.items():
        for run in made:
            score = run.fresh_bpb if fresh else run.val_bpb
            if score is not None and run.experiment not in without:
                groups.setdefault((program, run.slot), []).append(score)
    return pooled(groups.values())


@dataclass(frozen=True)
class Drift:
    """The latest run of a program is not like its earlier ones."""

    program: int
    experiment: int
    change: float
    """Latest less the mean of the earlier ones, bits per byte."""
    p_value: float


def drift(runs: Runs) -> Drift | None:
    """Whether the latest run differs from the program's earlier ones on its slot by more than chance.

    None as well while too little is known of chance.
    """
    latest = max((made[-1] for made in runs.values() if made), key=lambda run: run.experiment, default=None)
    if latest is None:
        return None
    others = {program: [run for run in made if run != latest] for program, made in runs.items()}
    program = next(number for number, made in runs.items() if latest in made)
    earlier = [run.val_bpb for run in others[program] if run.slot == latest.slot]
    spread = spread_of(others)
    if not earlier or spread is None or spread.df < LEAST_DF:
        return None
    p_value = surprise(earlier, latest.val_bpb, spread)
    if p_value >= DRIFT_P_VALUE:
        return None
    change = latest.val_bpb - math.fsum(earlier) / len(earlier)
    return Drift(program, latest.experiment, change, p_value)
