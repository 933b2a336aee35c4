"""When nothing new may begin, and how long to wait: a person's pause, a full disk, a machine that fails.

An experiment that is under way is seen through first. Every wait ends by itself when its reason does, is on
record, and is cut into slices after which the loop looks at its limits.
"""

from __future__ import annotations

import datetime as dt
import threading
from collections.abc import Callable
from typing import Annotated

import structlog
from pydantic import BaseModel, ConfigDict, Field

from controller.core.errors import InfrastructureError, Interrupted, NotReady, Unfit
from controller.core.events import Paused, Resumed
from controller.core.untrusted import clean_line
from controller.ports import Clock, Surroundings
from controller.store.effort import Chronicle

log = structlog.stdlib.get_logger(__name__)

#: Faults in a row before a pause: most pass with the container they hit.
AT_ONCE = 3
#: Of the disk space an experiment should find; with less, one that runs is stopped, to be repeated.
EARLY_STOP_SHARE = 0.25
_SLICE_SECONDS = 1.0

Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class PatienceConfig(BaseModel):
    """Settings of what is done while engine, disk or GPU fail again and again."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    first_seconds: Seconds = 10.0
    """Pause after three faults in a row; doubles with each further one."""
    max_seconds: Seconds = 900.0
    """What that doubles up to."""
    stop_after: Annotated[int, Field(gt=0)] | None = None
    """Faults in a row after which the run ends; none: it never does."""


class Backoff:
    """Counts faults in a row."""

    def __init__(self, config: PatienceConfig) -> None:
        self._config = config
        self.faults = 0

    def failed(self, error: InfrastructureError) -> float:
        """Seconds to wait now. Raises NotReady after the last fault that is put up with."""
        self.faults += 1
        if self._config.stop_after is not None and self.faults >= self._config.stop_after:
            raise NotReady(
                f"There were {_faults(self.faults)}; the last was: {clean_line(str(error))} "
                "Run `glovebox doctor`."
            ) from error
        doublings = self.faults - AT_ONCE
        if doublings < 0:
            return 0.0
        return min(self._config.first_seconds * 2.0 ** min(doublings, 60), self._config.max_seconds)

    def succeeded(self) -> None:
        self.faults = 0


class Patience:
    """Tells the loop, whose thread alone calls this, whether it has to wait."""

    def __init__(
        self,
        chronicle: Chronicle,
        clock: Clock,
        stop: threading.Event,
        surroundings: Surroundings,
        config: PatienceConfig,
    ) -> None:
        self._chronicle = chronicle
        self._clock = clock
        self._stop = stop
        self._surroundings = surroundings
        self._backoff = Backoff(config)
        self._retry_at = self._since = clock.monotonic()
        self._trouble: Paused | None = None
        self._unsaid: Paused | None = None

    def holds(self) -> bool:
        """True, after a moment, if nothing may begin yet."""
        self._chronicle.alive()
        reason = self._reason()
        try:
            self._note(reason)
        except InfrastructureError as error:
            if reason is None:
                raise
            if reason != self._unsaid:  # the journal has no room for it
                log.warning("paused", why=reason.why, reason=reason.reason, unrecorded=str(error))
            self._unsaid = reason
        if reason is None:
            return False
        self._stop.wait(_SLICE_SECONDS)
        return True

    def failed(self, error: InfrastructureError) -> None:
        """An experiment met a fault. Raises NotReady if no more of them are put up with."""
        wait = self._backoff.failed(error)
        if wait == 0:
            return
        self._retry_at = self._clock.monotonic() + wait
        until = self._clock.now() + dt.timedelta(seconds=wait)
        self._trouble = Paused(
            why="infrastructure",
            reason=f"{_faults(self._backoff.faults)}; the last was: {clean_line(str(error))}",
            until=until.isoformat(timespec="seconds"),
        )

    def succeeded(self) -> None:
        """An experiment came to its end."""
        self._backoff.succeeded()
        self._trouble = None
        if self._paused_for("infrastructure"):
            self._record_end()

    def require_room(self) -> None:
        """Raises InfrastructureError if an experiment that runs had better be stopped and repeated."""
        shortage = self._surroundings.shortage(EARLY_STOP_SHARE)
        if shortage is not None:
            raise InfrastructureError(f"It was stopped early: {shortage}")

    def _reason(self) -> Paused | None:
        """Why nothing may begin, if something speaks against it."""
        wish = self._surroundings.wish()
        if wish.paused:
            return Paused(why="person", by=wish.by, reason=wish.reason)
        if (shortage := self._surroundings.shortage()) is not None:
            return Paused(why="disk", reason=shortage)
        return self._trouble if self._clock.monotonic() < self._retry_at else None

    def _note(self, reason: Paused | None) -> None:
        """Bring the record in line. Trouble with the machine ends when an experiment gets through."""
        pause = self._chronicle.state.pause
        if pause is not None and pause.event.why != "infrastructure":
            if reason is not None and reason.why == pause.event.why:
                return
            self._record_end()
            pause = None
        if reason is not None and (pause is None or pause.event != reason):
            if pause is None:
                self._since = self._clock.monotonic()
            self._chronicle.record(reason)

    def _record_end(self) -> None:
        pause = self._chronicle.state.pause
        assert pause is not None
        by = self._surroundings.wish().by if pause.event.why == "person" else ""
        seconds = self._clock.monotonic() - self._since
        self._chronicle.record(Resumed(why=pause.event.why, by=by, seconds=seconds))

    def _paused_for(self, why: str) -> bool:
        pause = self._chronicle.state.pause
        return pause is not None and pause.event.why == why


def _faults(number: int) -> str:
    return f"{number} infrastructure faults in a row" if number > 1 else "one infrastructure fault"


def persist(
    attempt: Callable[[], str],
    config: PatienceConfig,
    clock: Clock,
    stop: threading.Event,
    tell: Callable[[str, float], None],
) -> str:
    """Call `attempt` until it returns; after an InfrastructureError wait and call it again.

    What fails outside an experiment takes the whole effort with it, which is begun anew as after a crash. If
    the first attempt finds out that the machine is not fit, that is the end. `tell` hears why there is a wait
    and what is left of it, about once a second. Raises what `attempt` does, Interrupted, NotReady.
    """
    backoff = Backoff(config)
    while True:
        began = clock.monotonic()
        try:
            return attempt()
        except Unfit:
            raise
        except (InfrastructureError, NotReady) as error:
            if isinstance(error, NotReady) and (backoff.faults == 0 or config.stop_after is not None):
                raise
            if clock.monotonic() - began > config.max_seconds:
                backoff.succeeded()  # it worked for long
            fault = error if isinstance(error, InfrastructureError) else InfrastructureError(str(error))
            end = clock.monotonic() + max(backoff.failed(fault), config.first_seconds)
            log.warning("effort_failed", error=clean_line(str(error)), faults=backoff.faults)
            while not stop.is_set() and (left := end - clock.monotonic()) > 0:
                tell(clean_line(str(error)), left)
                stop.wait(min(left, _SLICE_SECONDS))
            if stop.is_set():
                raise Interrupted("stopped by a person") from error
