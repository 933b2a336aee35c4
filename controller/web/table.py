"""The table of experiments: one page of what an address asks for."""

from __future__ import annotations

from typing import Any

from controller.core.keeps import keeps_of
from controller.web.follower import Standing
from controller.web.rows import KINDS, PAGE, Query


def context(standing: Standing, query: Query) -> dict[str, Any]:
    """For the template `experiments.html`."""
    found, rows, spending = query.select(standing.rows), standing.rows, standing.state.spending
    pages = max(1, -(-len(found) // PAGE))
    page = min(query.page, pages)
    shown, keeps = found[(page - 1) * PAGE : page * PAGE], keeps_of(standing.state)
    return {
        "query": query,
        "rows": [(row, spending.of(row.proposal), _mark(row.kind, keeps.mark(row.number))) for row in shown],
        "costly": spending.total.calls > 0,
        "found": len(found),
        "page_number": page,
        "pages": pages,
        "kinds": KINDS,
        "causes": sorted({row.cause for row in rows if row.cause}),
        "agents": sorted({row.agent for row in rows}),
        "slots": sorted({row.slot for row in rows}),
    }


def _mark(kind: str, mark: str) -> str:
    return mark.strip() if kind == "keep" else ""
