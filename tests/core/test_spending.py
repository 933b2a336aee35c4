"""What is spent, to the cent, while calls are on their way and after they ended."""

from __future__ import annotations

import pytest

from controller.core.events import ApiAnswered, ApiFailed, ApiRequested
from controller.core.spending import ImpossibleCall, Spending
from controller.core.values import Usage

MONDAY, TUESDAY = "2026-03-02T23:59:59+00:00", "2026-03-03T00:00:01+00:00"


def requested(call: int, proposal: int, usd: float) -> ApiRequested:
    return ApiRequested(
        call=call,
        proposal=proposal,
        model="m",
        request_sha256="",
        request_bytes=0,
        reserved_usd=usd,
    )


def answered(call: int, usd: float, usage: Usage | None = None) -> ApiAnswered:
    return ApiAnswered(
        call=call,
        reply_sha256="",
        reply_bytes=0,
        stop_reason="tool_use",
        usage=usage or Usage(),
        seconds=1.0,
        cost_usd=usd,
    )


def failed(call: int, usd: float) -> ApiFailed:
    return ApiFailed(call=call, status=None, error="cut", seconds=1.0, cost_usd=usd)


def test_a_request_counts_in_full_until_it_is_answered() -> None:
    spending = Spending()
    spending.request(requested(0, 1, usd=2.0), MONDAY)
    assert (spending.total.usd, spending.total.committed_usd, spending.total.calls) == (0.0, 2.0, 1)
    spending.end(answered(0, usd=0.5, usage=Usage(input_tokens=10, output_tokens=3)))
    assert (spending.total.usd, spending.total.committed_usd) == (0.5, 0.5)
    spending.request(requested(1, 1, usd=1.0), MONDAY)
    spending.end(answered(1, usd=0.25, usage=Usage(input_tokens=5, cache_read_tokens=7)))
    assert spending.of(1).usage == Usage(input_tokens=15, cache_read_tokens=7, output_tokens=3)
    assert spending.of(1).usd == 0.75
    assert spending.of(2).calls == 0


def test_a_day_is_charged_for_what_was_sent_on_it() -> None:
    spending = Spending()
    spending.request(requested(0, 1, usd=2.0), MONDAY)
    spending.request(requested(1, 1, usd=4.0), TUESDAY)
    spending.end(answered(0, usd=1.0))
    assert spending.on("2026-03-02").committed_usd == 1.0
    assert spending.on("2026-03-03").committed_usd == 4.0
    assert spending.on("2026-03-04").committed_usd == 0.0


def test_a_call_that_never_ended_stays_counted() -> None:
    spending = Spending()
    spending.request(requested(0, 1, usd=2.0), MONDAY)
    spending.request(requested(1, 1, usd=3.0), MONDAY)
    spending.end(failed(1, usd=0.0))
    assert spending.total.committed_usd == 2.0
    assert [*spending.open] == [0]


def test_rounding_leaves_nothing_in_flight() -> None:
    spending = Spending()
    for call, usd in enumerate((0.1, 0.2, 0.3)):
        spending.request(requested(call, 1, usd=usd), MONDAY)
    for call in range(3):
        spending.end(failed(call, usd=0.0))
    assert spending.total.in_flight_usd == 0.0


def test_each_proposal_costs_what_was_asked_for_it_whichever_comes_first() -> None:
    spending = Spending()
    spending.request(requested(0, 5, usd=1.0), MONDAY)
    spending.request(requested(1, 6, usd=2.0), MONDAY)  # a repair, say, while the other is on its way
    spending.end(answered(1, usd=0.25))
    assert (spending.of(5).committed_usd, spending.of(6).committed_usd) == (1.0, 0.25)
    spending.end(answered(0, usd=0.75))
    assert (spending.of(5).usd, spending.of(6).usd, spending.total.usd) == (0.75, 0.25, 1.0)


def test_calls_nobody_can_have_made() -> None:
    spending = Spending()
    with pytest.raises(ImpossibleCall):
        spending.request(requested(1, 1, usd=1.0), MONDAY)
    with pytest.raises(ImpossibleCall):
        spending.end(answered(0, usd=1.0))
    spending.request(requested(0, 1, usd=1.0), MONDAY)
    spending.end(failed(0, usd=1.0))
    with pytest.raises(ImpossibleCall):
        spending.end(failed(0, usd=1.0))
