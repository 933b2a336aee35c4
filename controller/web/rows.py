"""A row for every experiment, small enough that all stay in memory; finding, sorting and paging them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import urlencode

from controller.core.errors import UserError
from controller.core.experiment import Experiment, Phase
from controller.core.untrusted import clean_line
from controller.core.values import Cause
from controller.views.facts import description, effect, marks

OPEN = "open"
KINDS = ("keep", "discard", "crash", "reject", "replicate", OPEN)
"""What a row can be: a verdict; a replicate, which no verdict is passed on; or not finished yet."""
PAGE = 50
_MOST_CHARACTERS = 200


@dataclass(frozen=True, slots=True)
class Row:
    """One experiment. Every text is safe to show."""

    number: int
    slot: int
    kind: str
    cause: str
    phase: str
    val_bpb: float | None
    effect: float | None
    """Against what it had to beat; negative is better."""
    seconds: float | None
    agent: str
    description: str
    idea: str
    proposal: int
    repeats: int | None
    marks: tuple[str, ...]
    opened_at: str
    finished_at: str | None


def row_of(experiment: Experiment) -> Row:
    """Without the hold-out score: nobody may pick experiments by it."""
    outcome, score, proposal = experiment.outcome, experiment.score, experiment.proposal
    return Row(
        number=experiment.number,
        slot=experiment.slot,
        kind=_kind(experiment),
        cause=str(experiment.cause or ""),
        phase=str(experiment.phase),
        val_bpb=score.val_bpb if score is not None and math.isfinite(score.val_bpb) else None,
        effect=effect(experiment),
        seconds=outcome.seconds if outcome else None,
        agent=clean_line(proposal.agent),
        description=description(experiment),
        idea=clean_line(proposal.idea),
        proposal=proposal.number,
        repeats=experiment.repeats,
        marks=tuple(marks(experiment)),
        opened_at=experiment.opened_at,
        finished_at=experiment.finished_at,
    )


def _kind(experiment: Experiment) -> str:
    if experiment.phase is not Phase.DONE or experiment.verdict is None:
        return OPEN
    return "replicate" if experiment.cause is Cause.REPLICATE else str(experiment.verdict)


SORTS: Mapping[str, Callable[[Row], Any]] = {
    "number": lambda row: row.number,
    "val_bpb": lambda row: row.val_bpb,
    "effect": lambda row: row.effect,
    "seconds": lambda row: row.seconds,
    "verdict": lambda row: (KINDS.index(row.kind), row.cause),
    "agent": lambda row: row.agent,
    "slot": lambda row: row.slot,
}


@dataclass(frozen=True)
class Query:
    """Which rows, in which order: what stands in the address of the table."""

    verdict: str = ""
    cause: str = ""
    agent: str = ""
    slot: str = ""
    text: str = ""
    sort: str = "number"
    order: str = "desc"
    page: int = 1

    def __post_init__(self) -> None:
        """Raises UserError if one of them can be nothing of the kind."""
        _require("verdict", self.verdict, ("", *KINDS))
        _require("cause", self.cause, ("", *map(str, Cause)))
        _require("sort", self.sort, tuple(SORTS))
        _require("order", self.order, ("asc", "desc"))
        if self.slot and not (self.slot.isascii() and self.slot.isdigit() and len(self.slot) < 6):
            raise UserError("slot is the number of a slot.")
        if not 1 <= self.page <= 10**6:
            raise UserError("page is a number from 1.")

    @classmethod
    def read(cls, given: Mapping[str, str]) -> Query:
        """From the query of an address; other parameters are ignored. Raises UserError."""
        known = ("verdict", "cause", "agent", "slot", "sort", "order")
        told: dict[str, Any] = {name: given[name] for name in known if given.get(name)}
        try:
            page = int(given.get("page") or 1)
        except ValueError:
            raise UserError("page is a number from 1.") from None
        return cls(**told, text=clean_line(given.get("q", ""), _MOST_CHARACTERS), page=page)

    def address(self, **changes: Any) -> str:
        """The query of the address that says the same, changes aside; what is as usual is left out."""
        wanted, usual = replace(self, **changes), Query()
        names = {"text": "q"}
        return urlencode(
            {
                names.get(name, name): value
                for name in self.__dataclass_fields__
                if (value := getattr(wanted, name)) != getattr(usual, name)
            }
        )

    def select(self, rows: Sequence[Row]) -> list[Row]:
        """All that match, in order; what has no such value comes last, either way."""
        words = self.text.casefold().split()
        key = SORTS[self.sort]
        found = [row for row in rows if self._matches(row, words)]
        told = [row for row in found if key(row) is not None]
        told.sort(key=key, reverse=self.order == "desc")
        return told + [row for row in found if key(row) is None]

    def _matches(self, row: Row, words: Sequence[str]) -> bool:
        wanted = ((self.verdict, row.kind), (self.cause, row.cause), (self.agent, row.agent))
        if any(value and value != found for value, found in wanted):
            return False
        if self.slot and int(self.slot) != row.slot:
            return False
        text = f"#{row.number} {row.description} {row.idea}".casefold() if words else ""
        return all(word in text for word in words)


def _require(name: str, value: str, known: Sequence[str]) -> None:
    if value not in known:
        raise UserError(f"{name} is one of {', '.join(filter(None, known))}.")
