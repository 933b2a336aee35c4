"""The desk at which an agent writes down what it does and asks what it may do."""

from __future__ import annotations

import datetime as dt
import threading
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from controller.core.errors import AgentAway, AgentExhausted, Interrupted
from controller.core.events import ApiAnswered, ApiFailed, ApiRequested, Rehearsed
from controller.core.program.policy import check
from controller.core.program.suspicion import Suspicion, suspected
from controller.core.untrusted import clean_line
from controller.core.values import Usage
from controller.ports import Clock, Rehearsal, Request
from controller.store.effort import Chronicle


@dataclass(frozen=True)
class Budget:
    """How much may be spent, in dollars. None: no limit."""

    dollars: float | None = None
    """On the whole effort."""
    dollars_per_day: float | None = None
    """On one UTC day."""


class JournalDesk:
    """Implements `ports.Desk` for one conversation about one experiment-to-be."""

    def __init__(
        self,
        chronicle: Chronicle,
        clock: Clock,
        *,
        experiment: int,
        frontier_py: str,
        tried: Collection[str],
        suspects: Mapping[str, Suspicion],
        rehearsal: Rehearsal | None,
        budget: Budget,
        stop: threading.Event,
    ) -> None:
        """`tried` are the digests of what was run from `frontier_py` already, `suspects` those of what is
        not run again from any.
        """
        self.stop = stop
        self._chronicle = chronicle
        self._clock = clock
        self._experiment = experiment
        self._frontier_py = frontier_py
        self._tried = tried
        self._suspects = suspects
        self._rehearsal = rehearsal
        self._budget = budget
        self._closed = False

    def sending(self, request: Request) -> int:
        """See ports.Desk. Raises Interrupted once the desk is closed."""
        body = self._chronicle.put_bytes(request.body)
        with self.writing():
            self._require_money(request.reserve_usd)
            call = self._chronicle.state.spending.next_call
            self._chronicle.record(
                ApiRequested(
                    call=call,
                    for_experiment=self._experiment,
                    purpose=request.purpose,
                    mode=request.mode,
                    model=request.model,
                    parameters=dict(request.parameters),
                    request_sha256=body,
                    request_bytes=len(request.body),
                    reserved_usd=request.reserve_usd,
                )
            )
        return call

    def answered(
        self, call: int, *, reply: bytes, stop_reason: str, usage: Usage, seconds: float, cost_usd: float
    ) -> None:
        """See ports.Desk."""
        blob = self._chronicle.put_bytes(reply)
        with self.writing():
            self._chronicle.record(
                ApiAnswered(
                    call=call,
                    reply_sha256=blob,
                    reply_bytes=len(reply),
                    stop_reason=clean_line(stop_reason),
                    usage=usage,
                    seconds=seconds,
                    cost_usd=cost_usd,
                )
            )

    def failed(
        self, call: int, *, status: int | None, error: str, usage: Usage, seconds: float, cost_usd: float
    ) -> None:
        """See ports.Desk."""
        with self.writing():
            self._chronicle.record(
                ApiFailed(
                    call=call,
                    status=status,
                    error=clean_line(error),
                    usage=usage,
                    seconds=seconds,
                    cost_usd=cost_usd,
                )
            )

    def objection(self, train_py: str) -> str | None:
        """See ports.Desk."""
        objection = check(train_py, self._frontier_py, self._tried) or suspected(train_py, self._suspects)
        return objection.detail if objection else None

    def rehearse(self, train_py: str) -> str | None:
        """See ports.Desk."""
        if self._rehearsal is None:
            return None
        rehearsed = self._rehearsal.rehearse(train_py, self.stop)
        blob = self._chronicle.put_text(train_py)
        with self.writing():
            self._chronicle.record(
                Rehearsed(
                    for_experiment=self._experiment,
                    train_sha256=blob,
                    result=rehearsed.result,
                    detail=rehearsed.detail,
                    seconds=rehearsed.seconds,
                )
            )
        return rehearsed.detail if rehearsed.result == "failed" else None

    def close(self) -> None:
        """Nothing more is written from here, whoever still tries."""
        with self._chronicle.lock:
            self._closed = True

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Hold the chronicle's lock while something is written. Raises Interrupted if the desk is closed."""
        with self._chronicle.lock:
            if self._closed:
                raise Interrupted("the conversation was broken off")
            yield

    def _require_money(self, reserve_usd: float) -> None:
        spending, now = self._chronicle.state.spending, self._clock.now()
        effort, day = self._budget.dollars, self._budget.dollars_per_day
        if effort is not None and spending.total.committed_usd + reserve_usd > effort:
            raise AgentExhausted(
                f"limit of {effort:g} dollars reached: {spending.total.committed_usd:.2f} are spent or on "
                f"their way, and the next request may cost {reserve_usd:.2f}"
            )
        spent = spending.on(now.date().isoformat()).committed_usd
        if day is not None and spent + reserve_usd > day:
            midnight = dt.datetime.combine(now.date() + dt.timedelta(days=1), dt.time(), dt.UTC)
            raise AgentAway(
                f"The limit of {day:g} dollars a day is reached: {spent:.2f} are spent or on their way, "
                f"and the next request may cost {reserve_usd:.2f}",
                retry_seconds=(midnight - now).total_seconds(),
            )
