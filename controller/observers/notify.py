"""Notifications of keeps, rejects, certificates, stalls and stops, by a command or a webhook.

Each channel has a thread that follows the journal. So the loop never waits for it, nothing accumulates in
memory, and the next process delivers what this one could not: a line is skipped only once it was delivered,
was refused permanently, or could not be delivered for a day. A notice that comes from no line (no experiment
finished for long, a drift) is delivered at most once.
"""

from __future__ import annotations

import contextlib
import shlex
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Self

import structlog
from pydantic import BaseModel, ConfigDict, Field, SecretStr, TypeAdapter, ValidationError, field_validator

from controller.core.backoff import backoff
from controller.core.errors import VerificationFailed
from controller.core.events import Decided, Record
from controller.core.state import ResearchState
from controller.core.values import Cause
from controller.files import write_atomic
from controller.observers.notices import Context, Kind, Notice, follow
from controller.ports import Clock
from controller.store.journal import NAME as JOURNAL
from controller.store.journal import Position, read_from
from controller.views import spread

log = structlog.stdlib.get_logger(__name__)

_FIRST_SECONDS, _MAX_SECONDS, _GIVE_UP_SECONDS = 1.0, 300.0, 86400.0
#: Time to deliver what is left when the process ends; the next process delivers the rest.
_CLOSING_SECONDS = 10.0
_POLL_SECONDS = 30.0


class NotifyConfig(BaseModel):
    """Who is notified of what."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    command: str | None = None
    """Command to run for each event, which it gets as JSON on standard input. Run without a shell."""
    webhook: SecretStr | None = None
    """URL to POST each event to as JSON. Never logged: such URLs often contain a secret."""
    on: tuple[Kind, ...] = ("baseline", "keep", "reject", "certified", "taken-back", "drift", "stall", "stop")
    """Which events: `baseline` (no score), `keep`, `discard`, `crash`, `reject`, `certified` and `taken-back`
    (chains of keeps), `drift` (the machine is not what it was), `stall` and `stop`."""
    stall_seconds: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 3600.0
    """No experiment finished for this long is a stall; so is waiting for machine, disk or agent."""

    @field_validator("command")
    @classmethod
    def _is_a_command(cls, command: str | None) -> str | None:
        if command is not None and not shlex.split(command):
            raise ValueError("it names no command")
        return command

    @field_validator("webhook")
    @classmethod
    def _is_an_address(cls, webhook: SecretStr | None) -> SecretStr | None:
        if webhook is not None and not webhook.get_secret_value().startswith(("http://", "https://")):
            raise ValueError("it has to begin with http:// or https://")
        return webhook


class Undelivered(Exception):
    """A notice could not be delivered; the message contains no address."""

    def __init__(self, why: str, *, for_good: bool = False) -> None:
        super().__init__(why)
        self.for_good = for_good


@dataclass(frozen=True)
class _Mark:
    """How far a channel has read."""

    position: Position
    context: Context


_MARK = TypeAdapter(_Mark)


class Notifier:
    """One channel. Implements `ports.Observer`; as a context manager it delivers the rest on exit."""

    def __init__(
        self,
        name: str,
        home: Path,
        config: NotifyConfig,
        clock: Clock,
        deliver: Callable[[Mapping[str, Any]], None],
    ) -> None:
        """`deliver` takes a notice as JSON and raises Undelivered."""
        self._name, self._home, self._config, self._clock = name, home, config, clock
        self._deliver = deliver
        self._path = home / f"notified-{name}.json"
        self._mark = _read(self._path)
        self._known = -1
        self._finished = clock.monotonic()
        self._paused = self._overdue_told = self._failing = False
        self._drift = ""
        """What is to be said of a drift."""
        self._news, self._closing = threading.Event(), threading.Event()
        self._deadline = float("inf")
        self._thread = threading.Thread(target=self._run, name=f"notify by {name}", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._deadline = self._clock.monotonic() + _CLOSING_SECONDS
        self._closing.set()
        self._news.set()
        self._thread.join(2 * _CLOSING_SECONDS)

    # --- what the loop's threads call -------------------------------------------------------------

    def recorded(self, record: Record, state: ResearchState) -> None:
        if self._mark is None:  # events before the first start are not reported
            with contextlib.suppress(OSError):
                end = Position(record.seq, record.hash, (self._home / JOURNAL).stat().st_size)
                self._mark = _Mark(end, Context.at(state))
        if isinstance(record.data, Decided):
            self._finished, self._overdue_told = self._clock.monotonic(), False
            if record.data.decision.cause is Cause.REPLICATE:
                self._drift = spread.drifted(state) or ""
        self._paused = state.pause is not None and state.pause.event.why == "person"
        self._known = record.seq
        self._news.set()

    def training(self, experiment: int, elapsed: float, limit: float) -> None:
        """Nothing to tell."""

    def alive(self) -> None:
        """Nothing to tell."""

    # --- the thread ---------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while not self._closing.is_set():
                self._news.wait(min(self._overdue_in(), _POLL_SECONDS))
                self._news.clear()
                self._tell_news()
                self._tell_drift()
                self._tell_overdue()
            self._tell_news()
            self._tell_drift()
        except Exception:
            log.error("notify_ended", channel=self._name, exc_info=True)

    def _tell_news(self) -> None:
        try:
            for record, end in self._lines():
                assert self._mark is not None
                context, notice = follow(self._mark.context, record)
                if notice is not None and notice.kind in self._config.on and not self._told(notice):
                    return
                self._mark = _Mark(end, context)
                if notice is not None or isinstance(record.data, Decided):
                    self._save(self._mark)
        except VerificationFailed as error:
            log.warning("notify_begins_anew", channel=self._name, reason=str(error))
            self._mark = None

    def _lines(self) -> Iterator[tuple[Record, Position]]:
        """The lines that the loop has journalled and this channel has not processed."""
        if self._mark is not None and self._mark.position.seq < self._known:
            for record, end in read_from(self._home, self._mark.position):
                if record.seq > self._known:
                    return
                yield record, end

    def _overdue_in(self) -> float:
        if self._paused or self._overdue_told:
            return float("inf")
        return max(0.0, self._finished + self._config.stall_seconds - self._clock.monotonic())

    def _tell_overdue(self) -> None:
        mark = self._mark
        if mark is None or self._overdue_in() > 0:
            return
        self._overdue_told = True
        if not mark.context.stalled:
            self._tell("stall", f"No experiment was finished for {self._config.stall_seconds:g} s.")

    def _tell_drift(self) -> None:
        reason, self._drift = self._drift, ""
        if reason:
            self._tell("drift", f"{reason[0].upper()}{reason[1:]}.")

    def _tell(self, kind: Kind, reason: str) -> None:
        """What comes from no line."""
        if self._mark is not None and kind in self._config.on:
            now = self._clock.now().isoformat(timespec="microseconds")
            self._told(Notice(kind=kind, time=now, context=self._mark.context, reason=reason))

    def _told(self, notice: Notice) -> bool:
        """Deliver, with retries. False if the process ends before the notice is delivered or given up."""
        content = {**notice.as_json(), "home": str(self._home)}
        failures, began = 0, self._clock.monotonic()
        while self._clock.monotonic() < self._deadline:
            try:
                self._deliver(content)
            except Undelivered as error:
                self._complain(error)
                if error.for_good or self._clock.monotonic() - began > _GIVE_UP_SECONDS:
                    return True
                failures += 1
                if self._closing.wait(backoff(failures, _FIRST_SECONDS, _MAX_SECONDS)):
                    return False
            else:
                self._failing = False
                return True
        return False

    def _complain(self, error: Undelivered) -> None:
        """Log the first failure after a success."""
        if not self._failing:
            log.warning("notify_failed", channel=self._name, error=str(error), repeated=not error.for_good)
        self._failing = True

    def _save(self, mark: _Mark) -> None:
        """If the mark cannot be written, a notice may be delivered twice."""
        with contextlib.suppress(OSError):
            write_atomic(self._path, _MARK.dump_json(mark))


def _read(path: Path) -> _Mark | None:
    """How far the last process read; None if there is no valid mark."""
    try:
        return _MARK.validate_json(path.read_bytes())
    except (OSError, ValidationError):
        return None
