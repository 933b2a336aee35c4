"""How far chance moves a score, in words, JSON and Markdown."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from controller.core.state import ResearchState
from controller.core.statistics import replicates


def as_json(state: ResearchState) -> dict[str, Any] | None:
    """None until a program has run twice. Bits per byte."""
    spread = state.pool.spread
    if spread is None:
        return None
    low, high = spread.interval()
    drift = replicates.drift(state.runs)
    return {
        "sigma": spread.sigma,
        "df": spread.df,
        "interval": [low, high],
        "programs": len(state.runs),
        "runs": sum(map(len, state.runs.values())),
        "drift": None
        if drift is None
        else {
            "program": drift.program,
            "experiment": drift.experiment,
            "change": drift.change,
            "p_value": drift.p_value,
        },
    }


def lines(state: ResearchState) -> Iterator[tuple[str, str]]:
    """Name and value of what is to be said of it."""
    spread = state.pool.spread
    if spread is None:
        return
    low, high = spread.interval()
    yield (
        "chance",
        f"moves a score by {spread.sigma:.6f} (standard deviation; 95 % interval {low:.6f} to {high:.6f}, "
        f"{spread.df} degrees of freedom)",
    )
    if (words := drifted(state)) is not None:
        yield "DRIFT", words


def drifted(state: ResearchState) -> str | None:
    """One sentence if the machine no longer is what it was."""
    found = replicates.drift(state.runs)
    if found is None:
        return None
    return (
        f"experiment {found.experiment} repeats experiment {found.program} and differs from its earlier runs "
        f"by {found.change:+.6f}, which chance explains in {found.p_value:.1g} of all cases: the machine has "
        "changed, and scores from before and after do not compare"
    )
