"""What a worker uses, read from an engine that may not be able to tell."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import pytest

from controller.core.errors import InfrastructureError
from controller.core.scoring.allowance import Allowance
from controller.core.values import Cause
from controller.sandbox.meter import Meter
from tests.support.fakes import EmptyEngine, HandClock

WORKER = "worker"
Told = Mapping[str, float] | None | InfrastructureError
AWAY = InfrastructureError("the engine went away")


class Telling(EmptyEngine):
    """Tells what it is told to tell, and the last of it again and again."""

    def __init__(self, *told: Told) -> None:
        self._told, self.killed = list(told), 0

    def usage(self, names: Collection[str] = ()) -> Mapping[str, float] | None:
        told = self._told.pop(0) if len(self._told) > 1 else self._told[0]
        if isinstance(told, InfrastructureError):
            raise told
        return told

    def kill(self, name: str) -> None:
        assert name == WORKER
        self.killed += 1


def metered(engine: Telling, *, looks: int = 0, seconds: float = 1.0, gpu: bool = False) -> Meter:
    """After so many looks, `seconds` from each to the next, and the last one."""
    clock = HandClock()
    meter = Meter(engine, clock, WORKER, clock.monotonic(), Allowance(10.0, 20.0), gpu=gpu)
    for _ in range(looks):
        clock.sleep(seconds)
        meter.watch()
    clock.sleep(seconds)
    meter.conclude()
    return meter


@pytest.mark.parametrize(
    ("told", "cpu"),
    [
        ([{WORKER: 4.0, "judge": 1.0}], 4.0),
        ([{WORKER: 4.0}, None, None, {WORKER: 6.0}], 6.0),  # the judge was ending
        ([{WORKER: 4.0}, {}], 4.0),  # the worker has ended
        ([{WORKER: 4.0}, None], 4.0),
        ([None], None),
        ([AWAY, {WORKER: 5.0}], 5.0),
    ],
)
def test_the_last_thing_that_was_told_counts(told: list[Told], cpu: float | None) -> None:
    meter = metered(Telling(*told), looks=1)
    assert (meter.work.wall_seconds, meter.work.cpu_seconds) == (2.0, cpu)
    assert (meter.work.allowed_wall_seconds, meter.work.allowed_cpu_seconds) == (10.0, 20.0)
    assert meter.excess is None


def test_a_worker_that_computes_too_much_is_ended() -> None:
    engine = Telling({WORKER: 19.0}, {WORKER: 21.0})
    meter = metered(engine, looks=2)
    assert engine.killed == 1 and meter.excess is not None
    assert (meter.excess.cause, meter.excess.symptom) == (Cause.OVER_BUDGET, None)


@pytest.mark.parametrize(
    ("told", "gpu", "cause", "symptom"),
    [
        ({WORKER: 1.0}, False, Cause.WORKER_TIMEOUT, None),  # it cannot have computed anything meanwhile
        ({WORKER: 1.0}, True, Cause.OVER_BUDGET, Cause.WORKER_TIMEOUT),
        (None, False, Cause.OVER_BUDGET, Cause.WORKER_TIMEOUT),
        (None, True, Cause.OVER_BUDGET, Cause.WORKER_TIMEOUT),
    ],
)
def test_a_worker_that_is_late_is_ended_and_may_have_an_excuse(
    told: Told, gpu: bool, cause: Cause, symptom: Cause | None
) -> None:
    engine = Telling(told)
    meter = metered(engine, looks=2, seconds=5.5, gpu=gpu)
    assert engine.killed == 1 and meter.excess is not None
    assert (meter.excess.cause, meter.excess.symptom) == (cause, symptom)
    meter.require_engine()


def test_what_is_found_at_the_end_counts_and_nobody_is_killed_for_it() -> None:
    engine = Telling({WORKER: 1.0}, {WORKER: 30.0})
    meter = metered(engine, looks=1)
    assert engine.killed == 0 and meter.excess is not None
    meter.watch()
    assert engine.killed == 0  # it is over


def test_an_engine_that_went_away_is_remembered() -> None:
    meter = metered(Telling({WORKER: 1.0}, AWAY, {WORKER: 1.0}), looks=2, seconds=5.0)
    assert meter.excess is not None
    with pytest.raises(InfrastructureError, match="went away"):
        meter.require_engine()
