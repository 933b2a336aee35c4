"""How much time a worker may use, relative to the baseline's workers on the same machine. Pure.

The budget limits only the training. Without a limit of its own, a worker could go on training, search, or
average a thousand passes, and its score would no longer be that of a run within the budget. How long honest
work takes depends on the machine, so it is measured there, with experiment 0, which no agent wrote. GPU time
is bounded by the wall clock: a worker has its GPUs to itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from controller.core.values import Work

WALL_FACTOR, WALL_SECONDS = 2.0, 5.0
CPU_FACTOR, CPU_SECONDS = 1.5, 1.0
"""Multiples of what the baseline used, and seconds on top: start-up times vary, wall-clock time most."""

WORKERS = 2


class Allowance(NamedTuple):
    """The most that one worker may use. Seconds; None: no limit of this kind."""

    wall: float | None = None
    cpu: float | None = None


def allowances(
    reference: Sequence[Work], *, share: float, budget_seconds: float, cpus: float
) -> tuple[Allowance, Allowance]:
    """The allowances of the first and the second worker.

    `reference` is the baseline's work; there are no limits unless it includes both workers. `share` is the
    share of the budget to add, `cpus` how many CPUs a worker may use at once.
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
    """A sentence with the figures if a worker exceeded its allowance; None if it did not.

    Whole seconds only: the worker can choose the figures, and could send a message to the refusal's readers.
    """
    if over_cpu(work):
        used, allowed, of = work.cpu_seconds, work.allowed_cpu_seconds, "CPU time"
    elif _over(work.wall_seconds, work.allowed_wall_seconds):
        used, allowed, of = work.wall_seconds, work.allowed_wall_seconds, "time"
    else:
        return None
    return (
        f"the worker used {used:.0f} s of {of} and may use {allowed:.0f} s: what the baseline needs on this "
        "machine plus a share of the budget; a model this slow cannot be scored, make it cheaper to run"
    )


def over_cpu(work: Work) -> bool:
    """True if it used too much CPU time, which no other load on the machine can explain."""
    return _over(work.cpu_seconds, work.allowed_cpu_seconds)


def _over(used: float | None, allowed: float | None) -> bool:
    return used is not None and allowed is not None and used > allowed
