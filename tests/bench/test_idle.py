"""The figures of a race, from a journal whose times are known."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Sequence

import pytest

from controller.core.events import (
    AnyEvent,
    ApiAnswered,
    Decided,
    ExperimentOpened,
    ProposalMade,
    Record,
    ScoringFinished,
    ScoringStarted,
    TrainingFinished,
    TrainingStarted,
)
from controller.core.values import Decision, RunOutcome, Usage, Verdict
from tests.bench.idle import idle
from tests.support.efforts import START, draw

NAME = "0" * 64


def record(second: float, event: AnyEvent) -> Record:
    time = (START + dt.timedelta(seconds=second)).isoformat()
    return Record(seq=0, time=time, experiment=None, data=event, prev=NAME, hash=NAME)


def trained(number: int, begin: float, end: float, life: float) -> list[Record]:
    started = TrainingStarted(
        experiment=number, attempt=1, container="", spec_sha256=NAME, budget_seconds=20.0
    )
    outcome = RunOutcome(seconds=life, exit_code=0)
    finished = TrainingFinished(experiment=number, attempt=1, outcome=outcome)
    return [record(begin, started), record(end, finished)]


def answered(second: float) -> Record:
    event = ApiAnswered(
        call=0, reply_sha256=NAME, reply_bytes=0, stop_reason="", usage=Usage(), seconds=0.0, cost_usd=0.0
    )
    return record(second, event)


def made(second: float) -> Record:
    return record(second, ProposalMade(proposal=1, description="", train_sha256=NAME))


@pytest.mark.parametrize("spoken", [[answered], [made], [answered, made]])
@pytest.mark.parametrize(("spoke", "waited"), [(30.0, 5.0), (10.0, 0.0)], ids=["late", "in time"])
def test_time_goes_to_training_scoring_waiting_and_the_rest(
    spoke: float, waited: float, spoken: Sequence[Callable[[float], Record]]
) -> None:
    opened = ExperimentOpened(
        experiment=1,
        proposal=1,
        slot=0,
        parent="",
        train_sha256=NAME,
        seed=7,
        ran_sha256=NAME,
        digest=NAME,
        diff_sha256=NAME,
    )
    decision = Decision(verdict=Verdict.DISCARD, rule="")
    records = [
        *trained(0, 0.0, 20.0, life=19.0),
        record(
            20.0,
            ScoringStarted(experiment=0, attempt=1, seed=0, draw=draw(0), specs={}),
        ),
        record(25.0, ScoringFinished(experiment=0, attempt=1)),
        record(25.0, Decided(experiment=0, decision=decision, frontier_bpb=None)),
        *(event(spoke) for event in spoken),
        record(31.0, opened),
        *trained(1, 31.0, 52.0, life=20.0),
    ]
    found = idle(sorted(records, key=lambda record: record.time))
    assert (found.experiments, found.total, found.training, found.scoring) == (2, 52.0, 39.0, 5.0)
    assert (found.waiting, found.other) == (waited, 8.0 - waited)
    assert found.share == pytest.approx(8 / 47)
    unused = (
        waited * 15 + found.other
    ) / 2  # answers take longer with 300 s than with 20 s, the rest does not
    assert found.share_in_earnest(20.0) == pytest.approx(unused / (300 + unused))
