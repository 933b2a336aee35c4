"""Whether a run was disturbed so that it is void, and when it may be repeated."""

from __future__ import annotations

import datetime as dt
import threading

import structlog

from controller.core.errors import Interrupted
from controller.core.events import SlotCalm, SlotDisturbed
from controller.core.experiment import Experiment
from controller.core.hardware.disturbance import NoiseConfig, confirms, excusable, excuses, spoiling
from controller.core.values import Disturbance, DisturbanceKind, Refusal, Score
from controller.ports import Clock, Slot
from controller.store.effort import Chronicle

log = structlog.stdlib.get_logger(__name__)

_SLICE_SECONDS = 1.0
"""How long at most we wait before somebody looks at limits and at a pause that a person wants."""


class Calm:
    """Keeps an experiment from being repeated on a slot that is still disturbed. Every wait is on record."""

    def __init__(
        self,
        slot: Slot | None,
        chronicle: Chronicle,
        clock: Clock,
        stop: threading.Event,
        config: NoiseConfig,
    ) -> None:
        self._slot, self._chronicle, self._clock = slot, chronicle, clock
        self._stop, self._config = stop, config
        self._since: float | None = None
        self._retry_at = self._pause = 0.0

    def spoiled(self, experiment: Experiment) -> Disturbance | None:
        """Why the run that has just ended is void; None if it counts. Raises Interrupted.

        What was there beside the run alone may be the run's own work, done when it liked its loss no more.
        """
        found = spoiling(experiment.outcome) if experiment.outcome is not None else None
        if found is None:
            return None
        if not self._is_apart(found, experiment):
            log.warning("disturbed_run_counts", experiment=experiment.number, reason=found.detail)
            return None
        log.warning("run_disturbed", experiment=experiment.number, reason=found.detail)
        return found

    def _is_apart(self, found: Disturbance, experiment: Experiment) -> bool:
        """True if a disturbance is there without the run, too. Raises Interrupted."""
        if found.kind is DisturbanceKind.GPU_LOST and experiment.attempt > self._config.repeats:
            return False  # the one disturbance that a run may leave behind
        if found.before:
            return True
        seen = lasting(self._slot, self._config, self._stop) if self._slot is not None else None
        return seen is not None and confirms(seen, found)

    def excuse(self, experiment: Experiment, judgement: Score | Refusal) -> Disturbance | None:
        """Why a scoring that failed is void; None if it counts. Raises Interrupted.

        Load cannot change a score, but can keep the worker from answering in time. What counts is what was
        seen of a worker, not what it is taken for. A run that is not content with its loss may wait for load
        and then be slow; so it gets few attempts for it.
        """
        if not isinstance(judgement, Refusal):
            return None
        cause = judgement.symptom or judgement.cause
        if not excusable(cause):
            return None
        if self._slot is None or experiment.attempt > self._config.repeats:
            return None
        found = lasting(self._slot, self._config, self._stop)
        return found if found is not None and excuses(found, cause) else None

    def awaited(self, experiment: Experiment) -> bool:
        """True if the experiment may train. Waits a little if it may not; ask again."""
        if self._slot is None or self._chronicle.state.noise is None:
            return True
        now = self._clock.monotonic()
        if self._since is None:
            self._since = self._retry_at = now
            self._pause = self._config.retry_seconds
        if now < self._retry_at:
            self._stop.wait(min(self._retry_at - now, _SLICE_SECONDS))
            return False
        found = self._slot.look(self._stop)
        if self._stop.is_set():
            return False
        if found is not None:
            self._go_on_waiting(experiment, found)
            return False
        waited, self._since = self._clock.monotonic() - self._since, None
        self._chronicle.record(SlotCalm(experiment=experiment.number, seconds=waited))
        return True

    def _go_on_waiting(self, experiment: Experiment, found: Disturbance) -> None:
        log.warning(
            "slot_disturbed", experiment=experiment.number, reason=found.detail, retry_seconds=self._pause
        )
        noise, until = self._chronicle.state.noise, self._clock.now() + dt.timedelta(seconds=self._pause)
        self._chronicle.record(
            SlotDisturbed(
                experiment=experiment.number,
                disturbance=found,
                looks=1 + (noise.looks if noise else 0),
                until=until.isoformat(timespec="seconds"),
            )
        )
        self._retry_at = self._clock.monotonic() + self._pause
        self._pause = min(2 * self._pause, self._config.max_retry_seconds)


def lasting(slot: Slot, config: NoiseConfig, stop: threading.Event) -> Disturbance | None:
    """What disturbs the slot after a run has ended, and still does a while later. Raises Interrupted.

    The first look may see the end of what the run itself has set going: memory that is being freed, the core
    dump of a process that is being packed, a GPU that is cooling down.
    """
    found = slot.look(stop)
    if found is not None:
        stop.wait(config.retry_seconds)
        found = slot.look(stop)
    if stop.is_set():
        raise Interrupted("stopped by a person")
    return found
