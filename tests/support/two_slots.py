"""Efforts on two slots, whose experiments are told in any order: a home on disk, and one that is made up."""

from __future__ import annotations

from pathlib import Path

from controller.core.events import AnyEvent, Committed, ExperimentOpened, Record, ScoringFinished
from controller.core.experiment import Experiment
from controller.core.values import Cause, Refusal, Score, Verdict
from tests.support import efforts, story
from tests.support.story import BASELINE


class HomeOfTwo(story.Story):
    """A home; `slot` is where the next experiment is opened."""

    def __init__(self, home: Path) -> None:
        super().__init__(home)
        self.slot = 0

    def record(self, event: AnyEvent) -> Record:
        match event:
            case ExperimentOpened():
                event = event.model_copy(update={"slot": self.slot})
            case ScoringFinished(score=Score() as score):  # so small a gap may be that of any honest lineage
                honest = score.model_copy(update={"fresh": efforts.fresh_rows(0.01)})
                event = event.model_copy(update={"score": honest})
        return super().record(event)

    def open(self, slot: int, description: str = "an idea") -> int:
        """Open an experiment that is about to be trained; return its number."""
        self.slot = slot
        return self.propose(f"{BASELINE}A = {self.state.next_number}\n", description)

    def finish(self, number: int, judgement: float | Refusal | Cause) -> Experiment:
        """The rest of an open experiment; a Cause stands for a crash."""
        if self.state.experiments[number].attempt == 0:
            self.train(number, judgement if isinstance(judgement, Cause) else None)
        if not isinstance(judgement, Cause):
            self.judge(number, judgement)
        self.decide(number)
        if self.state.experiments[number].verdict is Verdict.KEEP:
            self.record(Committed(experiment=number, commit=self.commit(number)))
        self.runs.finish(self.state.experiments[number])
        self.ledger.publish(self.state)
        return self.state.experiments[number]


def three_and_four(home: Path) -> HomeOfTwo:
    """Three finished experiments; 3 and 4 are open at once and have been trained, 3 on slot 0 and 4 on 1."""
    told = HomeOfTwo(home)
    told.begin()
    told.experiment(BASELINE, 2.0, "baseline")
    told.finish(told.open(0), 2.5)
    told.finish(told.open(1), Cause.OOM)
    for slot, description in enumerate(("the third", "the fourth")):
        told.train(told.open(slot, description))
    return told


class StoryOfTwo(efforts.Story):
    """Made up: `open` begins an experiment on a slot and leaves it in training, `end` ends any open one."""

    def __init__(self) -> None:
        self._slot = self._next = 0
        super().__init__()
        self.end(self.open(0, "baseline"), 2.0)

    def tell(self, event: AnyEvent, seconds: float = 10) -> None:
        if isinstance(event, ExperimentOpened):
            event = event.model_copy(update={"slot": self._slot})
        super().tell(event, seconds)

    def open(self, slot: int, description: str) -> int:
        self._slot, self._number = slot, self._next
        self._next += 1
        self.propose(description)
        return self._number

    def end(self, number: int, result: float | Cause, detail: str = "RuntimeError: it failed") -> None:
        self._number = number
        self._finish(result, None, detail)
