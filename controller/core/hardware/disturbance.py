"""Detects noisy neighbours: measurements on a slot → whether a run there was disturbed. Pure.

A run has a fixed time, so anything that takes CPU or GPU away from it worsens its score and makes comparisons
with undisturbed runs unfair. docs/decisions/noise.md says what counts as disturbed, and why no run can choose
whether it is repeated.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from controller.core.hardware.nvidia_smi import GpuSample
from controller.core.values import (
    REJECT_CAUSES,
    Cause,
    Conditions,
    CpuConditions,
    Disturbance,
    DisturbanceKind,
    GpuConditions,
    RunOutcome,
)

GIB = 1024**3

_FULL = 0.9
"""Above this share of all CPU time, the CPUs are saturated."""
_LEAST_SECONDS = 4.0
"""Shorter measurements say nothing about the CPUs: starting a container is a load of its own."""
FREED_SECONDS = 0.5
"""How long after a process ends its GPU memory may still be in use."""
_IDLE_SECONDS = 1.2
"""The same for its load, which the driver averages over up to a second."""
_LEAST_SAMPLES = 3
"""With fewer GPU samples, a share of them means nothing."""

GPU_THROTTLED_SHARE = 0.25
"""Share of the training during which heat or lack of power may lower the GPU's clocks."""
GPU_FOREIGN_SHARE = 0.25
"""How busy others may keep the GPU before a training."""

_Share = Annotated[float, Field(gt=0, le=1)]
_Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class NoiseConfig(BaseModel):
    """When a run counts as disturbed by a noisy neighbour and is repeated."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    enabled: bool = True
    """Monitor the machine during training. False: nothing is measured, and nothing is repeated for noise."""
    cpu_share: _Share = 0.25
    """Share of all CPU time that others may use while no CPU is idle, averaged over a training run."""
    gpu_foreign_bytes: Annotated[int, Field(ge=0)] = 2 * GIB
    """GPU memory that others may hold before and after a training run."""
    repeats: Annotated[int, Field(ge=0)] = 3
    """How often an experiment is repeated because its GPU was lost, because its scoring failed on a noisy
    slot, or because it was ended early there; after that its result counts. 0: never."""
    retry_seconds: _Seconds = 10.0
    """First delay before a noisy slot is checked again. Doubles each time."""
    max_retry_seconds: _Seconds = 600.0
    """Upper limit of that delay."""


@dataclass(frozen=True)
class CpuReading:
    """CPU seconds since an unspecified moment in the past. Only differences mean anything."""

    at: float
    """Clock.monotonic."""
    busy: float
    """All CPUs together."""
    idle: float
    own: Mapping[str, float]
    """CPU seconds of our own, by name: each running container of the home, and the controller."""


@dataclass
class GpuRecord:
    """What the telemetry container delivered around one training run, or during a check without one."""

    spec_sha256: str
    samples: list[tuple[float, GpuSample]] = field(default_factory=list)
    """(Clock.monotonic time of arrival, sample), in order of arrival."""
    lost: str = ""


def host_cpu(proc_stat: str, ticks_per_second: float, cpus: Collection[int] = ()) -> tuple[float, float]:
    """(busy, idle) seconds of these CPUs together, or of all, from /proc/stat, proc_stat(5).

    Time stolen by the hypervisor counts as busy: the run did not have it. Raises ValueError.
    """
    wanted = {f"cpu{number}" for number in cpus} or {"cpu"}
    busy, waiting, found = 0, 0, 0
    for line in proc_stat.splitlines():
        name, *columns = line.split()
        if name in wanted:
            user, nice, system, idle, iowait, irq, softirq, steal = map(int, columns[:8])
            busy += user + nice + system + irq + softirq + steal  # user includes guest time
            waiting += idle + iowait
            found += 1
    if found < len(wanted):
        raise ValueError("no line for one of the CPUs in /proc/stat")
    return busy / ticks_per_second, waiting / ticks_per_second


def cpu_conditions(readings: Sequence[CpuReading]) -> CpuConditions | None:
    """None without two readings at different times."""
    total = ours = others = contended = 0.0
    for before, after in pairwise(readings):
        busy, idle = after.busy - before.busy, max(0.0, after.idle - before.idle)
        if busy <= 0:
            continue
        own = min(_own(before, after), busy)
        total, ours, others = total + busy + idle, ours + own, others + busy - own
        if busy >= _FULL * (busy + idle):
            contended += busy - own
    if total == 0:
        return None
    seconds = readings[-1].at - readings[0].at
    return CpuConditions(
        seconds=round(seconds, 3),
        ours=round(ours / total, 4),
        others=round(others / total, 4),
        contended=round(contended / total, 4),
    )


def _own(before: CpuReading, after: CpuReading) -> float:
    """Our CPU seconds; those of a container that ended in between are lost and count as used by others."""
    used = (seconds - before.own.get(name, 0.0) for name, seconds in after.own.items())
    return sum(max(0.0, seconds) for seconds in used)


def gpu_conditions(record: GpuRecord, free: float | None, began: float, ended: float) -> GpuConditions:
    """`began`, `ended`: the training run. From `free` until it began, nothing of ours was on the GPU; None:
    unknown. All Clock.monotonic. Samples before the run show whether others use the GPU, but only once our
    own load has faded from them: a run that follows too soon has no usable samples.
    """
    during = [sample for at, sample in record.samples if began < at <= ended]
    since = math.inf if free is None else free
    before = [sample for at, sample in record.samples if since + FREED_SECONDS <= at <= began]
    idle = [sample for at, sample in record.samples if since + _IDLE_SECONDS <= at <= began]
    after = [sample for at, sample in record.samples if at >= ended + FREED_SECONDS]
    # The first sample after a while may wake the driver, and the GPU is then busy with that.
    busy = [sample.utilization for sample in idle if sample.utilization is not None]

    def over(pick: Callable[[GpuSample], float | None], how: Callable[[list[float]], float]) -> float | None:
        values = [value for sample in during if (value := pick(sample)) is not None]
        return round(how(values), 3) if values else None

    return GpuConditions(
        spec_sha256=record.spec_sha256,
        samples=len(during),
        temperature_mean=over(lambda sample: sample.temperature, _mean),
        temperature_max=over(lambda sample: sample.temperature, max),
        sm_clock_mean=over(lambda sample: sample.sm_clock, _mean),
        sm_clock_min=over(lambda sample: sample.sm_clock, min),
        power_mean=over(lambda sample: sample.power, _mean),
        power_max=over(lambda sample: sample.power, max),
        throttled=_reasons(during),
        foreign_bytes=before[-1].used_bytes if before else None,
        left_bytes=after[0].used_bytes if after else None,
        foreign_share=min(busy, default=None),
        lost=record.lost,
    )


def _reasons(samples: Sequence[GpuSample]) -> dict[str, float]:
    """Share of the samples by throttling reason."""
    reasons = Counter(reason for sample in samples for reason in sample.throttled)
    return {reason: round(count / len(samples), 4) for reason, count in sorted(reasons.items())}


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def judged(cpu: CpuConditions | None, gpu: GpuConditions | None, config: NoiseConfig) -> Conditions:
    """The conditions of a training run, with the limits they exceed."""
    found = [*_of_cpu(cpu, config), *_of_gpu(gpu, config)]
    return Conditions(cpu=cpu, gpu=gpu, disturbances=tuple(found))


def _of_cpu(cpu: CpuConditions | None, config: NoiseConfig) -> Iterator[Disturbance]:
    if cpu is not None and cpu.seconds >= _LEAST_SECONDS and cpu.contended > config.cpu_share:
        yield _load(cpu.contended, config, "while no CPU was idle")


def _load(share: float, config: NoiseConfig, when: str) -> Disturbance:
    detail = f"Others used {share:.0%} of the CPUs {when}; {config.cpu_share:.0%} are allowed."
    return Disturbance(kind=DisturbanceKind.CPU_LOAD, measured=share, limit=config.cpu_share, detail=detail)


def _of_gpu(gpu: GpuConditions | None, config: NoiseConfig) -> Iterator[Disturbance]:
    if gpu is None:
        return
    if gpu.lost:
        yield Disturbance(kind=DisturbanceKind.GPU_LOST, detail=f"The GPU was lost: {gpu.lost}")
    for found in _shared(gpu.foreign_bytes, gpu.foreign_share, config):
        yield found.model_copy(update={"before": True})
    yield from _shared(gpu.left_bytes, None, config)
    if gpu.samples >= _LEAST_SAMPLES:
        yield from _throttled(gpu.throttled)


def _throttled(reasons: Mapping[str, float]) -> Iterator[Disturbance]:
    reason, share = max(reasons.items(), key=lambda item: item[1], default=("", 0.0))
    if share > GPU_THROTTLED_SHARE:
        yield Disturbance(
            kind=DisturbanceKind.GPU_THROTTLED,
            measured=share,
            limit=GPU_THROTTLED_SHARE,
            detail=f"The GPU's clocks were lowered for {share:.0%} of the time ({reason}); "
            f"{GPU_THROTTLED_SHARE:.0%} are allowed.",
        )


def _shared(used: int | None, busy: float | None, config: NoiseConfig) -> Iterator[Disturbance]:
    if used is not None and used > config.gpu_foreign_bytes:
        yield Disturbance(
            kind=DisturbanceKind.GPU_SHARED,
            measured=used,
            limit=config.gpu_foreign_bytes,
            detail=f"Others used {used / GIB:.1f} GiB of the GPU's memory; "
            f"{config.gpu_foreign_bytes / GIB:.1f} GiB are allowed.",
        )
    if busy is not None and busy > GPU_FOREIGN_SHARE:
        yield Disturbance(
            kind=DisturbanceKind.GPU_SHARED,
            measured=busy,
            limit=GPU_FOREIGN_SHARE,
            detail=f"Others kept the GPU {busy:.0%} busy; {GPU_FOREIGN_SHARE:.0%} are allowed.",
        )


def restless(cpu: CpuConditions | None, gpu: GpuRecord | None, config: NoiseConfig) -> Disturbance | None:
    """The disturbance on a slot without a training run, where all other load counts."""
    if gpu is not None and gpu.lost:
        return Disturbance(kind=DisturbanceKind.GPU_LOST, detail=f"The GPU is lost: {gpu.lost}")
    if gpu is not None and gpu.samples:
        last = gpu.samples[-1][1].used_bytes
        busy = [sample.utilization for _, sample in gpu.samples if sample.utilization is not None]
        samples = [sample for _, sample in gpu.samples]
        for found in (
            *_shared(last, min(busy, default=None), config),
            *_throttled(_reasons(samples)),
        ):
            return found
    if cpu is not None and cpu.others > config.cpu_share:
        return _load(cpu.others, config, "without a training")
    return None


#: Causes that depend on the text alone, on any machine.
_OWN_CAUSES = frozenset({Cause.SYNTAX, Cause.IMPORT, Cause.SHAPE, Cause.NAME}) | REJECT_CAUSES
#: Crashes that a disturbance can explain: a lost or shared GPU explains any; slowness, only what came
#: too late.
_SLOW_CAUSES = frozenset({Cause.TIMEOUT, Cause.NO_CHECKPOINT, Cause.WORKER_TIMEOUT, Cause.HOPELESS})
_SLOW_KINDS = frozenset({DisturbanceKind.CPU_LOAD, DisturbanceKind.GPU_THROTTLED})


def spoiling(outcome: RunOutcome) -> Disturbance | None:
    """The disturbance that may have affected this outcome; None if none can have."""
    # A loss that is no number has nothing to do with how fast the machine was.
    cause = Cause.NAN if outcome.curve.broken_at is not None and outcome.cause else outcome.cause
    for found in outcome.conditions.disturbances if outcome.conditions else ():
        if cause is None or excuses(found, cause):
            return found
    return None


def excuses(found: Disturbance, cause: Cause) -> bool:
    """True if the disturbance may explain this cause."""
    return cause in _SLOW_CAUSES if found.kind in _SLOW_KINDS else excusable(cause)


def confirms(seen: Disturbance, found: Disturbance) -> bool:
    """True if `seen`, without the run, shows that `found`, during it, was not the run's own doing."""
    return seen.kind in (found.kind, DisturbanceKind.GPU_LOST)


def excusable(cause: Cause) -> bool:
    """True if some disturbance may explain this cause."""
    return cause not in _OWN_CAUSES
