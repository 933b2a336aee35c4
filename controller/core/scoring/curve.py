"""The training loss that a run reports while it trains, as a small curve. Pure.

The run writes the lines and may lie. No score is made of them: the worst that comes of it is that it is ended
early itself or, if it is kept, that nothing else is any more (core/statistics/hopeless.py).
"""

from __future__ import annotations

import math
import re

from controller.core.values import Curve

POINTS = 64
"""Equal parts of the budget, one point of the curve each."""
MAX_LINES = 4096
"""How many reports of a run are read. prepare.report makes a sixteenth of that."""
_EXTREME = 1e6
"""Nats per token beyond which the size of a loss says nothing more."""
_LINE_BYTES = 160
#: What prepare.report prints. A script may have left the line before it unfinished.
_LINE = re.compile(rb"report: step=(\d{1,12}) seconds=(\d{1,7}(?:\.\d{1,6})?) loss=([-+.\w]{1,32})\r?\n")


def thinned(curve: Curve, points: int) -> list[tuple[float, float]]:
    """At most so many points of it, evenly spread, the first and the last among them.

    Each is the share of the budget at which it ends, 0 to 1, and the loss.
    """
    known = [((place + 1) / POINTS, loss) for place, loss in enumerate(curve.losses) if loss is not None]
    if len(known) <= points:
        return known
    return [known[round(place * (len(known) - 1) / (points - 1))] for place in range(points)]


class CurveReader:
    """Reads the reports out of a run's output, block by block, in bounded time and memory."""

    def __init__(self, budget_seconds: float) -> None:
        self._part_seconds = budget_seconds / POINTS
        self._rest = b""
        self._lines = 0
        self._sums: list[tuple[float, int]] = []
        self._step: int | None = None
        self._broken_at: float | None = None

    def feed(self, block: bytes) -> None:
        """Read on. Never raises, whatever was printed."""
        if self._lines >= MAX_LINES or self._broken_at is not None:
            return
        text = self._rest + block
        end = 0
        for found in _LINE.finditer(text):
            end = found.end()
            self._lines += 1
            self._read(int(found[1]), float(found[2]), found[3])
            if self._lines >= MAX_LINES or self._broken_at is not None:
                return
        self._rest = text[max(end, len(text) - _LINE_BYTES) :]

    @property
    def curve(self) -> Curve:
        """As far as it was read."""
        return Curve(
            losses=tuple(round(total / count, 6) if count else None for total, count in self._sums),
            step=self._step,
            broken_at=self._broken_at,
        )

    def _read(self, step: int, seconds: float, written: bytes) -> None:
        try:
            loss = float(written)
        except ValueError:
            return
        part = int(seconds / self._part_seconds)
        if not len(self._sums) - 1 <= part < POINTS:
            return  # the clock of an honest run neither goes back nor beyond its kill
        self._step = step
        if not math.isfinite(loss):
            self._broken_at = seconds
            return
        sums = [*self._sums, *[(0.0, 0)] * (part + 1 - len(self._sums))]
        total, count = sums[part]
        sums[part] = total + min(max(loss, -_EXTREME), _EXTREME), count + 1
        self._sums = sums  # replaced as a whole: another thread may be reading it
