"""What the requests to language models cost, by effort, by day and by proposal; folded from the journal.

A request counts from the moment before it is sent, with the most it can cost. One that never came to an end,
because the process died, stays counted like that.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from controller.core.errors import VerificationFailed
from controller.core.events import ApiAnswered, ApiFailed, ApiRequested
from controller.core.values import Usage


class ImpossibleCall(VerificationFailed):
    """A call ends that never began, or begins out of turn."""


@dataclass(frozen=True)
class Spent:
    """Of a number of calls. Dollars."""

    calls: int = 0
    usage: Usage = field(default_factory=Usage)
    usd: float = 0.0
    """Of calls that have ended."""
    in_flight_usd: float = 0.0
    """The most that calls on their way can cost."""

    @property
    def committed_usd(self) -> float:
        """What limits compare with: nothing that may still be charged is left out."""
        return self.usd + self.in_flight_usd

    def __add__(self, other: Spent) -> Spent:
        return Spent(
            self.calls + other.calls,
            _sum(self.usage, other.usage),
            self.usd + other.usd,
            self.in_flight_usd + other.in_flight_usd,
        )


NOTHING = Spent()

_Row = tuple[int, int, int, int, int, int, float, float]
"""What one proposal cost, in short: there is one for each, and a start reads all of them."""


def _row(spent: Spent) -> _Row:
    """Calls, the fields of Usage in their order, dollars, dollars in flight."""
    usage = spent.usage
    return (
        spent.calls,
        usage.input_tokens,
        usage.cache_write_tokens,
        usage.cache_write_hour_tokens,
        usage.cache_read_tokens,
        usage.output_tokens,
        spent.usd,
        spent.in_flight_usd,
    )


def _spent(row: _Row | None) -> Spent:
    if row is None:
        return NOTHING
    calls, plain, written, written_hour, read, output, usd, in_flight_usd = row
    usage = Usage(
        input_tokens=plain,
        cache_write_tokens=written,
        cache_write_hour_tokens=written_hour,
        cache_read_tokens=read,
        output_tokens=output,
    )
    return Spent(calls, usage, usd, in_flight_usd)


@dataclass(frozen=True)
class OpenCall:
    """On its way, or lost with the process that sent it."""

    request: ApiRequested
    day: str


@dataclass
class Spending:
    """Extended by `request` and `end`; nothing else writes to it."""

    total: Spent = NOTHING
    by_day: dict[str, Spent] = field(default_factory=dict)
    """Key: the UTC day on which the request was sent, `2026-11-21`."""
    open: dict[int, OpenCall] = field(default_factory=dict)
    _by_proposal: dict[int, _Row] = field(default_factory=dict)

    @property
    def next_call(self) -> int:
        return self.total.calls

    def on(self, day: str) -> Spent:
        return self.by_day.get(day, NOTHING)

    def of(self, proposal: int) -> Spent:
        """What it took to get this proposal."""
        return _spent(self._by_proposal.get(proposal))

    def request(self, event: ApiRequested, time: str) -> None:
        """Raises ImpossibleCall."""
        if event.call != self.next_call:
            raise ImpossibleCall(f"call {event.call} was sent while {self.next_call} was due")
        call = OpenCall(event, time[:10])
        self.open[event.call] = call
        self._add(call, Spent(calls=1, in_flight_usd=event.reserved_usd))

    def end(self, event: ApiAnswered | ApiFailed) -> None:
        """Raises ImpossibleCall."""
        call = self.open.pop(event.call, None)
        if call is None:
            raise ImpossibleCall(f"call {event.call} ended, which was not on its way")
        reserved = call.request.reserved_usd
        self._add(call, Spent(usage=event.usage, usd=event.cost_usd, in_flight_usd=-reserved))

    def _add(self, call: OpenCall, spent: Spent) -> None:
        self.total = _settled(self.total + spent, self.open)
        self.by_day[call.day] = self.on(call.day) + spent
        number = call.request.proposal
        self._by_proposal[number] = _row(self.of(number) + spent)


def _settled(spent: Spent, open_calls: Mapping[int, OpenCall]) -> Spent:
    """Nothing is on its way once every call has ended, whatever the rounding of sums left over."""
    return spent if open_calls else replace(spent, in_flight_usd=0.0)


def _sum(one: Usage, other: Usage) -> Usage:
    ours, theirs = one.model_dump(), other.model_dump()
    return Usage(**{name: ours[name] + theirs[name] for name in ours})
