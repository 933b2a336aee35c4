"""How frontier and certified head moved, experiment by experiment: for the picture."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from controller.core.events import Record
from controller.core.state import ResearchState, apply
from controller.core.values import Frontier

Step = tuple[int, float]
"""From this experiment on, what had to be beaten, bits per byte."""


@dataclass
class Stairs:
    """Steps in order. They go up where fresh runs were worse than the one a keep was selected by, and where a
    chain was taken back."""

    frontier: list[Step] = field(default_factory=list)
    certified: list[Step] = field(default_factory=list)

    def follow(self, state: ResearchState) -> None:
        """Note where both stand after one more record."""
        latest = state.order[-1] if state.order else 0
        _step(self.frontier, latest, state.frontier)
        _step(self.certified, latest, state.certified)


def climb(records: Iterable[Record]) -> tuple[ResearchState, Stairs]:
    """The state that the records add up to, and the way there."""
    state, stairs = ResearchState(), Stairs()
    for record in records:
        apply(state, record)
        stairs.follow(state)
    return state, stairs


def _step(steps: list[Step], number: int, at: Frontier | None) -> None:
    if at is not None and at.val_bpb is not None and (not steps or steps[-1][1] != at.val_bpb):
        number = max(number, steps[-1][0]) if steps else number  # slots finish in any order
        steps.append((number, at.val_bpb))
