"""What a worker uses while it answers, and its end if that is more than it may."""

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
"""The engine cannot tell what a home uses in the moment in which one of its containers ends."""


class Meter:
    """Reads the clock and the engine's count of CPU time for one worker. Two threads may use it."""

    def __init__(
        self, sandbox: Sandbox, clock: Clock, worker: str, began: float, allowed: Allowance, *, gpu: bool
    ) -> None:
        """`began`: start of the worker's container, Clock.monotonic. `gpu`: it can compute on one."""
        self._gpu = gpu
        self._sandbox, self._clock = sandbox, clock
        self._worker, self.began, self._allowed = worker, began, allowed
        self._lock, self._closed = threading.Lock(), False
        self._fault: InfrastructureError | None = None
        self.work = self._reading(None, 0.0)

    def watch(self) -> None:
        """Look once, and end a worker that has used too much. Never raises; the next look tries again."""
        with self._lock:
            if self._closed:
                return
            self._look(self._elapsed())
            if self.excess is not None:
                with suppress(InfrastructureError):
                    self._sandbox.kill(self._worker)

    def conclude(self) -> None:
        """Look for the last time, while the worker still lives. Never raises."""
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

        If all it computes on is CPUs, and their time is counted and was enough, to be late breaks no rule.
        """
        if (detail := allowance.excess(self.work)) is None:
            return None
        if allowance.over_cpu(self.work):
            return Refusal(cause=Cause.OVER_BUDGET, detail=detail)
        if self._gpu or self.work.cpu_seconds is None or self.work.allowed_cpu_seconds is None:
            return Refusal(cause=Cause.OVER_BUDGET, detail=detail, symptom=Cause.WORKER_TIMEOUT)
        return Refusal(cause=Cause.WORKER_TIMEOUT, detail=detail)

    def require_engine(self) -> None:
        """Raises InfrastructureError if the engine failed us: then a worker may not be to blame for being
        late."""
        if self._fault is not None:
            raise self._fault

    def _elapsed(self) -> float:
        return self._clock.monotonic() - self.began

    def _look(self, elapsed: float) -> bool:
        """True if the engine could tell the CPU time."""
        used = None
        try:
            used = self._sandbox.usage()
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
