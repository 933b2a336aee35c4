"""Rebase a proposal that was prepared for one frontier onto another."""

from __future__ import annotations

from collections.abc import Collection

from controller.core.events import Prepared
from controller.core.program.edits import BadEdit, rebase
from controller.core.program.policy import check


class Stale(ValueError):
    """The proposal cannot be rebased; the message says why."""


def refit(
    prepared: Prepared, train_py: str, *, parent_py: str, frontier_py: str, tried: Collection[str]
) -> str:
    """`train_py` rebased from `parent_py` onto `frontier_py`. Raises Stale.

    `tried` are the digests of what was run from the frontier. If the frontier's text is unchanged, so is the
    proposal.
    """
    if parent_py == frontier_py:
        return train_py
    if prepared.edits is None:
        raise Stale("the frontier moved, and this replaces the former one as a whole")
    try:
        fit = rebase(frontier_py, prepared.edits)
    except BadEdit as error:
        raise Stale(f"the frontier moved, and an edit applies no more: {error}") from error
    if (objection := check(fit, frontier_py, tried)) is not None:
        raise Stale(f"the frontier moved: {objection.detail}")
    return fit
