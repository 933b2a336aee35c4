"""The training losses that runs reported, for people."""

from __future__ import annotations

from controller.core.experiment import Experiment
from controller.core.scoring.curve import POINTS, thinned
from controller.core.state import ResearchState
from controller.core.values import Curve, Verdict

_BARS = "▁▂▃▄▅▆▇█"
_WIDTH = 32
_LATEST = 40
"""So many replicates, and so many of the other runs that were not kept, are drawn."""


def sketch(curve: Curve) -> str:
    """One line: its shape, and the loss at both ends. Empty if nothing was reported."""
    points = thinned(curve, _WIDTH)
    if not points:
        return "not a finite number" if curve.broken_at is not None else ""
    (began, first), (ended, last) = points[0], points[-1]
    broken = f", not a finite number at {curve.broken_at:g} s" if curve.broken_at is not None else ""
    ends = f"{first:.4f} at {began:.0%}, {last:.4f} at {ended:.0%} of the budget"
    return f"{shape(curve, _WIDTH)} {ends}{broken}"


def shape(curve: Curve, width: int) -> str:
    """Bars from its lowest to its highest loss, at most so many. Empty if nothing was reported."""
    losses = [loss for _, loss in thinned(curve, width)]
    if not losses:
        return ""
    lowest, span, steps = min(losses), max(losses) - min(losses), len(_BARS) - 1
    return "".join(_BARS[round(steps * (loss - lowest) / span) if span else 0] for loss in losses)


def drawn(state: ResearchState) -> list[Experiment]:
    """The runs whose curves a report shows: all keeps, and the latest others."""
    told = [run for run in state.finished if run.outcome is not None and thinned(run.outcome.curve, POINTS)]
    keeps = [run for run in told if run.verdict is Verdict.KEEP]
    replicates = [run for run in told if run.repeats is not None]
    others = [run for run in told if run.verdict is not Verdict.KEEP and run.repeats is None]
    return [*others[-_LATEST:], *replicates[-_LATEST:], *keeps]
