"""Watches the slot while T trains, and looks whether it is calm before a disturbed run is repeated.

The CPUs' counters are those of the machine (/proc/stat tells them inside a container too), minus what the
home's containers and the controller used. A GPU is looked at by a container of its own, which prints what the
driver says, all through a session: what it says between two trainings is what the GPU was like before the
second, and no training waits for it. All of it happens beside the thread that keeps T's clock, and nothing of
it ever fails a run.
"""

from __future__ import annotations

import math
import os
import threading
from contextlib import suppress
from pathlib import Path

import structlog

from controller.core.containers import domain_specs as containers
from controller.core.containers import templates
from controller.core.containers.config import SealedConfig
from controller.core.containers.domains import Domain
from controller.core.containers.names import SLOT_PLACE, Place
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
from controller.core.untrusted import clean_line
from controller.core.values import Conditions, CpuConditions, Disturbance, DisturbanceKind, GpuConditions
from controller.ports import Attempt, Clock, Sandbox

log = structlog.stdlib.get_logger(__name__)

_CPU_SECONDS = 3.0
"""Between two readings of the CPUs. Each costs the engine some milliseconds."""
_LOOK_SECONDS = 3.0
"""How long a slot without a training is looked at."""
_FIRST_SECONDS = 15.0
"""For the container that asks the GPU's driver to say something, before a run goes unwatched."""
_ROOM_SECONDS = 60.0
"""What must be left of that container's life, beside the budget, when a training begins."""
_KEPT_SECONDS = 2.0
"""Of what a GPU says during a run, one sample in so much time is kept."""
_GLANCE_SECONDS = 0.2
"""How soon a stop is noticed."""
_CLOSING_SECONDS = 10.0
"""For a container that is being started to have started, before it is removed."""
_LINE_BYTES = 4096
_PROC_STAT = Path("/proc/stat")


class HostSlot:
    """`ports.Slot` on this machine and a Sandbox."""

    def __init__(
        self,
        sandbox: Sandbox,
        clock: Clock,
        *,
        config: NoiseConfig,
        containers: SealedConfig,
        home: Path,
        budget_seconds: float,
    ) -> None:
        self._sandbox, self._clock, self._config = sandbox, clock, config
        self._containers, self._budget_seconds = containers, budget_seconds
        self._place = Place(home.resolve(), SLOT_PLACE)
        self._gpu: _GpuWatch | None = None
        self._free_since: float | None = None
        """Since when nothing of ours is on the GPU; None while something may be."""
        self._blind = False
        self._seen = False
        """The GPU's driver has answered us before."""

    def ready(self, stop: threading.Event) -> None:
        if self._free_since is None:
            self._free_since = self._clock.monotonic()
        if self._containers.gpu:
            gpu = self._asking()
            if not self._blind:
                gpu.await_samples(2 * len(self._containers.gpu), stop)
            self._judge_answers(gpu, stop)

    def watch(self, attempt: Attempt, stop: threading.Event) -> SlotWatch:
        free, self._free_since = self._free_since, None
        gpu = self._asking() if self._containers.gpu and not self._blind else None
        if gpu is not None:
            gpu.keep_few(since=free)
        trainer = Place(self._place.home, attempt.experiment, attempt.number).name(Domain.TRAINER)
        cpu = _CpuWatch(self._sandbox, self._clock, trainer)
        cpu.start()
        return SlotWatch(self._clock, self._config, cpu, gpu, free, stop)

    def vacated(self) -> None:
        self._free_since = self._clock.monotonic()

    def look(self, stop: threading.Event) -> Disturbance | None:
        if self._containers.gpu and (found := self._look_at_gpu(stop)) is not None:
            return found
        before = read_cpu(self._sandbox, self._clock)
        stop.wait(_LOOK_SECONDS)
        after = read_cpu(self._sandbox, self._clock)
        cpu = cpu_conditions([before, after]) if before and after else None
        return restless(cpu, None, self._config)

    def close(self) -> None:
        """Look no more. Doing it twice is fine."""
        gpu, self._gpu = self._gpu, None
        if gpu is not None:
            gpu.close()

    def _look_at_gpu(self, stop: threading.Event) -> Disturbance | None:
        began, gpu = self._clock.monotonic(), self._asking()
        gpu.await_samples(2 * len(self._containers.gpu), stop, since=began)
        self._judge_answers(gpu, stop)
        if isinstance(gpu.failure, NotReady):
            # The engine cannot hand the GPU out. Where it once could, that is a loss, not a lack.
            detail = clean_line(str(gpu.failure), 500)
            return Disturbance(kind=DisturbanceKind.GPU_LOST, detail=detail) if self._seen else None
        return restless(None, gpu.record(since=began), self._config)

    def _asking(self) -> _GpuWatch:
        """The container that asks the driver; another one if it has ended or would before a training does."""
        needed = self._clock.monotonic() + self._budget_seconds + _ROOM_SECONDS
        if self._gpu is None or not self._gpu.goes_on or self._gpu.due < needed:
            spec = templates.telemetry(self._containers, self._place, self._budget_seconds)
            self._gpu = _GpuWatch(self._sandbox, self._clock, spec)
        return self._gpu

    def _judge_answers(self, gpu: _GpuWatch, stop: threading.Event) -> None:
        """Whether the driver can be asked. If not, that is logged once, and waited for no more."""
        if gpu.has_answered:
            self._seen, self._blind = True, False
        elif not self._blind and not stop.is_set():
            self._blind = True
            reason = clean_line(str(gpu.failure or gpu.said or "it said nothing"), 500)
            log.warning("no_gpu_telemetry", reason=reason, advice="runs go on without it")


class SlotWatch:
    """`ports.Watch`: both halves of it."""

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


def read_cpu(sandbox: Sandbox, clock: Clock) -> CpuReading | None:
    """None where it cannot be known: no /proc, an engine on another machine, an engine that fails."""
    try:
        busy, idle = host_cpu(_PROC_STAT.read_text(encoding="ascii"), os.sysconf("SC_CLK_TCK"))
        used = sandbox.usage()
    except (OSError, ValueError, GloveboxError):
        return None
    if used is None:
        return None
    return CpuReading(clock.monotonic(), busy, idle, {**used, "controller": sum(os.times()[:4])})


class _CpuWatch(threading.Thread):
    """Takes readings until T has ended. Beside T's clock: an engine that hangs must delay no kill."""

    def __init__(self, sandbox: Sandbox, clock: Clock, trainer: str) -> None:
        super().__init__(name="watch the CPUs", daemon=True)
        self._readings: list[CpuReading] = []
        self._trains = False
        self._sandbox, self._clock, self._trainer = sandbox, clock, trainer
        self._over = threading.Event()

    def close(self) -> None:
        """The reading that is being taken, if one is, is not waited for."""
        self._over.set()

    def conditions(self) -> CpuConditions | None:
        """None if T was never seen: what it used must not look like that of others."""
        return cpu_conditions([*self._readings]) if self._trains else None

    def run(self) -> None:
        while not self._over.is_set():
            reading = read_cpu(self._sandbox, self._clock)
            if reading is not None:
                if self._over.is_set() or (self._trains and self._trainer not in reading.own):
                    return  # T has ended, and what it used since the last reading cannot be known
                self._trains = self._trainer in reading.own
                self._readings.append(reading)
            self._over.wait(_CPU_SECONDS)


class _GpuWatch:
    """The container that asks the driver, and what it said so far. Nobody waits for its start."""

    def __init__(self, sandbox: Sandbox, clock: Clock, spec: ContainerSpec) -> None:
        self._sandbox, self._clock, self._spec = sandbox, clock, spec
        self.due = clock.monotonic() + spec.life_seconds
        """When it ends by itself, Clock.monotonic."""
        self.said = ""
        """The last line that was about no GPU."""
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
        """False once it has no more to say."""
        if self._starter.is_alive():
            return True
        return not self._lost and self._reader is not None and self._reader.is_alive()

    @property
    def has_answered(self) -> bool:
        return bool(self._samples or self._lost)

    def record(self, since: float = -math.inf) -> GpuRecord:
        """What came from then on, Clock.monotonic."""
        with self._news:
            samples = [(at, sample) for at, sample in self._samples if at >= since]
            return GpuRecord(self._spec.digest(), samples, self._lost)

    def keep_few(self, since: float | None) -> None:
        """For as long as a training takes; what was before `since`, Clock.monotonic, is forgotten."""
        with self._news:
            self._keeps_few = True
            self._samples = [sample for sample in self._samples if since is not None and sample[0] >= since]

    def keep_all(self) -> None:
        self._keeps_few = False

    def await_samples(self, number: int, stop: threading.Event, since: float = -math.inf) -> None:
        """Until so many came since then, Clock.monotonic, or a GPU is lost; no longer than makes sense."""
        begin = max(since, self._clock.monotonic())
        waits = 3.0 * containers.TELEMETRY_SECONDS if self._samples else _FIRST_SECONDS
        end = begin + max(waits, float(number) * containers.TELEMETRY_SECONDS)
        with self._news:
            while not self._lost and sum(at >= since for at, _ in self._samples) < number:
                left = end - self._clock.monotonic()
                if left <= 0 or stop.is_set() or not self.goes_on:
                    return
                self._news.wait(min(left, _GLANCE_SECONDS))

    def _begin(self) -> None:
        try:
            self._sandbox.remove(containers=[self._spec.name])  # what came before it, if anything did
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
        with suppress(GloveboxError):  # its own deadline removes it too
            self._sandbox.remove(containers=[self._spec.name])
