"""What a start and an experiment cost an effort that has come far: real projections, no containers."""

from __future__ import annotations

import resource
from pathlib import Path

from controller.agents.llm.prompt import proposal_parts
from controller.core.experiment import Experiment
from controller.core.values import Change
from controller.ports import Context
from controller.proposals.context import ContextBuilder
from controller.store.repository import GitRepository
from controller.store.snapshot import Snapshot, standing
from tests.bench.history import write_history
from tests.loop.effort import BASELINE, Effort
from tests.support.fakes import FakeServices, train_py


def cpu_seconds() -> float:
    """Of this process and of the programs it has run so far, git above all.

    Unlike the time on the wall it does not grow when the machine is busy with something else.
    """
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


class Salting:
    """Proposes the frontier with another salt: a new text every time, and never a better one."""

    name = "salting"
    asks_ahead = False

    def propose(self, context: Context) -> Change:
        return Change(train_py=train_py(9.0, salt=len(context.history)), description="more salt")

    def fix(self, context: Context, crashed: Experiment) -> None:
        return None

    def combine(self, context: Context, behind: Experiment) -> None:
        return None


class Long:
    """An effort in a new home that has so many experiments behind it."""

    def __init__(self, home: Path, experiments: int) -> None:
        files = {"train.py": BASELINE, "prepare.py": "", "program.md": "be good"}
        write_history(home, experiments, GitRepository(home / "repo", "t").begin("t", files))
        state, archive = standing(home)
        Snapshot(home, archive).publish(state)
        self.home = home
        self._effort = Effort(home, Salting())
        self._finished = experiments
        self.experiment()  # the first one writes the whole ledger

    def experiment(self) -> float:
        """CPU seconds of a loop with one experiment left, which knows where the effort stands already: from
        asking for the proposal to its row in the ledger and the end of the session.
        """
        self._finished += 1
        loop = self._effort.loop(experiments=self._finished)
        before = cpu_seconds()
        loop.run()
        used = cpu_seconds() - before
        assert len(loop.state.finished) == self._finished
        return used

    def start(self) -> float:
        """CPU seconds until a new process would know where the effort stands."""
        before = cpu_seconds()
        state, _ = standing(self.home)
        assert state.next_number == self._finished
        return cpu_seconds() - before

    def telling(self) -> float:
        """CPU seconds until `claude` of a new process would know what to say to its model."""
        self._effort.restart()
        loop, components = self._effort.loop(), self._effort.components
        before = cpu_seconds()
        contexts = ContextBuilder(loop.effort, components.repository, components.runs)
        context = contexts.context(FakeServices(), loop.state.next_proposal)
        proposal_parts(context, context.notebook.mode(20), turns=20, room=30_000)
        return cpu_seconds() - before

    def close(self) -> None:
        self._effort.close()
