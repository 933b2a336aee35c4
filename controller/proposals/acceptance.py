"""Whether a proposal becomes an experiment: the last check before it costs training time."""

from __future__ import annotations

import difflib
import io
import secrets

from controller.core.events import ExperimentOpened, ProposalMade, ProposalRefused
from controller.core.program.policy import Objection, check, digest
from controller.core.program.seeding import SEED_BITS, seeded
from controller.core.program.suspicion import suspected
from controller.core.proposal import Proposal
from controller.core.state import BASELINE, PERSON, REPLICATE
from controller.core.untrusted import clean_line, clean_text
from controller.core.values import Change
from controller.proposals.context import ContextBuilder
from controller.store.effort import Effort

#: The ledger and the prompts hold one line per idea; a hypothesis may be a paragraph.
DESCRIPTION_CHARACTERS = 200
HYPOTHESIS_CHARACTERS = 2000


def made(effort: Effort, proposal: int, change: Change) -> ProposalMade:
    """What goes on record of an agent's answer. Here its texts are cleaned, once."""
    return ProposalMade(
        proposal=proposal,
        description=clean_line(change.description, DESCRIPTION_CHARACTERS),
        hypothesis=clean_text(change.hypothesis, HYPOTHESIS_CHARACTERS),
        expected_effect=change.expected_effect,
        idea=clean_line(change.idea, DESCRIPTION_CHARACTERS),
        parameters=change.parameters,
        edits=change.edits,
        train_sha256=effort.put_text(change.train_py),
    )


def accept(effort: Effort, contexts: ContextBuilder, proposal: int, slot: int) -> None:
    """Record a proposal as the next experiment, or as refused. The caller holds the effort's lock."""
    known = effort.state.proposals[proposal]
    train_py, parent_py = effort.text(known.train_sha256), contexts.frontier_py
    parent = contexts.frontier.commit
    if known.repeats is not None:
        parent, parent_py = effort.state.experiments[known.repeats].commit or parent, train_py
    objection = _objection(contexts, known, train_py)
    if objection is not None:
        detail = clean_line(objection.detail)
        effort.record(ProposalRefused(proposal=proposal, cause=objection.cause, detail=detail))
        return
    seed = secrets.randbits(SEED_BITS)
    effort.record(
        ExperimentOpened(
            experiment=effort.state.next_number,
            proposal=proposal,
            slot=slot,
            parent=parent,
            train_sha256=known.train_sha256,
            seed=seed,
            ran_sha256=effort.put_text(seeded(train_py, seed)),
            digest=digest(train_py),
            diff_sha256=effort.put_text(unified_diff(parent_py, train_py)),
        )
    )


def _objection(contexts: ContextBuilder, proposal: Proposal, train_py: str) -> Objection | None:
    """A person may run again what was run before."""
    if proposal.agent in (BASELINE, REPLICATE):
        return None
    if proposal.agent == PERSON:
        return check(train_py, contexts.frontier_py)
    return check(train_py, contexts.frontier_py, contexts.tried()) or suspected(train_py, contexts.suspects())


def unified_diff(before: str, after: str) -> str:
    """The change from one train.py to another, three lines of context, as `diff -u` writes it."""
    lines = difflib.unified_diff(_lines(before), _lines(after), "a/train.py", "b/train.py")
    return "".join(
        line if line.endswith("\n") else line + "\n\\ No newline at end of file\n" for line in lines
    )


def _lines(text: str) -> list[str]:
    """Split at newlines only; str.splitlines also splits at form feeds and at U+2028."""
    return io.StringIO(text, newline="\n").readlines()
