"""What a start and a step cost an effort that has come far: real projections, no containers."""

from __future__ import annotations

import resource
from pathlib import Path

from controller.agents.llm.prompt import proposal_parts
from controller.core.experiment import Experiment
from controller.core.values import Proposal
from controller.ports import Context
from controller.proposals.context import Briefing
from controller.store.repository import GitRepository
from controller.store.snapshot import Snapshot, standing
from tests.bench.history import write_history
from tests.loop.effort import BASELINE, Effort
from tests.support.fakes import FakeDesk, train_py


def cpu_seconds() -> float:
    """Of this process and of the programs it has run so far, git above all.

    Unlike the time on the wall it does not grow when the machine is busy with something else.
    """
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


class Salting:
    """Proposes the frontier with another salt: a new text every time, and never a better one."""

    name = "salting"
    prepares_ahead = False

    def propose(self, context: Context) -> Proposal:
        return Proposal(train_py=train_py(9.0, salt=len(context.history)), description="more salt")

    def fix(self, context: Context, crashed: Experiment) -> None:
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
        self._loop = self._effort.loop()
        self.experiment()  # the first one writes the whole ledger

    def experiment(self) -> float:
        """CPU seconds from asking for a proposal to its row in the ledger."""
        before, due = cpu_seconds(), self._loop.state.next_number + 1
        while self._loop.state.next_number < due or self._loop.state.open:
            self._loop.step()
        return cpu_seconds() - before

    def start(self) -> float:
        """CPU seconds until a new process would know where the effort stands."""
        before = cpu_seconds()
        state, _ = standing(self.home)
        assert state.next_number == self._loop.state.next_number
        return cpu_seconds() - before

    def telling(self) -> float:
        """CPU seconds until `claude` of a new process would know what to say to its model."""
        self._effort.restart()
        self._loop, world = self._effort.loop(), self._effort.world
        before = cpu_seconds()
        context = Briefing(self._loop.chronicle, world.repository, world.runs).context(FakeDesk())
        proposal_parts(context, context.notebook.mode(20), turns=20, room=30_000)
        return cpu_seconds() - before

    def close(self) -> None:
        self._effort.close()
