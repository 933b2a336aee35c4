"""Measures what a worker uses while it answers, and kills it if that exceeds its allowance."""

from __future__ import annotations

import threading
from contextlib import suppress

from controller.core.errors import InfrastructureError
from controller.core.scoring import allowance
from controller.core.scoring.allowance import Allowance
from controller.core.values import Cause, Refusal, Work
from controller.ports import Clock, Sandbox

_LOOKS = 3
_PAUSE_SECONDS = 0.2
"""The engine reports no usage at the moment when the container ends."""


class Meter:
    """Reads the clock and the engine's count of CPU time for one worker. Safe for two threads."""

    def __init__(
        self, sandbox: Sandbox, clock: Clock, worker: str, began: float, allowed: Allowance, *, gpu: bool
    ) -> None:
        """`began`: when the worker began, Clock.monotonic. `gpu`: it can compute on a GPU."""
        self._sandbox, self._clock, self._gpu = sandbox, clock, gpu
        self._worker, self.began, self._allowed = worker, began, allowed
        self._lock, self._closed = threading.Lock(), False
        self._fault: InfrastructureError | None = None
        self.work = self._reading(None, 0.0)

    def watch(self) -> None:
        """Read once, and kill a worker that has used too much. Never raises: the next call tries again."""
        with self._lock:
            if self._closed:
                return
            self._look(self._elapsed())
            if self.excess is not None:
                with suppress(InfrastructureError):
                    self._sandbox.kill(self._worker)

    def conclude(self) -> None:
        """Take the last reading, while the worker is still alive. Never raises."""
        pause = threading.Event()
        with self._lock:
            self._closed, elapsed = True, self._elapsed()
            for _ in range(_LOOKS):
                if self._look(elapsed):
                    return
                pause.wait(_PAUSE_SECONDS)

    @property
    def excess(self) -> Refusal | None:
        """Why the worker is refused; None if it kept within its allowance.

        A worker without a GPU whose counted CPU time was within the allowance breaks no rule by being late.
        """
        if (detail := allowance.excess(self.work)) is None:
            return None
        if allowance.over_cpu(self.work):
            return Refusal(cause=Cause.OVER_BUDGET, detail=detail)
        if self._gpu or self.work.cpu_seconds is None or self.work.allowed_cpu_seconds is None:
            return Refusal(cause=Cause.OVER_BUDGET, detail=detail, symptom=Cause.WORKER_TIMEOUT)
        return Refusal(cause=Cause.WORKER_TIMEOUT, detail=detail)

    def require_engine(self) -> None:
        """Raises InfrastructureError if the engine failed, since then a worker may be late through no fault
        of its own."""
        if self._fault is not None:
            raise self._fault

    def _elapsed(self) -> float:
        return self._clock.monotonic() - self.began

    def _look(self, elapsed: float) -> bool:
        """True if the engine reported the CPU time."""
        used = None
        try:
            used = self._sandbox.usage([self._worker])
        except InfrastructureError as error:
            self._fault = error
        cpu = used.get(self._worker) if used is not None else None
        self.work = self._reading(self.work.cpu_seconds if cpu is None else cpu, elapsed)
        return cpu is not None

    def _reading(self, cpu: float | None, elapsed: float) -> Work:
        return Work(
            wall_seconds=round(elapsed, 3),
            cpu_seconds=None if cpu is None else round(cpu, 3),
            allowed_wall_seconds=self._allowed.wall,
            allowed_cpu_seconds=self._allowed.cpu,
        )
