"""What a worker may use, from what the baseline's workers used on the same machine. Pure.

The budget binds the training alone. A worker that may compute for as long as it likes goes on training, or
searches, or averages a thousand passes, and its score is no longer that of a run of the budget's length. How
long honest work takes depends on the machine, so it is measured there: with experiment 0, which no agent
wrote. Time on a GPU is bounded by the wall clock: a worker has its GPUs to itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from controller.core.values import Work

WALL_FACTOR, WALL_SECONDS = 2.0, 5.0
CPU_FACTOR, CPU_SECONDS = 1.5, 1.0
"""Factors of what the baseline used, and seconds on top: starts vary, most of all by the wall clock."""

WORKERS = 2


class Allowance(NamedTuple):
    """The most that one worker may use. Seconds; None: no limit of this kind."""

    wall: float | None = None
    cpu: float | None = None


def allowances(
    reference: Sequence[Work], *, share: float, budget_seconds: float, cpus: float
) -> tuple[Allowance, Allowance]:
    """For the first worker and the second.

    `reference` is the baseline's work; unless both of its workers are in it, there are no limits. `share` is
    that of the budget, `cpus` how many CPUs a worker may use at once.
    """
    if len(reference) != WORKERS:
        return Allowance(), Allowance()
    extra = share * budget_seconds
    first, second = (
        Allowance(
            wall=WALL_FACTOR * work.wall_seconds + WALL_SECONDS + extra,
            cpu=None
            if work.cpu_seconds is None
            else CPU_FACTOR * work.cpu_seconds + CPU_SECONDS + extra * cpus,
        )
        for work in reference
    )
    return first, second


def excess(work: Work) -> str | None:
    """A sentence with the figures if a worker used more than it may; None if it did not.

    Whole seconds: the figures are the worker's to choose, and reach whoever reads the refusal.
    """
    if over_cpu(work):
        used, allowed, of = work.cpu_seconds, work.allowed_cpu_seconds, "CPU time"
    elif _over(work.wall_seconds, work.allowed_wall_seconds):
        used, allowed, of = work.wall_seconds, work.allowed_wall_seconds, "time"
    else:
        return None
    return (
        f"the worker used {used:.0f} s of {of} and may use {allowed:.0f} s: the baseline's need on this "
        "machine and a share of the budget; a model this heavy cannot be scored, make it cheaper to run"
    )


def over_cpu(work: Work) -> bool:
    """True if it used too much CPU time, for which no other user of the machine can be blamed."""
    return _over(work.cpu_seconds, work.allowed_cpu_seconds)


def _over(used: float | None, allowed: float | None) -> bool:
    return used is not None and allowed is not None and used > allowed
