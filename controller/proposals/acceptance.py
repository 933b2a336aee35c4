"""Whether a proposal becomes an experiment: the last check before it costs training time."""

from __future__ import annotations

import difflib
import io
from dataclasses import dataclass

from controller.core.errors import UserError
from controller.core.events import ProposalRefused, Proposed
from controller.core.program.policy import Objection, check, digest
from controller.core.program.suspicion import suspected
from controller.core.untrusted import clean_line, clean_text
from controller.core.values import Proposal
from controller.proposals.context import Briefing
from controller.store.effort import Chronicle

#: Refused proposals in a row before we stop and ask for a person.
MAX_REFUSALS = 50
#: The ledger and the prompts hold one line per idea; a hypothesis may be a paragraph.
DESCRIPTION_CHARACTERS = 200
HYPOTHESIS_CHARACTERS = 2000


@dataclass(frozen=True)
class Offer:
    """A proposal and how it came about."""

    proposal: Proposal
    prepared_for: int | None = None
    """See events.Proposed."""
    stands_in_for: str | None = None
    """The same."""


class Admission:
    """Puts on record what is proposed, as the next experiment or as refused."""

    def __init__(self, chronicle: Chronicle, briefing: Briefing) -> None:
        self._chronicle = chronicle
        self._briefing = briefing

    def consider(self, offer: Offer) -> None:
        """Raises UserError if nothing but useless proposals has come for a long time."""
        objection = self._objection(offer.proposal)
        if objection is None:
            self._accept(offer)
        else:
            self._refuse(offer.proposal, objection)

    def _objection(self, proposal: Proposal) -> Objection | None:
        """Why a proposal is not run; None if it is. The baseline is beyond objection."""
        if self._chronicle.state.next_number == 0:
            return None
        return check(proposal.train_py, self._briefing.frontier_py, self._briefing.tried()) or suspected(
            proposal.train_py, self._briefing.suspects()
        )

    def _accept(self, offer: Offer) -> None:
        proposal = offer.proposal
        diff = unified_diff(self._briefing.frontier_py, proposal.train_py)
        self._chronicle.record(
            Proposed(
                experiment=self._chronicle.state.next_number,
                description=clean_line(proposal.description, DESCRIPTION_CHARACTERS),
                hypothesis=clean_text(proposal.hypothesis, HYPOTHESIS_CHARACTERS),
                agent=proposal.agent,
                parent=self._briefing.frontier.commit,
                expected_effect=proposal.expected_effect,
                idea=clean_line(proposal.idea, DESCRIPTION_CHARACTERS),
                stands_in_for=offer.stands_in_for,
                prepared_for=offer.prepared_for,
                fixes=proposal.fixes,
                parameters=proposal.parameters,
                train_sha256=self._chronicle.put_text(proposal.train_py),
                digest=digest(proposal.train_py),
                diff_sha256=self._chronicle.put_text(diff),
            )
        )

    def _refuse(self, proposal: Proposal, objection: Objection) -> None:
        self._chronicle.record(
            ProposalRefused(
                agent=proposal.agent,
                description=clean_line(proposal.description, DESCRIPTION_CHARACTERS),
                cause=objection.cause,
                detail=clean_line(objection.detail),
                train_sha256=self._chronicle.put_text(proposal.train_py),
                fixes=proposal.fixes,
            )
        )
        if self._chronicle.state.refused_in_a_row >= MAX_REFUSALS:
            raise UserError(
                f"{MAX_REFUSALS} proposals in a row were refused, the last because {objection.detail}; "
                "look at the agent or at program.md."
            )


def unified_diff(before: str, after: str) -> str:
    """The change from one train.py to another, three lines of context, as `diff -u` writes it."""
    lines = difflib.unified_diff(_lines(before), _lines(after), "a/train.py", "b/train.py")
    return "".join(
        line if line.endswith("\n") else line + "\n\\ No newline at end of file\n" for line in lines
    )


def _lines(text: str) -> list[str]:
    """Split at newlines only; str.splitlines also splits at form feeds and at U+2028."""
    return io.StringIO(text, newline="\n").readlines()
