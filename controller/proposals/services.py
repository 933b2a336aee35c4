"""What the controller does for an agent: it records its calls, and checks and rehearses its texts."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Mapping

from controller.core.errors import AgentAway, AgentExhausted, Interrupted
from controller.core.events import ApiAnswered, ApiFailed, ApiRequested, ProposalRehearsed
from controller.core.plan import over_budget
from controller.core.program.policy import check
from controller.core.program.suspicion import Suspicion, suspected
from controller.core.rules import Rules
from controller.core.untrusted import clean_line
from controller.core.values import Usage
from controller.ports import Clock, Rehearsal, Request
from controller.store.effort import Effort


class ProposalServices:
    """Implements `ports.Services` for one proposal."""

    def __init__(
        self,
        effort: Effort,
        clock: Clock,
        rules: Callable[[], Rules],
        *,
        proposal: int,
        frontier_py: str,
        tried: Collection[str],
        suspects: Mapping[str, Suspicion],
        rehearsal: Rehearsal | None,
        stop: threading.Event,
    ) -> None:
        """`tried` are the digests of what was run from `frontier_py` already, `suspects` those of what is not
        run again from any frontier. `rehearsal` None: nothing is rehearsed.
        """
        self.stop = stop
        self._effort = effort
        self._clock = clock
        self._rules = rules
        self._proposal = proposal
        self._frontier_py = frontier_py
        self._tried = tried
        self._suspects = suspects
        self._rehearsal = rehearsal

    def sending(self, request: Request) -> int:
        """See ports.Services."""
        body = self._effort.put_bytes(request.body)
        with self._effort.lock:
            self._require_open()
            self._require_money(request.reserve_usd)
            call = self._effort.state.spending.next_call
            self._effort.record(
                ApiRequested(
                    call=call,
                    proposal=self._proposal,
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
        """See ports.Services."""
        blob = self._effort.put_bytes(reply)
        with self._effort.lock:
            self._require_open()
            self._effort.record(
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
        """See ports.Services."""
        with self._effort.lock:
            self._require_open()
            self._effort.record(
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
        """See ports.Services."""
        objection = check(train_py, self._frontier_py, self._tried) or suspected(train_py, self._suspects)
        return objection.detail if objection else None

    def rehearse(self, train_py: str) -> str | None:
        """See ports.Services."""
        if self._rehearsal is None:
            return None
        rehearsed = self._rehearsal.rehearse(train_py, self.stop)
        blob = self._effort.put_text(train_py)
        with self._effort.lock:
            self._require_open()
            self._effort.record(
                ProposalRehearsed(
                    proposal=self._proposal,
                    train_sha256=blob,
                    result=rehearsed.result,
                    detail=rehearsed.detail,
                    seconds=rehearsed.seconds,
                )
            )
        return rehearsed.detail if rehearsed.result == "failed" else None

    def _require_open(self) -> None:
        """Raises Interrupted once the proposal was given up: nothing more of it is recorded."""
        if self._proposal not in self._effort.state.proposals:
            raise Interrupted(f"proposal {self._proposal} was given up")

    def _require_money(self, reserve_usd: float) -> None:
        over = over_budget(self._effort.state.spending, self._rules(), self._clock.now(), reserve_usd)
        if over is None:
            return
        if over.retry_seconds is None:
            raise AgentExhausted(over.reason)
        raise AgentAway(over.reason, over.retry_seconds)
