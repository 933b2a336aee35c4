"""What an agent is told before it proposes."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from functools import lru_cache
from typing import overload

from controller.core.experiment import Experiment
from controller.core.keeps import keeps_of
from controller.core.program.suspicion import Suspicion
from controller.core.values import Frontier, Score
from controller.ports import Context, Repository, Services
from controller.store.effort import Effort
from controller.store.runs import Runs


class ContextBuilder:
    """Makes a Context out of where the effort stands. Safe to use from any thread that holds its lock."""

    def __init__(self, effort: Effort, repository: Repository, runs: Runs) -> None:
        self._effort = effort
        self._runs = runs
        self._read = lru_cache(maxsize=16)(repository.read)  # what a commit holds never changes

    @property
    def frontier(self) -> Frontier:
        if self._effort.state.frontier is None:
            raise AssertionError("an effort has a frontier from its first event on")
        return self._effort.state.frontier

    @property
    def frontier_py(self) -> str:
        return self.train_py(self.frontier.commit)

    def train_py(self, commit: str) -> str:
        return self._read(commit, "train.py")

    def tried(self) -> Collection[str]:
        """Digests of what was run from the frontier; a view, not a copy."""
        return self._effort.state.tried.get(self.frontier.commit, frozenset())

    def suspects(self) -> Mapping[str, Suspicion]:
        """By digest, what is not run again from any frontier; a view, not a copy."""
        return self._effort.state.suspects

    def _finished(self, number: int) -> Experiment:
        experiment = self._effort.state.experiments[number]
        if number < 0 or experiment.finished_at is None or experiment.under_way:
            raise LookupError(number)
        return without_holdout(experiment)

    def context(self, services: Services, proposal: int) -> Context:
        """A snapshot that another thread may use while the effort goes on. `proposal`: what it is for."""
        state, experiments = self._effort.state, self._effort.state.experiments
        others = [known for number, known in sorted(state.proposals.items()) if number != proposal]
        return Context(
            program=self._read(self.frontier.commit, "program.md"),
            interface=self._read(self.frontier.commit, "prepare.py"),
            frontier=self.frontier,
            train_py=self.frontier_py,
            history=History(state.finished, len(state.order)),
            finished=self._finished,
            notebook=deepcopy(state.notebook),
            running=tuple(known for known in state.open if known.repeats is None),
            waiting=tuple(other for other in others if other.is_made and other.repeats is None),
            scale=state.session.provenance.scale if state.session else "cpu",
            source=lambda number: self._effort.source(experiments[number]),
            diff=lambda number: self._effort.diff(experiments[number]),
            excerpt=self._runs.excerpt,
            services=services,
            keeps=keeps_of(state),
            instructions=[one.text for one in state.steering.told(proposal, state.proposals)],
        )


class History(Sequence[Experiment]):
    """The first `length` experiments to finish, in that order, without their hold-out scores.

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
    """The experiment as an agent may see it: choosing by the hold-out score would wear it out."""
    judgement, quarantine = experiment.judgement, experiment.quarantine
    if isinstance(judgement, Score):
        judgement = _blinded(judgement)
    if quarantine is not None:
        quarantine = quarantine.model_copy(update={"score": _blinded(quarantine.score)})
    return replace(experiment, judgement=judgement, quarantine=quarantine)


def _blinded(score: Score) -> Score:
    return score.model_copy(update={"holdout_bpb": None, "holdout_bytes": 0, "fresh": None})
