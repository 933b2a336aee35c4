"""Makes a proposal fit another frontier than the one it was made for, and puts two changes together."""

from __future__ import annotations

from collections.abc import Collection

from controller.core.events import ProposalDropped, ProposalRebased
from controller.core.program.rebase import Stale, rebase
from controller.core.proposal import Proposal
from controller.core.state import PERSON
from controller.core.untrusted import clean_line
from controller.proposals.context import ContextBuilder
from controller.store.effort import Effort


def rebase_on_frontier(effort: Effort, contexts: ContextBuilder, number: int) -> None:
    """Record a proposal as rebased on the frontier, or as dropped. The caller holds the effort's lock."""
    proposal = effort.state.proposals[number]
    if proposal.agent == PERSON:  # who wants this text and no other
        commit, sha256 = contexts.frontier.commit, proposal.train_sha256
        effort.record(ProposalRebased(proposal=number, parent=commit, train_sha256=sha256))
        return
    try:
        train_py = rebased(effort, contexts, proposal, contexts.frontier_py, contexts.tried())
    except Stale as stale:
        effort.record(ProposalDropped(proposal=number, reason=clean_line(str(stale))))
        return
    sha256 = effort.put_text(train_py)
    effort.record(ProposalRebased(proposal=number, parent=contexts.frontier.commit, train_sha256=sha256))


def rebased(
    effort: Effort,
    contexts: ContextBuilder,
    proposal: Proposal,
    frontier_py: str,
    tried: Collection[str] = (),
) -> str:
    """The text of a proposal on some frontier. Raises Stale."""
    return rebase(
        effort.text(proposal.train_sha256),
        proposal.edits,
        parent_py=contexts.train_py(proposal.parent),
        frontier_py=frontier_py,
        tried=tried,
    )
