"""Several slots: one frontier, one journal, one repository, and experiments that end in any order."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from controller.components import Slot
from controller.core.containers.spec import ContainerSpec
from controller.core.errors import InfrastructureError
from controller.core.events import (
    Committed,
    Decided,
    ExperimentOpened,
    Paused,
    ProposalAsked,
    Voided,
)
from controller.core.rules import RetryConfig
from controller.core.state import fold
from controller.core.values import RunOutcome, Verdict
from controller.ports import Attempt
from controller.recovery import recover
from controller.store.journal import read_records
from controller.store.verify import verify
from tests.loop.effort import Effort, Workspaces, start
from tests.loop.sixteen import Counting, on_slots, share_in_use
from tests.loop.slow import PATIENCE, Slow, Watch, events, exhausted, insert, swap
from tests.support.fakes import FakeJudge, FakeTrainer, train_py
from tests.support.story import Story


class Together(FakeTrainer):
    """Ends no training but the baseline's before so many run at once."""

    def __init__(self, slots: int) -> None:
        super().__init__()
        self._barrier = threading.Barrier(slots, timeout=PATIENCE)

    def train(self, attempt: Attempt, stop: threading.Event, tick: Callable[[float], None]) -> RunOutcome:
        outcome = super().train(attempt, stop, tick)
        if attempt.experiment != "0":
            self._barrier.wait()
        return outcome


class InOrder(FakeTrainer):
    """Of the first two experiments after the baseline, the one with some text in it ends first."""

    def __init__(self, first: str, watch: Watch) -> None:
        super().__init__()
        self._first, self._watch = first, watch

    def train(self, attempt: Attempt, stop: threading.Event, tick: Callable[[float], None]) -> RunOutcome:
        outcome = super().train(attempt, stop, tick)
        if attempt.experiment in ("1", "2"):
            ended = 1 if self._first in attempt.train_path.read_text(encoding="utf-8") else 2
            self._watch.until(lambda state: state.next_number > 2 and len(state.order) >= ended)
        return outcome


class Elsewhere(FakeTrainer):
    """Runs on CPUs that the settings name; may die with its controller in the middle of an experiment."""

    def __init__(self, cpus: str, dies: str = "") -> None:
        super().__init__()
        self._cpus, self._dies = cpus, dies

    def spec(self, attempt: Attempt) -> ContainerSpec:
        return replace(super().spec(attempt), cpus=self._cpus)

    def train(self, attempt: Attempt, stop: threading.Event, tick: Callable[[float], None]) -> RunOutcome:
        if attempt.experiment == self._dies:
            raise KeyboardInterrupt
        return super().train(attempt, stop, tick)


ENOUGH = [exhausted()] * 4
"""For all who may be asked at once."""
SPACIOUS = "TOP = 0\n" + "# so that two changes do not touch\n" * 5 + train_py(3.0)


@pytest.mark.parametrize("slots", [2, 16])
def test_every_slot_is_at_work_and_the_story_is_whole(
    tmp_path: Path, efforts: list[Effort], slots: int
) -> None:
    effort = start(efforts, tmp_path, Counting(3 * slots))
    on_slots(effort, slots, Together(slots))
    loop = effort.loop()
    assert "enough" in loop.run()
    assert len(loop.state.experiments) == 1 + 3 * slots == len(loop.state.order)
    assert {experiment.slot for experiment in loop.state.experiments} == set(range(slots))
    assert not effort.trainer.workspaces
    assert fold(read_records(tmp_path)) == loop.state
    assert verify(tmp_path) == []


def test_nothing_runs_beside_the_baseline(tmp_path: Path, efforts: list[Effort]) -> None:
    effort = start(efforts, tmp_path, Counting(4))
    on_slots(effort, 4)
    effort.loop().run()
    order = events(tmp_path, ExperimentOpened, Committed)
    assert [type(event) for event in order[:2]] == [ExperimentOpened, Committed]


def test_a_keep_is_judged_by_the_frontier_of_the_moment_and_both_changes_are_merged(
    tmp_path: Path, efforts: list[Effort]
) -> None:
    """Both start from the baseline; the first to end is kept, the other is better still and is kept, too."""
    agent = Slow([swap("WIDTH = 3.0", "WIDTH = 2.8"), swap("TOP = 0", "WIDTH = 2.9"), *ENOUGH])
    effort, watch = start(efforts, tmp_path, agent, SPACIOUS), Watch()
    on_slots(effort, 2, InOrder("WIDTH = 2.9", watch))
    effort.components.observer = watch
    loop = effort.loop()
    loop.run()
    behind, ahead, merged = [known for known in loop.state.finished if known.number > 0]
    assert (behind.verdict, ahead.verdict) == (Verdict.KEEP, Verdict.KEEP)
    assert behind.parent == ahead.parent != loop.state.base_commit
    assert ahead.frontier_bpb == 2.9
    assert (merged.proposal.purpose, merged.proposal.merges) == ("merge", behind.number)
    text = loop.effort.source(merged)
    assert "WIDTH = 2.8" in text and "WIDTH = 2.9" in text
    assert merged.parent == ahead.commit
    assert verify(tmp_path) == []


def test_a_merge_that_comes_late_loses_nothing_that_was_kept_meanwhile(
    tmp_path: Path, efforts: list[Effort]
) -> None:
    agent = Slow([swap("WIDTH = 3.0", "WIDTH = 2.8"), swap("TOP = 0", "WIDTH = 2.9"), *ENOUGH])
    effort, watch = start(efforts, tmp_path, agent, SPACIOUS), Watch()
    on_slots(effort, 2, InOrder("WIDTH = 2.9", watch))
    effort.components.observer = watch
    loop = effort.loop(experiments=3)  # none is left for the merge
    loop.run()
    text = loop.effort.source(loop.state.experiments[loop.state.order[-1]])
    effort.close()
    story = Story(tmp_path)
    story.experiment(text.replace("SALT = 0", "SALT = 1"), 2.7, "kept before the merge is asked for")
    story.journal.close()

    effort.begin()
    on_slots(effort, 2)
    loop = effort.loop(experiments=5)
    loop.run()
    merged = loop.effort.source(loop.state.experiments[4])
    assert loop.state.experiments[4].proposal.purpose == "merge"
    assert all(line in merged for line in ("WIDTH = 2.8", "WIDTH = 2.9", "SALT = 1"))


def test_changes_that_do_not_fit_are_given_to_the_agent(tmp_path: Path, efforts: list[Effort]) -> None:
    ideas = [swap("WIDTH = 3.0", "WIDTH = 2.8"), swap("WIDTH = 3.0", "WIDTH = 2.9")]
    worse = [insert(3.5 + salt) for salt in range(4)]
    agent = Slow([*ideas, *worse], combined=insert(2.7, "both"))
    effort, watch = start(efforts, tmp_path, agent), Watch()
    on_slots(effort, 2, InOrder("WIDTH = 2.9", watch))
    effort.components.observer = watch
    loop = effort.loop(experiments=5)
    loop.run()
    records = [record.data for record in read_records(tmp_path)]
    asked = [e for e in records if isinstance(e, ProposalAsked) and e.purpose == "merge"]
    assert [event.agent for event in asked] == ["merge", "slow"]
    (merged,) = [e for e in loop.state.experiments if e.proposal.purpose == "merge"]
    assert merged.proposal.agent == "slow" and "# both" in loop.effort.source(merged)


def test_a_slot_that_fails_waits_alone(tmp_path: Path, efforts: list[Effort]) -> None:
    class Broken(FakeTrainer):
        def train(self, attempt: Attempt, stop: threading.Event, tick: Callable[[float], None]) -> RunOutcome:
            if attempt.experiment != "0" and attempt.number <= 3:
                raise InfrastructureError("the GPU fell off the bus")
            return super().train(attempt, stop, tick)

    effort = start(efforts, tmp_path, Counting(8))
    on_slots(effort, 2)
    broken = Broken(effort.trainer.finished, effort.trainer.workspaces, effort.trainer.started)
    effort.components.slots = [effort.components.slots[0], Slot(broken, FakeJudge(broken))]
    effort.rule(retry=RetryConfig(first_seconds=1.0))
    loop = effort.loop()
    loop.run()
    records = [record.data for record in read_records(tmp_path)]
    assert {event.slot for event in records if isinstance(event, Paused)} == {1}
    ended = [record for record in read_records(tmp_path) if isinstance(record.data, Paused | Decided)]
    first_pause = next(place for place, record in enumerate(ended) if isinstance(record.data, Paused))
    assert sum(isinstance(record.data, Decided) for record in ended[first_pause:]) >= 3
    assert len(loop.state.order) == 9 and loop.state.pause is None and loop.state.slot(1).pause is None


def test_what_two_slots_leave_behind_is_taken_up_by_the_next_process(
    tmp_path: Path, efforts: list[Effort]
) -> None:
    class Stopping(FakeTrainer):
        """A person stops it while both slots train."""

        def train(self, attempt: Attempt, stop: threading.Event, tick: Callable[[float], None]) -> RunOutcome:
            outcome = super().train(attempt, stop, tick)
            if attempt.experiment == "2":
                watch.until(lambda state: len(state.open) == 2 and all(e.under_way for e in state.open))
                effort.stop.set()
            return outcome

    effort, watch = start(efforts, tmp_path, Counting(4)), Watch()
    on_slots(effort, 2, Stopping())
    effort.components.observer = watch
    with pytest.raises(Exception, match="stopped by a person"):
        effort.loop().run()
    trainer = effort.trainer
    effort.restart()
    on_slots(effort, 2)
    effort.trainer.workspaces |= trainer.workspaces
    loop = effort.loop()
    recover(effort.components, Workspaces(effort.trainer), loop.state)
    loop.run()
    assert len(loop.state.order) == 5 and loop.state.open == []
    assert not effort.trainer.workspaces
    assert verify(tmp_path) == []


def test_an_experiment_whose_slot_is_gone_moves(tmp_path: Path, efforts: list[Effort]) -> None:
    class Stopping(FakeTrainer):
        def train(self, attempt: Attempt, stop: threading.Event, tick: Callable[[float], None]) -> RunOutcome:
            if attempt.experiment == "2":
                effort.stop.set()
            return super().train(attempt, stop, tick)

    effort = start(efforts, tmp_path, Counting(2))
    on_slots(effort, 2, Stopping())
    with pytest.raises(Exception, match="stopped by a person"):
        effort.loop().run()
    effort.restart()
    on_slots(effort, 1)
    loop = effort.loop()
    loop.run()
    assert [experiment.slot for experiment in loop.state.experiments if experiment.number != 1] == [0, 0]
    assert len(loop.state.order) == 3


@pytest.mark.parametrize(("cpus", "attempts"), [("0", 1), ("1", 2)])
def test_a_training_goes_on_only_where_the_settings_still_put_it(
    tmp_path: Path, efforts: list[Effort], cpus: str, attempts: int
) -> None:
    effort = start(efforts, tmp_path, Counting(1))
    on_slots(effort, 1, Elsewhere("0", dies="1"))
    with pytest.raises(KeyboardInterrupt):
        effort.loop().run()
    effort.restart()
    on_slots(effort, 1, Elsewhere(cpus))
    loop = effort.loop()
    loop.run()
    assert loop.state.experiments[1].attempt == attempts
    voided = [event.reason for event in events(tmp_path, Voided) if isinstance(event, Voided)]
    assert voided == ["its container was started with other settings"] * (attempts - 1)


@pytest.mark.slow
def test_sixteen_slots_do_nearly_sixteen_times_as_much(tmp_path: Path) -> None:
    """Shorter trainings would measure the disk of this machine; `make bench ONLY=slots` has longer ones."""
    assert share_in_use(tmp_path, 16, 2, seconds=20.0) > 0.9
