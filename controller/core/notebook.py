"""The summary of an effort that agents are given, updated as experiments finish.

Part of the state, so that snapshots contain it: an agent that had to read a hundred thousand experiments
first would take a minute to make its first proposal. Experiments are referred to by number.
"""

from __future__ import annotations

import bisect
import math
from collections import Counter
from dataclasses import dataclass, field
from enum import StrEnum

from controller.core.experiment import Experiment
from controller.core.untrusted import clean_line
from controller.core.values import Verdict

_NEAR_MISSES = 8
_REMEMBERED_MISSES = 4
"""Kept from each former frontier."""
_OLDER_MISSES = 12
_IDEAS = 1000
"""More than any prompt has room for. The least recently tried is dropped first."""
IDEA_CHARACTERS = 60


class Mode(StrEnum):
    """What the agent is asked for."""

    NEXT = "next"
    COMBINE = "combine"
    """Combine near misses."""
    REVISIT = "revisit"
    """Retry, on the current frontier, what was discarded on an earlier one."""
    RESTRUCTURE = "restructure"
    """Something structurally different."""


@dataclass
class Idea:
    """All experiments that tried the same idea."""

    tried: int = 0
    kept: int = 0
    best: float | None = None
    """The best effect, bits per byte; negative: better than the frontier at that time."""
    causes: Counter[str] = field(default_factory=Counter)
    last: int = 0
    """Number of the latest experiment."""


@dataclass
class Notebook:
    """All of it is bounded, except for the list of keeps."""

    read: int = 0
    """How many experiments it covers."""
    verdicts: Counter[Verdict] = field(default_factory=Counter)
    keeps: list[int] = field(default_factory=list)
    near_misses: list[tuple[float, int]] = field(default_factory=list)
    """(effect, number) on the current frontier, best first: scored, but not better."""
    older_misses: list[int] = field(default_factory=list)
    """The best near misses on earlier frontiers, latest frontier first."""
    ideas: dict[str, Idea] = field(default_factory=dict)
    """By name; the one tried last comes last."""
    without_keep: int = 0
    """Experiments since the last keep."""

    def learn(self, experiment: Experiment) -> None:
        """Add a finished experiment."""
        gain = effect(experiment)
        kept = experiment.verdict is Verdict.KEEP
        self.read += 1
        if experiment.verdict is not None:
            self.verdicts[experiment.verdict] += 1
        if kept:
            self._keep(experiment)
        elif experiment.verdict is Verdict.DISCARD and gain is not None:
            bisect.insort(self.near_misses, (gain, experiment.number))
            del self.near_misses[_NEAR_MISSES:]
        self.without_keep = 0 if kept else self.without_keep + 1
        if experiment.number > 0:
            self._count(experiment, gain, kept)

    def mode(self, plateau_after: int) -> Mode:
        """What to ask for: NEXT, or on a plateau the other modes in turn."""
        if self.without_keep < plateau_after:
            return Mode.NEXT
        ways = [Mode.RESTRUCTURE]
        if self.older_misses:
            ways.insert(0, Mode.REVISIT)
        if len(self.near_misses) + len(self.older_misses) > 1:
            ways.insert(0, Mode.COMBINE)
        return ways[(self.without_keep - plateau_after) % len(ways)]

    def _keep(self, kept: Experiment) -> None:
        self.keeps.append(kept.number)
        self.move_on()

    def move_on(self) -> None:
        """There is another frontier: what nearly beat the one before is no near miss on this one."""
        best = [number for _, number in self.near_misses[:_REMEMBERED_MISSES]]
        self.older_misses = [*best, *self.older_misses][:_OLDER_MISSES]
        self.near_misses = []

    def _count(self, experiment: Experiment, gain: float | None, kept: bool) -> None:
        name = idea_name(experiment)
        self.ideas[name] = idea = self.ideas.pop(name, Idea())
        if len(self.ideas) > _IDEAS:
            del self.ideas[next(iter(self.ideas))]
        idea.tried += 1
        idea.kept += kept
        idea.last = experiment.number
        if gain is not None and (idea.best is None or gain < idea.best):
            idea.best = gain
        if not kept:
            idea.causes[str(experiment.cause or experiment.verdict or "open")] += 1


def effect(experiment: Experiment) -> float | None:
    """Score minus the score to beat, bits per byte; None if either is missing, and for a replicate."""
    score, frontier = experiment.score, experiment.frontier_bpb if experiment.repeats is None else None
    if score is None or frontier is None or not math.isfinite(score.val_bpb - frontier):
        return None
    return score.val_bpb - frontier


def idea_name(experiment: Experiment) -> str:
    """The idea's name as given by its author, else the constants it changed, else its description."""
    proposal = experiment.proposal
    changed = proposal.parameters.get("changed")
    if not proposal.idea and isinstance(changed, list):
        return clean_line(", ".join(str(name) for name in changed), IDEA_CHARACTERS)
    return clean_line(proposal.idea or proposal.description, IDEA_CHARACTERS)
