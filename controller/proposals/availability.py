"""Whether the agent is there, since when it is not, and when to ask it again."""

from __future__ import annotations

import datetime as dt
import math
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from controller.core.errors import AgentAway, AgentError, UserError
from controller.core.events import AgentAbsent, AgentFailed, AgentReturned
from controller.core.state import Absence
from controller.core.untrusted import clean_line
from controller.ports import Clock
from controller.store.effort import Chronicle

#: Agent errors in a row before we stop and ask for a person.
MAX_ERRORS = 50
#: Agent errors in a row before an agent that costs money is left alone for a while.
ERRORS_BEFORE_A_REST = 3

Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class AbsenceConfig(BaseModel):
    """Settings of what is done while the agent cannot be reached."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    understudy_after_seconds: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    """The tuner proposes in its place once the agent has been away for so long; none: never."""
    retry_seconds: Seconds = 60.0
    """Until an agent that did not say when is asked again; doubles each time it is asked in vain."""
    max_retry_seconds: Seconds = 3600.0
    """What that doubles up to."""


class Attendance:
    """Writes down when an agent goes and comes back. Any thread may ask and tell.

    Every deadline is kept on the clock that never steps; the journal's times only tell a new process how far
    the last one had waited.
    """

    def __init__(self, agent: str, chronicle: Chronicle, clock: Clock, config: AbsenceConfig) -> None:
        self._agent = agent
        self._chronicle = chronicle
        self._clock = clock
        self._config = config
        self._gone = False
        self._since = self._retry_at = clock.monotonic()
        absence = self._absence
        if absence is not None:
            self._since -= max(0.0, self._seconds_since(absence.since))
            if absence.until is not None:  # else a person may have changed something before this start
                self._retry_at += max(0.0, -self._seconds_since(absence.until))

    @property
    def absent(self) -> bool:
        return self._absence is not None

    @property
    def retry_in(self) -> float:
        """Seconds until the agent may be asked; infinite if that is not before a person did something."""
        return math.inf if self._gone else max(0.0, self._retry_at - self._clock.monotonic())

    @property
    def understudy_in(self) -> float:
        """Seconds until an understudy may act; infinite if it may not, or if the agent is there."""
        after = self._config.understudy_after_seconds
        if after is None or not self.absent:
            return math.inf
        return max(0.0, self._since + after - self._clock.monotonic())

    def require_hope(self, understudy: bool) -> None:
        """Raises UserError if nobody will ever propose again without a person."""
        absence = self._absence
        if absence is not None and self._gone and not (understudy and math.isfinite(self.understudy_in)):
            raise UserError(absence.reason)
        if self._chronicle.state.agent_errors_in_a_row >= MAX_ERRORS:
            raise UserError(f"The agent failed {MAX_ERRORS} times in a row; see the log.")

    def failed(self, error: AgentError, experiment: int, *, costly: bool) -> None:
        """It gave no proposal. A costly agent that fails again and again is left alone for a while."""
        with self._chronicle.lock:
            reason = clean_line(str(error))
            if isinstance(error, AgentAway):
                self._leave(reason, error.retry_seconds)
                return
            self._chronicle.record(AgentFailed(agent=self._agent, for_experiment=experiment, reason=reason))
            errors = self._chronicle.state.agent_errors_in_a_row
            if costly and errors >= ERRORS_BEFORE_A_REST:
                self._leave(f"It failed {errors} times in a row, the last time because: {reason}", 0.0)

    def returned(self) -> None:
        """It answered."""
        with self._chronicle.lock:
            if self._absence is not None:
                away = self._clock.monotonic() - self._since
                self._chronicle.record(AgentReturned(agent=self._agent, seconds=away))
                self._gone = False

    def _leave(self, reason: str, retry_seconds: float | None) -> None:
        now, absence = self._clock.monotonic(), self._absence
        if absence is None:
            self._since = now
        self._gone = retry_seconds is None
        wait = 0.0
        if retry_seconds is not None:
            wait = self._wait(retry_seconds, absence.times if absence else 0)
        self._retry_at = now + wait
        until = self._clock.now() + dt.timedelta(seconds=wait)
        self._chronicle.record(
            AgentAbsent(
                agent=self._agent,
                reason=reason,
                until=None if self._gone else until.isoformat(timespec="seconds"),
            )
        )

    def _wait(self, retry_seconds: float, times: int) -> float:
        """What the agent asked for; what is usual if it did not, or if that was in vain before."""
        if retry_seconds > 0 and times == 0:
            return retry_seconds
        usual = min(self._config.retry_seconds * 2.0 ** min(times, 60), self._config.max_retry_seconds)
        return max(retry_seconds, usual)

    @property
    def _absence(self) -> Absence | None:
        absence = self._chronicle.state.absence
        return absence if absence is not None and absence.agent == self._agent else None

    def _seconds_since(self, time: str) -> float:
        return (self._clock.now() - dt.datetime.fromisoformat(time)).total_seconds()
