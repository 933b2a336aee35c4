"""What was measured on a slot, and whether a run there was disturbed."""

from __future__ import annotations

import pytest

from controller.core.hardware.disturbance import (
    GIB,
    CpuReading,
    GpuRecord,
    NoiseConfig,
    confirms,
    cpu_conditions,
    gpu_conditions,
    host_cpu,
    judged,
    restless,
    spoiling,
)
from controller.core.hardware.nvidia_smi import GpuSample
from controller.core.values import (
    Cause,
    Conditions,
    CpuConditions,
    Disturbance,
    DisturbanceKind,
    GpuConditions,
    RunOutcome,
)

CONFIG = NoiseConfig()
CPU, LOST = DisturbanceKind.CPU_LOAD, DisturbanceKind.GPU_LOST
SHARED, THROTTLED = DisturbanceKind.GPU_SHARED, DisturbanceKind.GPU_THROTTLED


def cpu(contended: float, others: float | None = None, seconds: float = 300.0) -> CpuConditions:
    others = contended if others is None else others
    return CpuConditions(seconds=seconds, ours=0.5, others=others, contended=contended)


def gpu(**told: object) -> GpuConditions:
    return GpuConditions.model_validate({"spec_sha256": "", "samples": 60, **told})


@pytest.mark.parametrize(
    ("cpus", "gpus", "kinds"),
    [
        (None, None, []),
        (cpu(0.02), None, []),
        (cpu(0.25), None, []),
        (cpu(0.26), None, [CPU]),
        (cpu(0.0, others=0.9), None, []),  # a large machine: others are busy, and CPUs are idle all the same
        (cpu(0.9, seconds=3.9), None, []),  # a run that failed at once: mostly the engine's own work
        (None, gpu(), []),
        (None, gpu(throttled={"hw_thermal_slowdown": 0.25}), []),
        (None, gpu(throttled={"hw_slowdown": 0.1, "hw_thermal_slowdown": 0.3}), [THROTTLED]),
        (None, gpu(throttled={"sw_thermal_slowdown": 1.0}, samples=2), []),
        (None, gpu(foreign_bytes=2 * GIB), []),  # a desktop
        (None, gpu(foreign_bytes=2 * GIB + 1), [SHARED]),
        (None, gpu(left_bytes=2 * GIB + 1), [SHARED]),
        (None, gpu(foreign_share=0.2), []),
        (None, gpu(foreign_share=0.9), [SHARED]),
        (cpu(0.5), gpu(lost="GPU is lost.", samples=0), [CPU, LOST]),
    ],
)
def test_what_is_beyond_the_limits(
    cpus: CpuConditions | None, gpus: GpuConditions | None, kinds: list[DisturbanceKind]
) -> None:
    found = judged(cpus, gpus, CONFIG)
    assert (found.cpu, found.gpu) == (cpus, gpus)
    assert [disturbance.kind for disturbance in found.disturbances] == kinds
    assert all(disturbance.detail for disturbance in found.disturbances)


def test_the_evidence_is_in_numbers() -> None:
    [found] = judged(cpu(0.613), None, CONFIG).disturbances
    assert (found.measured, found.limit) == (0.613, 0.25)
    assert "61%" in found.detail and "25%" in found.detail


@pytest.mark.parametrize(
    ("kind", "cause", "spoils"),
    [
        (CPU, None, True),
        (CPU, Cause.TIMEOUT, True),
        (CPU, Cause.NO_CHECKPOINT, True),
        (CPU, Cause.NAN, False),
        (CPU, Cause.OOM, False),
        (CPU, Cause.SYNTAX, False),
        (THROTTLED, Cause.OOM, False),
        (SHARED, Cause.OOM, True),
        (SHARED, Cause.SHAPE, False),
        (LOST, Cause.EXIT, True),
        (LOST, Cause.NAN, True),
        (LOST, Cause.SYNTAX, False),
        (LOST, Cause.FORWARD, True),
        (LOST, Cause.NON_CAUSAL, False),
        (CPU, Cause.WORKER_TIMEOUT, True),
        (CPU, Cause.FORWARD, False),
        (CPU, Cause.HOPELESS, True),
        (LOST, Cause.HOPELESS, True),
    ],
)
def test_a_crash_is_excused_only_by_what_can_have_caused_it(
    kind: DisturbanceKind, cause: Cause | None, spoils: bool
) -> None:
    disturbance = Disturbance(kind=kind, detail="")
    outcome = RunOutcome(
        seconds=1, exit_code=1, cause=cause, conditions=Conditions(disturbances=(disturbance,))
    )
    assert spoiling(outcome) == (disturbance if spoils else None)


def test_a_run_that_nobody_watched_was_not_disturbed() -> None:
    assert spoiling(RunOutcome(seconds=1, exit_code=0)) is None
    assert spoiling(RunOutcome(seconds=1, exit_code=0, conditions=Conditions(cpu=cpu(0.1)))) is None


STAT = """cpu  1000 200 300 4000 50 6 7 80 500 0
cpu0 500 100 150 2000 25 3 3 40 250 0
cpu1 500 100 150 2000 25 3 4 40 250 0
intr 12345 0 9
ctxt 678
"""


def test_proc_stat() -> None:
    assert host_cpu(STAT, 100.0) == (15.93, 40.5)
    busy, idle = host_cpu(STAT, 100.0, {0, 1})
    assert (busy, idle) == pytest.approx((15.93, 40.5), abs=0.02)
    assert sum(host_cpu(STAT, 100.0, {1})) < busy + idle
    with pytest.raises(ValueError, match="no line"):
        host_cpu(STAT, 100.0, {0, 7})


@pytest.mark.parametrize("text", ["", "intr 5", "cpu  1 2 3", "cpu  a b c d e f g h"])
def test_another_proc_stat_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        host_cpu(text, 100.0)


def reading(at: float, busy: float, idle: float, **own: float) -> CpuReading:
    return CpuReading(at, busy, idle, own)


@pytest.mark.parametrize(
    ("readings", "expected"),
    [
        ([], None),
        ([reading(0, 10, 10)], None),
        ([reading(0, 10, 10), reading(0, 10, 10)], None),
        # Two CPUs for ten seconds, all of it T's.
        ([reading(0, 100, 50, t=5), reading(10, 120, 50, t=25)], (1.0, 0.0, 0.0)),
        # A load beside T that leaves no CPU idle.
        ([reading(0, 100, 50, t=0), reading(10, 120, 50, t=8)], (0.4, 0.6, 0.6)),
        # The same load while T does not use what is there.
        ([reading(0, 100, 50, t=0), reading(10, 113, 57, t=1)], (0.05, 0.6, 0.0)),
        # A rehearsal that comes, and one that goes: its last seconds cannot be told from those of others.
        ([reading(0, 0, 0, t=0, r=4), reading(10, 20, 0, t=15, s=5)], (1.0, 0.0, 0.0)),
        ([reading(0, 0, 0, t=0, r=4), reading(10, 20, 0, t=15)], (0.75, 0.25, 0.25)),
        # Our own counters ahead of the machine's, by a tick or a slow answer.
        ([reading(0, 0, 0, t=0), reading(10, 19.9, 0, t=20)], (1.0, 0.0, 0.0)),
        # iowait may be taken back.
        ([reading(0, 0, 10, t=0), reading(10, 20, 9.9, t=20)], (1.0, 0.0, 0.0)),
        # Half of the time with others.
        ([reading(0, 0, 0, t=0), reading(10, 20, 0, t=20), reading(20, 40, 0, t=30)], (0.75, 0.25, 0.25)),
    ],
)
def test_whose_cpu_time_it_was(
    readings: list[CpuReading], expected: tuple[float, float, float] | None
) -> None:
    found = cpu_conditions(readings)
    assert (None if found is None else (found.ours, found.others, found.contended)) == expected
    if found is not None:
        assert found.seconds == readings[-1].at


def sample(used_gib: float, **told: object) -> GpuSample:
    return GpuSample(index=0, used_bytes=int(used_gib * GIB), **told)  # type: ignore[arg-type]


HOT = sample(0.1, throttled=frozenset({"hw_thermal_slowdown"}))


def test_a_gpu_before_during_and_after_a_training() -> None:
    samples = [
        (1.0, sample(0.25, utilization=0.99)),  # the driver wakes up
        (2.0, sample(0.5, utilization=0.01)),
        (12.0, sample(60.0, temperature=60.0, sm_clock=1980.0, power=690.0)),
        (17.0, sample(70.0, temperature=70.0, sm_clock=1380.0, throttled=frozenset({"hw_slowdown"}))),
        (20.2, sample(70.0, temperature=99.0)),  # T has ended, and its memory is not free yet
        (20.8, sample(3.0, temperature=50.0)),
    ]
    found = gpu_conditions(GpuRecord("abc", samples), free=-1.0, began=3.0, ended=20.0)
    assert found == GpuConditions(
        spec_sha256="abc",
        samples=2,
        temperature_mean=65.0,
        temperature_max=70.0,
        sm_clock_mean=1680.0,
        sm_clock_min=1380.0,
        power_mean=690.0,
        power_max=690.0,
        throttled={"hw_slowdown": 0.5},
        foreign_bytes=GIB // 2,
        left_bytes=3 * GIB,
        foreign_share=0.01,
    )


def test_a_gpu_that_said_nothing() -> None:
    found = gpu_conditions(GpuRecord("", lost="GPU is lost."), free=1.0, began=3.0, ended=20.0)
    assert found == GpuConditions(spec_sha256="", samples=0, lost="GPU is lost.")


@pytest.mark.parametrize(
    ("free", "samples", "foreign"),
    [
        (10.0, [(11.3, sample(0.5, utilization=0.3))], (GIB // 2, 0.3)),
        # Memory is freed before the driver's mean forgets how busy the worker was.
        (10.0, [(10.6, sample(0.5, utilization=0.9))], (GIB // 2, None)),
        (10.0, [(10.4, sample(70.0, utilization=0.9))], (None, None)),
        (10.0, [(9.9, sample(70.0)), (11.3, sample(0.5)), (11.9, sample(0.25))], (GIB // 4, None)),
        # A run that takes the GPU in its first moment is not before itself.
        (10.0, [(12.1, sample(70.0, utilization=0.9))], (None, None)),
        (10.0, [], (None, None)),
        # Nobody knows what was on the GPU: the training was adopted.
        (None, [(11.3, sample(9.0, utilization=0.3))], (None, None)),
    ],
)
def test_only_what_came_when_nothing_of_ours_used_the_gpu_is_before_a_training(
    free: float | None, samples: list[tuple[float, GpuSample]], foreign: tuple[int | None, float | None]
) -> None:
    found = gpu_conditions(GpuRecord("", samples), free, began=12.0, ended=20.0)
    assert (found.foreign_bytes, found.foreign_share) == foreign


@pytest.mark.parametrize(
    ("cpus", "record", "kind"),
    [
        (None, None, None),
        (cpu(0.0, others=0.1), GpuRecord(""), None),
        (cpu(0.0, others=0.5), None, CPU),  # nobody of ours is there to be disturbed: idle CPUs do not help
        (None, GpuRecord("", [(1.0, sample(0.1, utilization=0.9))]), SHARED),
        (None, GpuRecord("", [(1.0, sample(0.1, utilization=0.9)), (2.0, sample(0.1, utilization=0))]), None),
        (None, GpuRecord("", [(1.0, sample(9.0)), (2.0, sample(0.5))]), None),
        (None, GpuRecord("", [(1.0, sample(0.5)), (2.0, sample(9.0))]), SHARED),
        (cpu(0.0, others=0.5), GpuRecord("", [], "GPU is lost."), LOST),
        (None, GpuRecord("", [(1.0, HOT), (2.0, HOT)]), THROTTLED),
        (None, GpuRecord("", [(n, HOT if n < 1 else sample(0.1)) for n in range(5)]), None),
    ],
)
def test_a_slot_without_a_training(
    cpus: CpuConditions | None, record: GpuRecord | None, kind: DisturbanceKind | None
) -> None:
    found = restless(cpus, record, CONFIG)
    assert (found.kind if found else None) == kind


@pytest.mark.parametrize(
    ("found", "before"),
    [
        (gpu(foreign_bytes=9 * GIB), True),
        (gpu(foreign_share=0.9), True),
        (gpu(left_bytes=9 * GIB), False),  # may be the run's own, not free yet
        (gpu(throttled={"hw_thermal_slowdown": 0.9}), False),  # a run can make a GPU hot
        (gpu(lost="GPU is lost."), False),
    ],
)
def test_only_what_was_seen_before_a_run_cannot_be_its_own_work(found: GpuConditions, before: bool) -> None:
    [disturbance] = judged(None, found, CONFIG).disturbances
    assert disturbance.before is before


@pytest.mark.parametrize(
    ("seen", "found", "shows"),
    [(CPU, CPU, True), (LOST, CPU, True), (SHARED, CPU, False), (THROTTLED, LOST, False)],
)
def test_what_is_seen_without_the_run_shows_that_it_was_not_the_runs_own(
    seen: DisturbanceKind, found: DisturbanceKind, shows: bool
) -> None:
    assert confirms(Disturbance(kind=seen, detail=""), Disturbance(kind=found, detail="")) is shows
