"""Proposals and experiments of which a test says only what it is about."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from controller.core.experiment import Experiment
from controller.core.proposal import Proposal


def a_proposal(number: int = 0, **known: Any) -> Proposal:
    """One that an agent has just been asked for, unless `known` says more."""
    asked = Proposal(number=number, agent="", purpose="propose", parent="", asked_at="")
    return replace(asked, **known)


def an_experiment(number: int = 0, proposal: Proposal | None = None, **known: Any) -> Experiment:
    """One that has just been opened, unless `known` says more. It runs the proposal's text on its parent."""
    proposal = proposal or a_proposal(number)
    opened = Experiment(
        number=number,
        proposal=proposal,
        slot=0,
        parent=proposal.parent,
        train_sha256=proposal.train_sha256,
        seed=7,
        ran_sha256=proposal.train_sha256,
        digest="",
        diff_sha256="",
        opened_at="",
    )
    return replace(opened, **known)
