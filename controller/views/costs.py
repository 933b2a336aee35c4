"""What the agent cost, in words and as JSON: tokens, share read from the cache, dollars, limits, absences."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from typing import Any

from controller.core.spending import Spent
from controller.core.state import ResearchState
from controller.core.untrusted import clean_line
from controller.core.values import Usage

Json = Any
"""What `json.dumps` takes."""


def tokens_in(usage: Usage) -> int:
    """All input of the requests, however it was cached."""
    return usage.input_tokens + usage.cache_write_tokens + usage.cache_read_tokens


def cache_share(usage: Usage) -> float | None:
    """Share of the input that was read from the prompt cache, 0 to 1; None without any input."""
    return usage.cache_read_tokens / tokens_in(usage) if tokens_in(usage) else None


def spent_json(spent: Spent) -> Json:
    """Of some calls: how many, what they cost, what is still on its way, tokens."""
    return {
        "calls": spent.calls,
        "usd": spent.usd,
        "in_flight_usd": spent.in_flight_usd,
        **spent.usage.model_dump(),
        "cache_share": cache_share(spent.usage),
    }


def spending_json(state: ResearchState, today: str) -> Json:
    """In total, on one UTC day (`2026-11-21`), and the limits of the last session."""
    return {
        "total": spent_json(state.spending.total),
        "today": spent_json(state.spending.on(today)),
        "limits": _limits(state),
    }


def absence_json(state: ResearchState) -> Json:
    """Of the agent, while it lasts; else null."""
    absence = state.absence
    if absence is None:
        return None
    return {
        "agent": absence.agent,
        "reason": absence.reason,
        "since": absence.since,
        "until": absence.until,
        "times": absence.times,
    }


def _limits(state: ResearchState) -> dict[str, float | None]:
    return {name: state.limit(name) for name in ("dollars", "dollars_per_day")}


def lines(state: ResearchState, today: str) -> Iterator[tuple[str, str]]:
    """The same for people, as names and values; nothing for an agent that costs nothing and is there."""
    spending, most = state.spending, _limits(state)
    if spending.total.calls:
        yield "cost", f"{money(spending.total)}{_limit(most['dollars'])}, {spending.total.calls} requests"
        yield "today", f"{money(spending.on(today))}{_limit(most['dollars_per_day'])}"
        yield "tokens", tokens(spending.total.usage)
    if state.absence is not None:
        yield "away", _away(state)
    for proposal in state.proposals.values():
        if proposal.is_made:
            yield "next", clean_line(proposal.description)


def money(spent: Spent) -> str:
    """`$1.23`, and what is still on its way."""
    on_its_way = f", up to ${spent.in_flight_usd:.2f} more on its way" if spent.in_flight_usd > 1e-9 else ""
    return f"${spent.usd:.2f}{on_its_way}"


def tokens(usage: Usage) -> str:
    """`12,345 in, 80 % of them from the cache, 678 out`."""
    share = cache_share(usage)
    cached = f", {share:.0%} of them from the cache" if share is not None else ""
    return f"{tokens_in(usage):,} in{cached}, {usage.output_tokens:,} out"


def moment(time: str) -> str:
    """A journal's time for people, to the second."""
    return f"{dt.datetime.fromisoformat(time):%Y-%m-%d %H:%M:%S} UTC"


def _limit(dollars: float | None) -> str:
    return f" of ${dollars:.2f}" if dollars is not None else ""


def _away(state: ResearchState) -> str:
    absence = state.absence
    assert absence is not None
    again = f"asked again at {moment(absence.until)}" if absence.until else "not asked again by itself"
    return (
        f"{clean_line(absence.agent)} since {moment(absence.since)}, {again}: "
        f"{clean_line(absence.reason, 500)}"
    )
