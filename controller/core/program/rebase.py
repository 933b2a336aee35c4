"""Rebase a proposal that was made for one frontier onto another."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from controller.core.program.edits import BadEdit
from controller.core.program.edits import rebase as apply_edits
from controller.core.program.policy import check
from controller.core.values import Edit


class Stale(ValueError):
    """The proposal cannot be rebased; the message says why."""


def rebase(
    train_py: str,
    edits: Sequence[Edit] | None,
    *,
    parent_py: str,
    frontier_py: str,
    tried: Collection[str],
) -> str:
    """`train_py` rebased from `parent_py` onto `frontier_py`. Raises Stale.

    `edits` is how it was made; `tried` are the digests of what was run from the frontier. While the
    frontier's text is the same, the proposal fits as it is.
    """
    if parent_py == frontier_py:
        return train_py
    if edits is None:
        raise Stale("the frontier moved, and this replaces the former one as a whole")
    try:
        fit = apply_edits(frontier_py, edits)
    except BadEdit as error:
        raise Stale(f"the frontier moved, and an edit no longer applies: {error}") from error
    if (objection := check(fit, frontier_py, tried)) is not None:
        raise Stale(f"the frontier moved: {objection.detail}")
    return fit
