"""What the keeps of an effort are worth so far: what an agent is told of it."""

from __future__ import annotations

from dataclasses import dataclass

from controller.core.state import ResearchState


@dataclass(frozen=True)
class Keeps:
    """Experiments by number, oldest first."""

    certified: int | None = None
    """The last keep whose gain was found again; until then the first one."""
    first: int | None = None
    """The first keep, from which gains are counted."""
    provisional: tuple[int, ...] = ()
    """The keeps since."""
    taken_back: tuple[int, ...] = ()
    """Keeps whose gain was not found again."""
    sigma: float | None = None
    """Standard deviation of single runs of one program, bits per byte; None while it is not known."""

    def mark(self, number: int) -> str:
        """What a kept experiment is, with a space before it; empty if nothing is known of any."""
        if number in self.taken_back:
            return " taken back"
        if number in self.provisional:
            return " provisional"
        return " certified" if self.certified is not None and number != self.first else ""


NO_KEEPS = Keeps()


def keeps_of(state: ResearchState) -> Keeps:
    """As the state tells."""
    spread = state.pool.spread
    certified = state.certified.experiment if state.certified else None
    return Keeps(
        certified=certified,
        first=state.certificates[0].base if state.certificates else certified,
        provisional=tuple(state.chain),
        taken_back=tuple(sorted(state.fallen)),
        sigma=spread.sigma if spread else None,
    )
