"""One proposal as the journal tells it: from being asked for to becoming an experiment."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from pydantic import JsonValue

from controller.core.errors import ImpossibleHistory
from controller.core.events import (
    ProposalAsked,
    ProposalMade,
    ProposalRebased,
    ProposalRehearsed,
    Purpose,
)
from controller.core.values import Edit

AnyStep = ProposalMade | ProposalRehearsed | ProposalRebased


@dataclass(frozen=True)
class Proposal:
    """Everything the journal says about one proposal. An experiment keeps it as it was when it was opened."""

    number: int
    agent: str
    purpose: Purpose
    parent: str
    """The frontier commit whose text it changes."""
    asked_at: str
    fixes: int | None = None
    merges: int | None = None
    repeats: int | None = None
    certificate: int | None = None
    pair: int | None = None
    stands_in_for: str | None = None
    request: str = ""
    instructions: tuple[str, ...] = ()
    description: str = ""
    hypothesis: str = ""
    expected_effect: float | None = None
    idea: str = ""
    parameters: dict[str, JsonValue] = field(default_factory=dict)
    edits: tuple[Edit, ...] | None = None
    train_sha256: str = ""
    """Blob of its text; empty until the agent has answered."""
    rehearsals: tuple[ProposalRehearsed, ...] = ()
    """Of its text, and of others that it had or might have had."""

    @property
    def is_made(self) -> bool:
        """True once there is a text."""
        return self.train_sha256 != ""

    @property
    def rehearses(self) -> bool:
        """True if its agent rehearses and a rehearsal can tell something: the latest one did."""
        return bool(self.rehearsals) and self.rehearsals[-1].result != "inconclusive"

    def rehearsal_of(self, train_sha256: str) -> ProposalRehearsed | None:
        """The latest rehearsal of a text."""
        return next((one for one in reversed(self.rehearsals) if one.train_sha256 == train_sha256), None)


def asked(event: ProposalAsked, time: str) -> Proposal:
    """A proposal at its beginning."""
    return Proposal(
        number=event.proposal,
        agent=event.agent,
        purpose=event.purpose,
        parent=event.parent,
        asked_at=time,
        fixes=event.fixes,
        merges=event.merges,
        repeats=event.repeats,
        certificate=event.certificate,
        pair=event.pair,
        stands_in_for=event.stands_in_for,
        request=event.request,
        instructions=event.instructions,
    )


def advance(proposal: Proposal, event: AnyStep) -> Proposal:
    """The proposal after one more event. Raises ImpossibleHistory if the event cannot follow."""
    match event:
        case ProposalMade():
            if proposal.is_made:
                raise ImpossibleHistory(f"proposal {proposal.number} was made twice")
            return replace(
                proposal,
                description=event.description,
                hypothesis=event.hypothesis,
                expected_effect=event.expected_effect,
                idea=event.idea,
                parameters=event.parameters,
                edits=event.edits,
                train_sha256=event.train_sha256,
            )
        case ProposalRehearsed():
            return replace(proposal, rehearsals=(*proposal.rehearsals, event))
        case ProposalRebased():
            if not proposal.is_made:
                raise ImpossibleHistory(f"proposal {proposal.number} was rebased before it was made")
            return replace(proposal, parent=event.parent, train_sha256=event.train_sha256)
