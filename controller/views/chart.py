"""The pictures of an effort: every experiment with the best so far, and validation against hold-out."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, median
from typing import TYPE_CHECKING

from controller.core.experiment import Experiment
from controller.core.scoring.curve import POINTS, thinned
from controller.core.state import ResearchState
from controller.core.untrusted import clean_line
from controller.core.values import Cause, Verdict
from controller.views.facts import effect
from controller.views.stairs import Stairs, Step

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_KEEP, _DISCARD, _CRASH, _REJECT, _INK = "#1a7f37", "#a8b0b8", "#d1242f", "#8250df", "#30363d"
_CERTIFIED = "#0969da"
_INCHES, _SMALL_INCHES, _DOTS_PER_INCH = (12.0, 6.5), (12.0, 3.6), 150
_LABEL_CHARACTERS = 34
_LABEL_ANGLE = 28.0
"""Degrees."""
_LABEL_HEIGHT, _LABEL_LENGTH = 0.16, 2.6
"""Room a label needs across and along its direction; inches."""
_HEADROOM = 0.6
"""How much of the way from the best score to the baseline is shown above the baseline."""

_MOST_SHAPES = 2000
"""More dots of one kind are dots in an image: ten thousand shapes make a file of megabytes."""

Point = tuple[int, float]


def draw(state: ResearchState, stairs: Stairs, path: Path) -> None:
    """Write the picture of all experiments as an SVG file."""
    figure, axes = _page(_INCHES)
    _frame(axes, state)
    scored = [experiment for experiment in state.finished if experiment.score]
    if scored:
        _scores(axes, scored, stairs, state.next_number - 1)
    else:
        axes.set_yticks([])
        axes.set_ylim(0, 1)
    _failures(axes, state.finished)
    handles, _ = axes.get_legend_handles_labels()
    if handles:
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.1), ncols=6, frameon=False, labelcolor=_INK)
    _save(figure, path)


def draw_holdout(kept: Sequence[tuple[int, float, float, float]], last: int, path: Path) -> None:
    """Write the picture of overfitting as an SVG file: what both scores gained since the first keep.

    `kept`: number, val_bpb, the same on fresh rows and its standard error, of each kept experiment, at
    least one; `last`: the number of the last experiment. While the two lines fall together the
    gains are real; a validation line that leaves the other one's error bars fits the scored rows.
    """
    figure, axes = _page(_SMALL_INCHES)
    kept = sorted(kept)
    numbers = [*(number for number, *_ in kept), max(last, kept[-1][0])]
    gained = [row[2] - kept[0][2] for row in kept]
    axes.errorbar(numbers[:-1], gained, [row[3] for row in kept], fmt="none", ecolor=_REJECT, alpha=0.5)
    for column, label, color in ((1, "validation", _KEEP), (2, "hold-out", _REJECT)):
        gains = [row[column] - kept[0][column] for row in kept]
        axes.step(numbers, [*gains, gains[-1]], where="post", color=color, linewidth=1.8, label=label)
        axes.scatter(numbers[:-1], gains, s=30, color=color, edgecolors="white", linewidths=0.8, zorder=3)
    _style(axes, numbers[-1])
    axes.set_ylabel("change since the first keep\n(bits per byte)", color=_INK)
    axes.legend(loc="upper right", frameon=False, labelcolor=_INK)
    _save(figure, path)


def draw_curves(runs: Sequence[Experiment], path: Path) -> None:
    """Write the picture of training losses as an SVG file. Of at least one run with a curve."""
    figure, axes = _page(_SMALL_INCHES)
    kinds = {
        "others": (_DISCARD, 0.8, [run for run in runs if _is_other(run)]),
        "replicates": (_CERTIFIED, 0.5, [run for run in runs if run.repeats is not None]),
        "ended early": (_CRASH, 1.2, [run for run in runs if run.cause is Cause.HOPELESS]),
        "keeps": (_KEEP, 1.6, [run for run in runs if run.verdict is Verdict.KEEP]),
    }
    for name, (color, width, chosen) in kinds.items():
        for place, run in enumerate(chosen):
            points = _smooth(thinned(run.outcome.curve, POINTS) if run.outcome else [])
            if points:
                shares, losses = zip(*points, strict=True)
                label = name if place == 0 else None
                axes.plot([100 * s for s in shares], losses, color=color, linewidth=width, label=label)
    _style(axes, 100)
    axes.set_ylim(*_loss_limits(runs))
    axes.set_xlabel("time (% of the budget)", color=_INK)
    axes.set_ylabel("training loss\n(nats per token)", color=_INK)
    axes.legend(loc="upper right", frameon=False, labelcolor=_INK)
    _save(figure, path)


def _smooth(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Each loss as the mean of up to four, which is still less than the differences between texts."""
    return [
        (share, fmean(loss for _, loss in points[max(0, place - 3) : place + 1]))
        for place, (share, _) in enumerate(points)
    ]


def _is_other(run: Experiment) -> bool:
    return run.verdict is not Verdict.KEEP and run.repeats is None and run.cause is not Cause.HOPELESS


def _loss_limits(runs: Sequence[Experiment]) -> tuple[float, float]:
    """Where most of the losses of the second half lie; those that diverge or are absurd go off the scale."""
    losses = [
        loss
        for run in runs
        for loss in (run.outcome.curve.losses[POINTS // 2 :] if run.outcome else ())
        if loss is not None
    ]
    if not losses:
        return 0.0, 1.0
    middle = median(losses)
    spread = median(abs(loss - middle) for loss in losses) or 0.01
    lowest, highest = max(min(losses), middle - 8 * spread), min(max(losses), middle + 16 * spread)
    room = 0.05 * (highest - lowest) or 0.01
    return lowest - room, highest + room


def _page(inches: tuple[float, float]) -> tuple[Figure, Axes]:
    # Loading matplotlib takes most of a second, and no other command needs it.
    from matplotlib.figure import Figure

    figure = Figure(figsize=inches, dpi=_DOTS_PER_INCH, facecolor="white", layout="constrained")
    return figure, figure.add_subplot()


def _save(figure: Figure, path: Path) -> None:
    """The same picture gives the same file. Letters are outlines: no font has to be there."""
    from matplotlib import rc_context

    with rc_context({"svg.hashsalt": "glovebox"}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # a description may hold any script
        figure.savefig(path, format="svg", metadata={"Date": None, "Creator": None})


def _frame(axes: Axes, state: ResearchState) -> None:
    kept = state.count(Verdict.KEEP)
    tried = len(state.finished) - state.replicates
    title = f"autoresearch/{clean_line(state.tag or '', 60)}: {tried} experiments, {kept} kept"
    title += f", {state.replicates} replicates" if state.replicates else ""
    axes.set_title(title, loc="left", color=_INK, fontsize=13, fontweight="bold", pad=26, parse_math=False)
    axes.set_ylabel("val_bpb  (bits per byte, lower is better)", color=_INK)
    _style(axes, max(state.next_number - 1, 1))


def _style(axes: Axes, last: int) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.set_xlabel("experiment", color=_INK)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(_DISCARD)
    axes.tick_params(colors=_INK)
    axes.grid(axis="y", color="#eaeef2", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.set_xlim(-0.03 * last - 0.2, last * 1.04 + 0.2)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def _scores(axes: Axes, scored: Sequence[Experiment], stairs: Stairs, last: int) -> None:
    kept = _points(scored, Verdict.KEEP)
    shown = [bpb for _, bpb in (*kept, *stairs.frontier, *stairs.certified)]
    lowest, highest = _limits(shown or [bpb for _, bpb in _points(scored)], scored)
    axes.set_ylim(lowest, highest)
    repeated = [experiment for experiment in scored if experiment.repeats is not None]
    tried = [experiment for experiment in scored if experiment.repeats is None]
    discarded = _points(tried, Verdict.DISCARD)
    _dots(axes, [point for point in discarded if point[1] <= highest], "o", _DISCARD, "discard", 34)
    beyond = [(number, highest) for number, bpb in discarded if bpb > highest]
    _dots(axes, beyond, "^", _DISCARD, "discard, off the scale", 40)
    _dots(
        axes, [point for point in _points(repeated) if point[1] <= highest], "D", _CERTIFIED, "replicate", 24
    )
    if kept:
        _line(axes, stairs.frontier, last, _KEEP, "frontier", "-")
        _line(axes, stairs.certified, last, _CERTIFIED, "certified", "--")
        _dots(axes, kept, "o", _KEEP, "keep", 64)
        _labels(axes, [experiment for experiment in scored if experiment.verdict is Verdict.KEEP])


def _line(axes: Axes, steps: Sequence[Step], last: int, color: str, label: str, style: str) -> None:
    """A staircase up to the last experiment."""
    if steps:
        numbers, heights = zip(*steps, strict=True)
        axes.step(
            [*numbers, max(last, numbers[-1])],
            [*heights, heights[-1]],
            style,
            where="post",
            color=color,
            linewidth=1.8,
            label=label,
            zorder=2,
        )


def _limits(kept: Sequence[float], scored: Sequence[Experiment]) -> tuple[float, float]:
    """The part of the scale where research happens; one diverged run must not flatten the staircase."""
    best, baseline = min(kept), max(kept)
    heights = [bpb for _, bpb in _points(scored)]
    best = min([best, *(bpb for _, bpb in _points([e for e in scored if e.repeats is not None]))])
    span = max(baseline - best, 2.5 * (median(heights) - best), 0.002 * best)
    highest = min(max(heights) + 0.08 * span, baseline + _HEADROOM * span)
    return best - 0.12 * span, max(highest, baseline + 0.08 * span)


def _points(experiments: Sequence[Experiment], verdict: Verdict | None = None) -> list[Point]:
    return [
        (experiment.number, experiment.score.val_bpb)
        for experiment in experiments
        if experiment.score and (verdict is None or experiment.verdict is verdict)
    ]


def _dots(axes: Axes, points: Sequence[Point], marker: str, color: str, label: str, size: float) -> None:
    if points:
        numbers, heights = zip(*points, strict=True)
        axes.scatter(
            numbers,
            heights,
            s=size,
            marker=marker,
            color=color,
            edgecolors="white",
            linewidths=0.8,
            label=label,
            zorder=3,
            clip_on=False,
            rasterized=len(points) > _MOST_SHAPES,
        )


def _failures(axes: Axes, experiments: Sequence[Experiment]) -> None:
    """Runs without a score stand above the top edge: where they lie says when, not how bad."""
    for verdict, color in ((Verdict.CRASH, _CRASH), (Verdict.REJECT, _REJECT)):
        numbers = [experiment.number for experiment in experiments if experiment.verdict is verdict]
        if numbers:
            axes.scatter(
                numbers,
                [1.035] * len(numbers),
                s=42,
                marker="x",
                color=color,
                linewidths=1.6,
                label=str(verdict),
                transform=axes.get_xaxis_transform(),
                clip_on=False,
                zorder=4,
                rasterized=len(numbers) > _MOST_SHAPES,
            )


def _labels(axes: Axes, kept: Sequence[Experiment]) -> None:
    """Names of the kept experiments; where two would overlap, of the one that brought more."""
    from matplotlib.patheffects import withStroke

    placed: list[tuple[float, float]] = []
    first_and_last = {kept[0].number, kept[-1].number}
    for experiment in sorted(kept, key=lambda e: (e.number not in first_and_last, effect(e) or 0.0)):
        if experiment.score is None:
            continue
        point = (experiment.number, experiment.score.val_bpb)
        place = _inches(axes, point)
        if any(_overlap(place, other) for other in placed):
            continue
        placed.append(place)
        axes.annotate(
            clean_line(experiment.proposal.description, _LABEL_CHARACTERS),
            point,
            xytext=(5, 6),
            textcoords="offset points",
            rotation=_LABEL_ANGLE,
            rotation_mode="anchor",
            fontsize=8.5,
            color=_KEEP,
            parse_math=False,
            annotation_clip=False,
            path_effects=[withStroke(linewidth=2.5, foreground="white")],
            zorder=5,
        )


def _inches(axes: Axes, point: Point) -> tuple[float, float]:
    """About where a point comes to lie on the page; the margins of the figure are left out."""
    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    across, up = (point[0] - left) / (right - left), (point[1] - bottom) / (top - bottom)
    return 0.85 * _INCHES[0] * across, 0.8 * _INCHES[1] * up


def _overlap(a: tuple[float, float], b: tuple[float, float]) -> bool:
    """Whether two labels that begin at these places would run into each other."""
    angle = math.radians(_LABEL_ANGLE)
    right, up = a[0] - b[0], a[1] - b[1]
    across = abs(up * math.cos(angle) - right * math.sin(angle))
    along = abs(right * math.cos(angle) + up * math.sin(angle))
    return across < _LABEL_HEIGHT and along < _LABEL_LENGTH
