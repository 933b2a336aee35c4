"""Money, machine and journal."""

from __future__ import annotations

import datetime as dt
import shutil
from typing import Any

from controller.core.state import ResearchState
from controller.core.untrusted import clean_line
from controller.store import verified
from controller.views import conditions, costs
from controller.web.follower import Standing

_DAYS = 14
Context = dict[str, Any]


def context(standing: Standing, now: dt.datetime) -> Context:
    """For the template `record.html`."""
    state, found = standing.state, verified.read(standing.home)
    return {
        "money": list(costs.lines(state, now.date().isoformat())),
        "days": _days(state),
        "machine": _machine(state),
        "watched": [
            (slot, number, list(conditions.lines(told)))
            for slot, (number, told) in sorted(standing.conditions.items())
        ],
        "disk": _disk(standing),
        "worked_hours": state.worked_seconds / 3600,
        "limit_hours": state.limit("hours"),
        "lines": state.seq + 1,
        "journal_bytes": standing.archive.position.offset,
        "head": state.head,
        "last_time": state.last_time,
        "verified": found,
        "since_verified": state.seq + 1 - found.lines if found else None,
    }


def _days(state: ResearchState) -> list[tuple[str, str, str]]:
    """UTC day, dollars and requests, the latest first."""
    days = sorted(state.spending.by_day.items())[: -_DAYS - 1 : -1]
    return [(day, f"{spent.committed_usd:.2f}", f"{spent.calls:,}") for day, spent in days]


def _machine(state: ResearchState) -> list[tuple[str, str]]:
    if state.session is None:
        return []
    told = {"agent": state.session.agent, "budget": f"{state.session.budget_seconds:g} s"}
    told |= {name: str(value) for name, value in state.session.provenance.model_dump().items() if value}
    return [(name, clean_line(value, 300)) for name, value in told.items()]


def _disk(standing: Standing) -> tuple[int, int] | None:
    """Free and total bytes where the home is."""
    try:
        usage = shutil.disk_usage(standing.home)
    except OSError:
        return None
    return usage.free, usage.total
