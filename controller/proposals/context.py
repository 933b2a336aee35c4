"""What an agent is told before it proposes."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from functools import lru_cache
from typing import overload

from controller.core.experiment import Experiment
from controller.core.program.suspicion import Suspicion
from controller.core.values import Frontier, Score
from controller.ports import Context, Desk, Repository
from controller.store.effort import Chronicle
from controller.store.runs import Runs


class Briefing:
    """Makes a Context out of where the effort stands. Only the loop's own thread asks it."""

    def __init__(self, chronicle: Chronicle, repository: Repository, runs: Runs) -> None:
        self._chronicle = chronicle
        self._runs = runs
        self._read = lru_cache(maxsize=16)(repository.read)  # what a commit holds never changes

    @property
    def frontier(self) -> Frontier:
        if self._chronicle.state.frontier is None:
            raise AssertionError("an effort has a frontier from its first event on")
        return self._chronicle.state.frontier

    @property
    def frontier_py(self) -> str:
        return self.train_py(self.frontier.commit)

    def train_py(self, commit: str) -> str:
        return self._read(commit, "train.py")

    def tried(self) -> Collection[str]:
        """Digests of what was run from the frontier; a view, not a copy."""
        return self._chronicle.state.tried.get(self.frontier.commit, frozenset())

    def suspects(self) -> Mapping[str, Suspicion]:
        """By digest, what is not run again from any frontier; a view, not a copy."""
        return self._chronicle.state.suspects

    def context(self, desk: Desk) -> Context:
        """A snapshot that another thread may use while the effort goes on."""
        state, experiments = self._chronicle.state, self._chronicle.state.experiments
        return Context(
            program=self._read(self.frontier.commit, "program.md"),
            interface=self._read(self.frontier.commit, "prepare.py"),
            frontier=self.frontier,
            train_py=self.frontier_py,
            history=History(experiments, len(experiments) - (state.open is not None)),
            notebook=deepcopy(state.notebook),
            running=state.open,
            scale=state.session.provenance.scale if state.session else "cpu",
            source=lambda number: self._chronicle.source(experiments[number]),
            diff=lambda number: self._chronicle.diff(experiments[number]),
            excerpt=self._runs.excerpt,
            desk=desk,
        )


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
    judgement, quarantine = experiment.judgement, experiment.quarantine
    if isinstance(judgement, Score):
        judgement = _blinded(judgement)
    if quarantine is not None:
        quarantine = quarantine.model_copy(update={"score": _blinded(quarantine.score)})
    return replace(experiment, judgement=judgement, quarantine=quarantine)


def _blinded(score: Score) -> Score:
    return score.model_copy(update={"holdout_bpb": None, "holdout_bytes": 0, "fresh": None})
