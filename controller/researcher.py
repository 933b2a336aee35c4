"""Getting the next proposal out of an agent."""

from __future__ import annotations

import threading
from collections.abc import Collection, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import overload

from controller.chronicle import Chronicle
from controller.core.model import TRIVIAL_CAUSES, Frontier, Proposal, Score
from controller.core.policy import Objection, check
from controller.core.state import Experiment, ResearchState
from controller.desk import Budget, JournalDesk
from controller.ports import Agent, Clock, Context, Repository
from controller.runs import Runs


class Researcher:
    """Asks an agent on behalf of the loop."""

    def __init__(
        self,
        agent: Agent,
        chronicle: Chronicle,
        repository: Repository,
        runs: Runs,
        clock: Clock,
        stop: threading.Event,
        budget: Budget,
    ) -> None:
        self._agent = agent
        self._chronicle = chronicle
        self._runs = runs
        self._clock = clock
        self._stop = stop
        self._budget = budget
        self._read = lru_cache(maxsize=16)(repository.read)  # what a commit holds never changes

    def next(self) -> Proposal:
        """The next proposal. Raises AgentError, AgentExhausted, Interrupted."""
        if self._state.next_number == 0:
            train_py = self._read(self._frontier.commit, "train.py")
            return Proposal(train_py=train_py, description="baseline", agent="baseline")
        context, crashed = self._context(), self._state.experiments[-1]
        if crashed.cause in TRIVIAL_CAUSES and crashed.proposal.fixes is None:
            fixed = self._agent.fix(context, crashed)
            if fixed is not None:
                return fixed.model_copy(update={"fixes": crashed.number, "agent": self._agent.name})
        return self._agent.propose(context).model_copy(update={"agent": self._agent.name})

    def objection(self, proposal: Proposal) -> Objection | None:
        """Why a proposal is not run; None if it is. The baseline is beyond objection."""
        if self._state.next_number == 0:
            return None
        return check(proposal.train_py, self._read(self._frontier.commit, "train.py"), self._tried())

    def _context(self) -> Context:
        state, frontier = self._state, self._frontier
        train_py = self._read(frontier.commit, "train.py")
        experiments = state.experiments
        return Context(
            program=self._read(frontier.commit, "program.md"),
            interface=self._read(frontier.commit, "prepare.py"),
            frontier=frontier,
            train_py=train_py,
            history=History(experiments, len(experiments) - (state.open is not None)),
            running=state.open,
            scale=state.session.provenance.scale if state.session else "cpu",
            source=lambda number: self._chronicle.source(experiments[number]),
            diff=lambda number: self._chronicle.diff(experiments[number]),
            excerpt=self._runs.excerpt,
            desk=JournalDesk(
                self._chronicle,
                self._clock,
                experiment=state.next_number,
                frontier_py=train_py,
                tried=self._tried(),
                budget=self._budget,
                stop=self._stop,
            ),
        )

    def _tried(self) -> Collection[str]:
        """Digests of what was run from the frontier; a view, not a copy."""
        return self._state.tried.get(self._frontier.commit, frozenset())

    @property
    def _state(self) -> ResearchState:
        return self._chronicle.state

    @property
    def _frontier(self) -> Frontier:
        if self._state.frontier is None:
            raise AssertionError("an effort has a frontier from its first event on")
        return self._state.frontier


class History(Sequence[Experiment]):
    """The first `length` experiments, all finished, without their hold-out scores.

    A view: it costs the same at ten experiments and at a hundred thousand. Finished experiments never change,
    so another thread may read it while the effort goes on.
    """

    def __init__(self, experiments: Sequence[Experiment], length: int) -> None:
        self._experiments = experiments
        self._range = range(length)

    def __len__(self) -> int:
        return len(self._range)

    @overload
    def __getitem__(self, index: int) -> Experiment: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[Experiment]: ...

    def __getitem__(self, index: int | slice) -> Experiment | Sequence[Experiment]:
        if isinstance(index, slice):
            return [without_holdout(self._experiments[number]) for number in self._range[index]]
        return without_holdout(self._experiments[self._range[index]])


def without_holdout(experiment: Experiment) -> Experiment:
    """The experiment as an agent may see it: whoever chooses by the hold-out score wears it out."""
    score = experiment.judgement
    if not isinstance(score, Score):
        return experiment
    return replace(experiment, judgement=score.model_copy(update={"holdout_bpb": None, "holdout_bytes": 0}))
