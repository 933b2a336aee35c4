"""The noise monitor: measures how other programs use the slot during a training, and between trainings.

CPU use is that of the whole machine (/proc/stat shows it inside a container too), minus what the home's
containers and the controller used. If the slot has CPUs of its own, it is that of these CPUs, and containers
of experiments on other slots do not count.

A GPU is sampled by a container of its own that runs nvidia-smi all through a session: its samples between two
trainings show the state of the GPU before the second, so no training waits for them. All of this runs in
threads beside the one that keeps T's deadline, and none of it can fail a run.
"""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import structlog

from controller.core.containers import builders
from controller.core.containers.config import SealedConfig
from controller.core.containers.names import SLOT, ContainerNames
from controller.core.containers.orders import Item
from controller.core.containers.spec import ContainerSpec
from controller.core.errors import GloveboxError, InfrastructureError, NotReady
from controller.core.hardware import nvidia_smi
from controller.core.hardware.disturbance import (
    FREED_SECONDS,
    CpuReading,
    GpuRecord,
    NoiseConfig,
    cpu_conditions,
    gpu_conditions,
    host_cpu,
    judged,
    restless,
)
from controller.core.hardware.nvidia_smi import GpuLost, GpuSample
from controller.core.hardware.slots import cpu_set
from controller.core.untrusted import clean_line
from controller.core.values import Conditions, CpuConditions, Disturbance, DisturbanceKind, GpuConditions
from controller.ports import Attempt, Clock, Sandbox

log = structlog.stdlib.get_logger(__name__)

_CPU_SECONDS = 3.0
"""Time between two readings of the CPUs. Each costs the engine a few milliseconds."""
_FRESH_SECONDS = 1.0
"""A reading this young is as good as a new one."""
_LOOK_SECONDS = 3.0
"""How long the CPUs are measured while no training runs."""
_FIRST_SECONDS = 15.0
"""How long to wait for the first sample of a GPU before a run goes on without any."""
_ROOM_SECONDS = 60.0
"""How long the sampling container must live beyond the budget of a training that begins."""
_KEPT_SECONDS = 2.0
"""During a training one sample of each GPU is kept in this time."""
_GLANCE_SECONDS = 0.2
"""How soon a stop is noticed."""
_CLOSING_SECONDS = 10.0
"""How long to wait for a container that is still starting, before it is removed."""
_LINE_BYTES = 4096
_PROC_STAT = Path("/proc/stat")


class NoiseMonitor:
    """`ports.Monitor` on this machine and a Sandbox."""

    def __init__(
        self,
        sandbox: Sandbox,
        clock: Clock,
        *,
        config: NoiseConfig,
        containers: SealedConfig,
        home: Path,
        budget_seconds: float,
        slot: int = 0,
        counters: CpuCounters | None = None,
    ) -> None:
        """`counters`: those of all slots; None: there is one slot."""
        self._sandbox, self._clock, self._config = sandbox, clock, config
        self._containers, self._budget_seconds = containers, budget_seconds
        self._names = ContainerNames.of_slot(home.resolve(), slot)
        self._cpus = SlotCpus(counters or CpuCounters(sandbox, clock), self._names, cpu_set(containers.cpus))
        self._gpu: _GpuWatch | None = None
        self._free_since: float | None = None
        """Since when none of our containers has used the GPU; None while one may."""
        self._blind = False
        """The GPU cannot be sampled."""
        self._seen = False
        """The GPU was sampled at least once."""

    def ready(self, stop: threading.Event) -> None:
        if self._free_since is None:
            self._free_since = self._clock.monotonic()
        if self._containers.gpu:
            gpu = self._sampling()
            if not self._blind:
                gpu.await_samples(2 * len(self._containers.gpu), stop)
            self._note_samples(gpu, stop)

    def watch(self, attempt: Attempt, stop: threading.Event) -> NoiseWatch:
        free, self._free_since = self._free_since, None
        gpu = self._sampling() if self._containers.gpu and not self._blind else None
        if gpu is not None:
            gpu.keep_few(since=free)
        self._cpus.experiment = attempt.experiment
        trainer = ContainerNames(self._names.home, attempt.experiment, attempt.number).name(Item.TRAINER)
        cpu = _CpuWatch(self._cpus, trainer)
        cpu.start()
        return NoiseWatch(self._clock, self._config, cpu, gpu, free, stop)

    def vacated(self) -> None:
        self._free_since = self._clock.monotonic()

    def look(self, stop: threading.Event) -> Disturbance | None:
        if self._containers.gpu and (found := self._look_at_gpu(stop)) is not None:
            return found
        before = self._cpus.read(fresh=True)  # one of before the run's end would show the run itself
        stop.wait(_LOOK_SECONDS)
        after = self._cpus.read()
        cpu = cpu_conditions([before, after]) if before and after else None
        return restless(cpu, None, self._config)

    def close(self) -> None:
        """Stop sampling. Idempotent."""
        gpu, self._gpu = self._gpu, None
        if gpu is not None:
            gpu.close()

    def _look_at_gpu(self, stop: threading.Event) -> Disturbance | None:
        began, gpu = self._clock.monotonic(), self._sampling()
        gpu.await_samples(2 * len(self._containers.gpu), stop, since=began)
        self._note_samples(gpu, stop)
        if isinstance(gpu.failure, NotReady):
            # The engine cannot give the GPU to a container. If it once could, the GPU has been lost since.
            detail = clean_line(str(gpu.failure), 500)
            return Disturbance(kind=DisturbanceKind.GPU_LOST, detail=detail) if self._seen else None
        return restless(None, gpu.record(since=began), self._config)

    def _sampling(self) -> _GpuWatch:
        """The sampling container; a new one if the last has ended or would end before a training does."""
        needed = self._clock.monotonic() + self._budget_seconds + _ROOM_SECONDS
        if self._gpu is None or not self._gpu.goes_on or self._gpu.due < needed:
            spec = builders.telemetry(self._containers, self._names, self._budget_seconds)
            self._gpu = _GpuWatch(self._sandbox, self._clock, spec)
        return self._gpu

    def _note_samples(self, gpu: _GpuWatch, stop: threading.Event) -> None:
        """Note whether the GPU can be sampled. If not, log that once and do not wait for samples again."""
        if gpu.has_answered:
            self._seen, self._blind = True, False
        elif not self._blind and not stop.is_set():
            self._blind = True
            reason = clean_line(str(gpu.failure or gpu.said or "it said nothing"), 500)
            log.warning("no_gpu_telemetry", reason=reason, advice="runs go on without it")


class NoiseWatch:
    """`ports.Watch`: the measurements of CPU and GPU during one training."""

    def __init__(
        self,
        clock: Clock,
        config: NoiseConfig,
        cpu: _CpuWatch,
        gpu: _GpuWatch | None,
        free: float | None,
        stop: threading.Event,
    ) -> None:
        self._clock, self._config, self._stop = clock, config, stop
        self._cpu, self._gpu, self._free = cpu, gpu, free

    def conclude(self, began: float) -> Conditions | None:
        ended = self._clock.monotonic()
        self.close()
        gpu = self._of_gpu(self._gpu, began, ended) if self._gpu is not None else None
        cpu = self._cpu.conditions()
        return judged(cpu, gpu, self._config) if cpu or gpu else None

    def _of_gpu(self, gpu: _GpuWatch, began: float, ended: float) -> GpuConditions | None:
        gpu.await_samples(1, self._stop, since=ended + FREED_SECONDS)
        if not gpu.has_answered:
            return None
        return gpu_conditions(gpu.record(), self._free, began, ended)

    def close(self) -> None:
        self._cpu.close()
        if self._gpu is not None:
            self._gpu.keep_all()


@dataclass(frozen=True)
class _Counters:
    """What all CPUs and all containers of the home have used so far."""

    at: float
    """Clock.monotonic."""
    stat: str
    """/proc/stat."""
    used: Mapping[str, float]
    """CPU seconds by container, and those of the controller."""


class CpuCounters:
    """Reads them for the monitors of all slots: with many slots, reading for each would be a load."""

    def __init__(self, sandbox: Sandbox, clock: Clock) -> None:
        self._sandbox, self._clock = sandbox, clock
        self._lock = threading.Lock()
        self._last: _Counters | None = None
        self._tried = -math.inf

    def read(self, fresh: bool = False) -> _Counters | None:
        """At most `_FRESH_SECONDS` old, or `fresh`. None if there are none: no /proc, an engine on another
        machine, an engine that fails."""
        with self._lock:
            now = self._clock.monotonic()
            if fresh or now - self._tried >= _FRESH_SECONDS:
                self._tried, self._last = now, self._read()
            return self._last

    def _read(self) -> _Counters | None:
        try:
            stat, used = _PROC_STAT.read_text(encoding="ascii"), self._sandbox.usage()
        except (OSError, ValueError, GloveboxError):
            return None
        if used is None:
            return None
        return _Counters(self._clock.monotonic(), stat, {**used, "controller": sum(os.times()[:4])})


class SlotCpus:
    """The CPUs of a slot, or all of them."""

    def __init__(self, counters: CpuCounters, names: ContainerNames, cpus: frozenset[int]) -> None:
        """`names`: of the slot. `cpus`: its own; empty: all."""
        self._counters, self._names, self._cpus = counters, names, cpus
        self.experiment = ""
        """The one on the slot."""

    def read(self, fresh: bool = False) -> CpuReading | None:
        """None if it cannot be measured. `fresh`: not a reading of a moment ago."""
        counters = self._counters.read(fresh)
        if counters is None:
            return None
        try:
            busy, idle = host_cpu(counters.stat, os.sysconf("SC_CLK_TCK"), self._cpus)
        except ValueError:
            return None
        # What has no CPUs of its own (the controller, a rehearsal) may have used these, and counts as ours.
        own = {name: used for name, used in counters.used.items() if not self._cpus or self._runs_here(name)}
        return CpuReading(counters.at, busy, idle, own)

    def _runs_here(self, name: str) -> bool:
        """False for what is kept on the CPUs of another slot."""
        experiment = name.removeprefix(self._names.prefix).partition("-")[0]
        if experiment == SLOT:
            return name.startswith(f"{self._names.experiment_prefix}{self._names.attempt}-")
        return experiment == self.experiment or not experiment.isdecimal()


class _CpuWatch(threading.Thread):
    """Takes readings until T has ended, in a thread of its own: an engine that hangs must not delay a
    kill."""

    def __init__(self, cpus: SlotCpus, trainer: str) -> None:
        super().__init__(name="watch the CPUs", daemon=True)
        self._readings: list[CpuReading] = []
        self._trains = False
        self._cpus, self._trainer = cpus, trainer
        self._over = threading.Event()

    def close(self) -> None:
        """Take no more readings. Does not wait for one that is being taken."""
        self._over.set()

    def conditions(self) -> CpuConditions | None:
        """None if T was never seen: its use must not count as that of others."""
        return cpu_conditions([*self._readings]) if self._trains else None

    def run(self) -> None:
        while not self._over.is_set():
            reading = self._cpus.read()
            if reading is not None:
                if self._over.is_set() or (self._trains and self._trainer not in reading.own):
                    return  # T has ended, and its use since the last reading is unknown
                self._trains = self._trainer in reading.own
                self._readings.append(reading)
            self._over.wait(_CPU_SECONDS)


class _GpuWatch:
    """The container that samples the GPU, and its samples so far. It starts in the background."""

    def __init__(self, sandbox: Sandbox, clock: Clock, spec: ContainerSpec) -> None:
        self._sandbox, self._clock, self._spec = sandbox, clock, spec
        self.due = clock.monotonic() + spec.life_seconds
        """When it ends by itself, Clock.monotonic."""
        self.said = ""
        """The last line that was not a sample."""
        self.failure: GloveboxError | None = None
        """Why it could not be started."""
        self._lost = ""
        self._samples: list[tuple[float, GpuSample]] = []
        self._news = threading.Condition()
        self._rest = b""
        self._kept: dict[int, float] = {}
        self._keeps_few = False
        self._reader: threading.Thread | None = None
        self._starter = threading.Thread(target=self._begin, name="begin to watch the GPU", daemon=True)
        self._starter.start()

    @property
    def goes_on(self) -> bool:
        """False once no more samples will come."""
        if self._starter.is_alive():
            return True
        return not self._lost and self._reader is not None and self._reader.is_alive()

    @property
    def has_answered(self) -> bool:
        return bool(self._samples or self._lost)

    def record(self, since: float = -math.inf) -> GpuRecord:
        """The samples since then, Clock.monotonic."""
        with self._news:
            samples = [(at, sample) for at, sample in self._samples if at >= since]
            return GpuRecord(self._spec.digest(), samples, self._lost)

    def keep_few(self, since: float | None) -> None:
        """Keep fewer samples, during a training, and drop those before `since`, Clock.monotonic."""
        with self._news:
            self._keeps_few = True
            self._samples = [sample for sample in self._samples if since is not None and sample[0] >= since]

    def keep_all(self) -> None:
        self._keeps_few = False

    def await_samples(self, number: int, stop: threading.Event, since: float = -math.inf) -> None:
        """Wait until so many came since then, Clock.monotonic, or a GPU is lost, or they are overdue."""
        begin = max(since, self._clock.monotonic())
        waits = 3.0 * builders.TELEMETRY_SECONDS if self._samples else _FIRST_SECONDS
        end = begin + max(waits, float(number) * builders.TELEMETRY_SECONDS)
        with self._news:
            while not self._lost and sum(at >= since for at, _ in self._samples) < number:
                left = end - self._clock.monotonic()
                if left <= 0 or stop.is_set() or not self.goes_on:
                    return
                self._news.wait(min(left, _GLANCE_SECONDS))

    def _begin(self) -> None:
        try:
            self._sandbox.remove(containers=[self._spec.name])  # an earlier one
            self._sandbox.start(self._spec)
            self._reader = self._sandbox.follow(self._spec.name, self._hear)
        except (InfrastructureError, NotReady) as error:
            self.failure = error

    def _hear(self, block: bytes) -> None:
        *lines, rest = (self._rest + block).split(b"\n")
        self._rest = rest[-_LINE_BYTES:]
        with self._news:
            for line in lines:
                self._note(nvidia_smi.parse(line.decode("utf-8", "replace")), line)
            self._news.notify_all()

    def _note(self, heard: GpuSample | GpuLost | None, line: bytes) -> None:
        if isinstance(heard, GpuLost):
            self._lost = self._lost or heard.said
        elif heard is None:
            self.said = clean_line(line.decode("utf-8", "replace")) or self.said
        else:
            now = self._clock.monotonic()
            if not self._keeps_few or now - self._kept.get(heard.index, 0.0) >= _KEPT_SECONDS:
                self._kept[heard.index] = now
                self._samples.append((now, heard))

    def close(self) -> None:
        self._starter.join(_CLOSING_SECONDS)
        with suppress(GloveboxError):  # after its deadline the reaper removes it
            self._sandbox.remove(containers=[self._spec.name])
