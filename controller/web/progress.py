"""How the effort progresses: every experiment, the best so far, chance, and validation against hold-out."""

from __future__ import annotations

import math
from typing import Any

from controller.core.statistics import replicates
from controller.views import certificates, spread
from controller.web.follower import Standing
from controller.web.rows import KINDS

_LATEST = 12
"""Rows of a table that stands beside a chart."""
Context = dict[str, Any]


def context(standing: Standing) -> Context:
    """For the template `progress.html`."""
    state = standing.state
    kept = [row for row in standing.rows if row.kind == "keep"]
    return {
        "kept": kept[: -_LATEST - 1 : -1],
        "kept_all": len(kept),
        "worth": [*certificates.lines(state), *spread.lines(state)],
        "certificates": state.certificates[::-1][:_LATEST],
        "programs": _programs(standing),
        "both": standing.both[: -_LATEST - 1 : -1],
        "both_all": len(standing.both),
    }


def _programs(standing: Standing) -> list[Context]:
    """The runs of one program that differ by chance alone; of the latest programs."""
    latest = sorted(standing.state.runs.items())[: -_LATEST - 1 : -1]
    return [
        {
            "program": program,
            "runs": len(runs),
            "mean": replicates.mean(runs),
            "lowest": min(run.val_bpb for run in runs),
            "highest": max(run.val_bpb for run in runs),
        }
        for program, runs in latest
        if len(runs) > 1
    ]


def points(standing: Standing) -> Context:
    """For the chart: by number the scores and what became of them, and both staircases."""
    rows, stairs = standing.rows, standing.stairs
    return {
        "bpb": [None if row.val_bpb is None else round(row.val_bpb, 6) for row in rows],
        "kind": "".join(str(KINDS.index(row.kind)) for row in rows),
        "kinds": KINDS,
        "frontier": [step for step in stairs.frontier if math.isfinite(step[1])],
        "certified": [step for step in stairs.certified if math.isfinite(step[1])],
    }


def both_scores(standing: Standing) -> Context:
    """For the chart of validation against hold-out: what both gained since the first keep."""
    both = [row for row in standing.both if all(map(math.isfinite, row))]
    if not both:
        return {"rows": []}
    _, validation, fresh, _ = both[0]
    return {"rows": [(row[0], row[1] - validation, row[2] - fresh, row[3]) for row in sorted(both)]}
