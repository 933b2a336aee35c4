"""Watches the slot while T trains, and looks whether it is calm before a disturbed run is repeated.

The CPUs' counters are those of the machine (/proc/stat tells them inside a container too), minus what the
home's containers and the controller used. A GPU is looked at by a container of its own, which prints what the
driver says. All of it happens beside the thread that keeps T's clock, and nothing of it ever fails a run.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import structlog

from controller.core import containers, nvidia_smi, templates
from controller.core.container_spec import ContainerSpec
from controller.core.disturbance import (
    CpuReading,
    GpuRecord,
    NoiseConfig,
    cpu_conditions,
    gpu_conditions,
    host_cpu,
    judged,
    restless,
)
from controller.core.domains import Domain
from controller.core.model import (
    Conditions,
    CpuConditions,
    Disturbance,
    DisturbanceKind,
    GloveboxError,
    InfrastructureError,
    NotReady,
)
from controller.core.nvidia_smi import GpuLost, GpuSample
from controller.core.place import SLOT_PLACE, Place
from controller.core.sandbox_config import SealedConfig
from controller.core.untrusted import clean_line
from controller.ports import Attempt, Clock, Sandbox

log = structlog.stdlib.get_logger(__name__)

_CPU_SECONDS = 3.0
"""Between two readings of the CPUs. Each costs the engine some milliseconds."""
_LOOK_SECONDS = 3.0
"""How long a slot without a training is looked at."""
_FIRST_SECONDS = 15.0
"""For the container that asks the GPU's driver to say something, before a run goes unwatched."""
_SETTLED_SECONDS = 0.5
"""After T's end, until what it held of the GPU's memory is free."""
_KEPT_SECONDS = 2.0
"""Of what a GPU says during a run, one sample in so much time is kept."""
_GLANCE_SECONDS = 0.2
"""How soon a stop is noticed."""
_LINE_BYTES = 4096
_PROC_STAT = Path("/proc/stat")


class HostSlot:
    """`ports.Slot` on this machine and a Sandbox."""

    def __init__(
        self, sandbox: Sandbox, clock: Clock, *, config: NoiseConfig, containers: SealedConfig, home: Path
    ) -> None:
        self._sandbox, self._clock, self._config = sandbox, clock, config
        self._containers, self._home = containers, home.resolve()
        self._blind = False
        self._seen = False
        """The GPU's driver has answered us before."""

    def watch(self, attempt: Attempt, stop: threading.Event) -> SlotWatch:
        place = Place(self._home, attempt.experiment, attempt.number)
        gpu = None
        if self._containers.gpu:
            with suppress(NotReady):  # T will say the same, in its own words
                gpu = self._ask_gpu(place, attempt.budget_seconds, stop)
        cpu = _CpuWatch(self._sandbox, self._clock, place.name(Domain.TRAINER))
        cpu.start()
        return SlotWatch(self._clock, self._config, cpu, gpu, stop)

    def look(self, stop: threading.Event) -> Disturbance | None:
        if self._containers.gpu and (found := self._look_at_gpu(stop)) is not None:
            return found
        before = read_cpu(self._sandbox, self._clock)
        stop.wait(_LOOK_SECONDS)
        after = read_cpu(self._sandbox, self._clock)
        cpu = cpu_conditions([before, after]) if before and after else None
        return restless(cpu, None, self._config)

    def _look_at_gpu(self, stop: threading.Event) -> Disturbance | None:
        try:
            gpu = self._ask_gpu(Place(self._home, SLOT_PLACE), 0.0, stop)
        except NotReady as error:
            # The engine cannot hand the GPU out. Where it once could, that is a loss, not a lack.
            detail = clean_line(str(error), 500)
            return Disturbance(kind=DisturbanceKind.GPU_LOST, detail=detail) if self._seen else None
        if gpu is None:
            return None
        gpu.close()
        return restless(None, gpu.record, self._config)

    def _ask_gpu(self, place: Place, budget: float, stop: threading.Event) -> _GpuWatch | None:
        """None if the driver cannot be asked, which is logged once. Raises NotReady without a GPU."""
        watch = _GpuWatch(self._sandbox, self._clock, templates.telemetry(self._containers, place, budget))
        try:
            watch.begin(2 * len(self._containers.gpu), stop)
        except (InfrastructureError, NotReady) as error:
            watch.close()
            self._say_blind(str(error))
            if isinstance(error, NotReady):
                raise
            return None
        if not watch.record.samples and not watch.record.lost:
            watch.close()
            self._say_blind(watch.said or "it said nothing")
            return None
        self._seen = True
        return watch

    def _say_blind(self, reason: str) -> None:
        if not self._blind:
            self._blind = True
            log.warning("no_gpu_telemetry", reason=clean_line(reason, 500), advice="runs go on without it")


class SlotWatch:
    """`ports.Watch`: both halves of it."""

    def __init__(
        self, clock: Clock, config: NoiseConfig, cpu: _CpuWatch, gpu: _GpuWatch | None, stop: threading.Event
    ) -> None:
        self._clock, self._config, self._stop = clock, config, stop
        self._cpu, self._gpu = cpu, gpu

    def conclude(self, began: float) -> Conditions | None:
        ended = self._clock.monotonic()
        self._cpu.close()
        settled, gpu = ended + _SETTLED_SECONDS, None
        if self._gpu is not None:
            self._gpu.await_sample(settled, self._stop)
            gpu = gpu_conditions(self._gpu.record, began, ended, settled)
        self.close()
        cpu = self._cpu.conditions()
        return judged(cpu, gpu, self._config) if cpu or gpu else None

    def close(self) -> None:
        self._cpu.close()
        if self._gpu is not None:
            self._gpu.close()


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
    """The container that asks the driver, and what it said so far."""

    def __init__(self, sandbox: Sandbox, clock: Clock, spec: ContainerSpec) -> None:
        self._sandbox, self._clock, self._spec = sandbox, clock, spec
        self.record = GpuRecord(spec.digest())
        self.said = ""
        """The last line that was about no GPU."""
        self._news = threading.Condition()
        self._rest = b""
        self._kept: dict[int, float] = {}
        self._thinning = False
        self._reader: threading.Thread | None = None

    def begin(self, samples: int, stop: threading.Event) -> None:
        """Start, and wait for so many samples. Raises NotReady, InfrastructureError."""
        self._sandbox.remove(containers=[self._spec.name])  # what a controller that died left behind
        self._sandbox.start(self._spec)
        self._reader = self._sandbox.follow(self._spec.name, self._hear)
        self._await(lambda: len(self.record.samples) >= samples, _FIRST_SECONDS, stop)
        self._thinning = True

    def await_sample(self, since: float, stop: threading.Event) -> None:
        """Wait for a sample from `since` on, Clock.monotonic; not for ever."""
        self._thinning = False

        def came() -> bool:
            return bool(self.record.samples) and self.record.samples[-1][0] >= since

        self._await(came, since - self._clock.monotonic() + 3 * containers.TELEMETRY_SECONDS, stop)

    def _await(self, ready: Callable[[], bool], seconds: float, stop: threading.Event) -> None:
        """Until `ready`, until a GPU is lost or the container has no more to say, or in vain."""
        end = self._clock.monotonic() + seconds
        with self._news:
            while not ready() and not self.record.lost and not stop.is_set():
                left = end - self._clock.monotonic()
                if left <= 0 or self._reader is None or not self._reader.is_alive():
                    return
                self._news.wait(min(left, _GLANCE_SECONDS))

    def _hear(self, block: bytes) -> None:
        *lines, rest = (self._rest + block).split(b"\n")
        self._rest = rest[-_LINE_BYTES:]
        with self._news:
            for line in lines:
                self._note(nvidia_smi.parse(line.decode("utf-8", "replace")), line)
            self._news.notify_all()

    def _note(self, heard: GpuSample | GpuLost | None, line: bytes) -> None:
        if isinstance(heard, GpuLost):
            self.record.lost = self.record.lost or heard.said
        elif heard is None:
            self.said = clean_line(line.decode("utf-8", "replace")) or self.said
        else:
            now = self._clock.monotonic()
            if not self._thinning or now - self._kept.get(heard.index, 0.0) >= _KEPT_SECONDS:
                self._kept[heard.index] = now
                self.record.samples.append((now, heard))

    def close(self) -> None:
        with suppress(GloveboxError):  # the end of the attempt, or its own deadline, removes it too
            self._sandbox.remove(containers=[self._spec.name])
