"""How much a worker may use, and what is said of one that used more."""

from __future__ import annotations

import pytest

from controller.core.scoring.allowance import Allowance, allowances, excess, over_cpu
from controller.core.values import Work

TEN = Work(wall_seconds=10.0, cpu_seconds=20.0)
UNKNOWN = Work(wall_seconds=10.0, cpu_seconds=None)
ZERO = Work(wall_seconds=0.0, cpu_seconds=0.0)


@pytest.mark.parametrize(
    ("reference", "share", "budget", "cpus", "expected"),
    [
        ((), 0.1, 300, 16, (Allowance(), Allowance())),
        ((TEN,), 0.1, 300, 16, (Allowance(), Allowance())),  # nothing to compare a second worker with
        ((TEN, ZERO), 0.1, 300, 16, (Allowance(55.0, 511.0), Allowance(35.0, 481.0))),
        ((TEN, TEN), 0.1, 300, 2, (Allowance(55.0, 91.0), Allowance(55.0, 91.0))),
        ((TEN, TEN), 0.1, 20, 2, (Allowance(27.0, 35.0), Allowance(27.0, 35.0))),
        ((TEN, TEN), 0.01, 20, 2.5, (Allowance(25.2, 31.5), Allowance(25.2, 31.5))),
        ((TEN, UNKNOWN), 0.1, 300, 1, (Allowance(55.0, 61.0), Allowance(55.0, None))),
    ],
)
def test_a_worker_may_use_what_the_baselines_did_and_a_share_of_the_budget(
    reference: tuple[Work, ...],
    share: float,
    budget: float,
    cpus: float,
    expected: tuple[Allowance, Allowance],
) -> None:
    found = allowances(reference, share=share, budget_seconds=budget, cpus=cpus)
    for one, other in zip(found, expected, strict=True):
        assert one == pytest.approx(other) if None not in other else one == other


@pytest.mark.parametrize(
    ("wall", "cpu", "allowed", "said", "by_cpu"),
    [
        (99, 99, Allowance(), None, False),
        (55, 91, Allowance(55, 91), None, False),
        (55, 91.6, Allowance(55, 91), "used 92 s of CPU time and may use 91 s", True),
        (71.3, 91, Allowance(55, 91), "used 71 s of time and may use 55 s", False),
        (71.3, 99, Allowance(55, 91), "used 99 s of CPU time and may use 91 s", True),
        (71.3, None, Allowance(55, 91), "used 71 s of time and may use 55 s", False),
        (50, None, Allowance(55, 91), None, False),
        (50, 1000, Allowance(55, None), None, False),
    ],
)
def test_a_worker_that_used_too_much_is_told_so_in_whole_seconds(
    wall: float, cpu: float | None, allowed: Allowance, said: str | None, by_cpu: bool
) -> None:
    work = Work(
        wall_seconds=wall,
        cpu_seconds=cpu,
        allowed_wall_seconds=allowed.wall,
        allowed_cpu_seconds=allowed.cpu,
    )
    detail = excess(work)
    assert (detail is None) == (said is None)
    assert said is None or (detail is not None and said in detail and "make it cheaper" in detail)
    assert over_cpu(work) == by_cpu
