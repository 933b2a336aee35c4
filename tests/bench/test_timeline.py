"""The figures of an effort on a GPU, from journals whose times are known."""

from __future__ import annotations

import datetime as dt
import json
from pathlib import Path

import pytest

from controller.core.events import (
    AnyEvent,
    Decided,
    Record,
    ScoringFinished,
    ScoringStarted,
    TrainingFinished,
    TrainingStarted,
    Voided,
)
from controller.core.values import Cause, Claim, Decision, Refusal, RunOutcome, Score, Verdict
from tests.bench.gpu import compare
from tests.bench.timeline import first_step, pace, rows, table, tokens_per_second
from tests.support.efforts import START, Story, draw

NAME = "0" * 64


def record(second: float, event: AnyEvent) -> Record:
    time = (START + dt.timedelta(seconds=second)).isoformat()
    number = getattr(event, "experiment", None)
    return Record(seq=0, time=time, experiment=number, data=event, prev=NAME, hash=NAME)


def started(number: int, at: float, budget: float = 300.0) -> Record:
    event = TrainingStarted(
        experiment=number, attempt=1, container="", spec_sha256=NAME, budget_seconds=budget
    )
    return record(at, event)


def trained(number: int, at: float, life: float, **told: object) -> Record:
    outcome = RunOutcome(seconds=life, exit_code=0, **told)  # type: ignore[arg-type]
    return record(at, TrainingFinished(experiment=number, attempt=1, outcome=outcome))


def scored(number: int, begin: float, end: float, bpb: float, confirmed: bool) -> list[Record]:
    score = Score(val_bpb=bpb, bytes=1, tokens=1, confirmed=confirmed)
    decision = Decision(verdict=Verdict.KEEP if confirmed else Verdict.DISCARD, rule="R7")
    return [
        record(begin, ScoringStarted(experiment=number, attempt=1, seed=1, draw=draw(0), specs={})),
        record(end, ScoringFinished(experiment=number, attempt=1, score=score)),
        record(end, Decided(experiment=number, decision=decision, frontier_bpb=None)),
    ]


JOURNAL = [
    started(0, 0.0),
    # 0.5 s before T, which dies 0.26 s after the limit, and 1.24 s for the slot
    trained(0, 302.0, 300.26, start_seconds=0.5, kill_sent_seconds=300.004),
    *scored(0, 302.1, 322.0, 1.5, confirmed=True),
    # 2 s until the next, which ends by itself and is not confirmed
    started(1, 324.0),
    trained(1, 624.0, 299.0, start_seconds=0.5),
    *scored(1, 624.1, 634.0, 1.6, confirmed=False),
]


def test_the_phases_of_each_experiment() -> None:
    first, second = rows(JOURNAL)
    assert (first.before, first.life, first.scoring_seconds) == (0.5, 300.26, 20.0)
    assert first.after == pytest.approx(1.24)
    assert first.lateness == pytest.approx((0.004, 0.256))
    assert second.lateness is None and (first.confirmed, second.confirmed) == (True, False)
    lines = list(table([first, second]))
    assert "+0.004" in lines[1] and "1.600000" in lines[2] and lines[2].endswith("discard")


def test_an_hour_at_300_seconds_with_one_score_in_five_confirmed() -> None:
    found = pace(rows(JOURNAL))
    assert found.overhead == pytest.approx(0.5 + 0.8 * 10.0 + 0.2 * 20.0)
    assert found.an_hour == pytest.approx(3600 / 312.5) and found.share == pytest.approx(300 / 312.5)
    assert found.between == pytest.approx(2.0 + 1.24)
    assert found.all_told.an_hour == pytest.approx(3600 / 315.74)


def test_a_scoring_that_came_to_nothing_says_nothing_of_how_long_one_takes() -> None:
    refusal = ScoringFinished(
        experiment=2, attempt=1, refusal=Refusal(cause=Cause.WORKER_TIMEOUT, detail="no reply in time")
    )
    failed = [started(2, 640.0), trained(2, 941.0, 300.0, start_seconds=0.5), record(1300.0, refusal)]
    assert pace(rows([*JOURNAL, *failed])).overhead == pytest.approx(12.5)


def test_an_attempt_that_was_void_is_not_counted() -> None:
    void = Voided(experiment=0, attempt=1, cause="disturbed", reason="")
    records = [started(0, 0.0), trained(0, 20.0, 10.0), record(21.0, void), *JOURNAL]
    assert rows(records) == rows(JOURNAL)
    assert rows([*JOURNAL, started(2, 640.0)]) == rows(JOURNAL)


def test_a_journal_without_the_start_of_t_and_one_without_scores() -> None:
    [row] = rows([started(0, 0.0), trained(0, 305.0, 300.0)])
    assert (row.before, row.after) == (5.0, 0.0)
    with pytest.raises(ValueError, match="scored"):
        pace([row])


def test_a_made_up_effort_has_a_row_for_each_experiment() -> None:
    story = Story()
    story.run("baseline", 2.0)
    story.run("an idea", 1.9)
    assert [row.number for row in rows(story.records)] == [0, 1]


OURS = "".join(
    f"step {n} ( 10%)  loss 3.1  {ms} ms  12 s left\n" for n, ms in enumerate((900, 300, 296, 298))
)
THEIRS = "".join(f"\rstep 0000{n} | dt: {ms}ms | tok/sec: 1,650,000" for n, ms in enumerate((9000, 318, 318)))


@pytest.mark.parametrize(
    ("log", "rate"), [(OURS, 524288 / 0.297), (THEIRS, 524288 / 0.318), ("no lines", None)]
)
def test_tokens_a_second_are_those_of_settled_steps(log: str, rate: float | None) -> None:
    claim = Claim(total_tokens_M=524.288, num_steps=1000)
    assert tokens_per_second(claim, log) == (None if rate is None else pytest.approx(rate))
    assert tokens_per_second(Claim(), log) is None


def test_the_first_settled_step_is_what_the_run_says() -> None:
    assert first_step(Claim(startup_seconds=9.0, compile_seconds=11.0)) == 20.0
    assert first_step(Claim(compile_seconds=11.0)) is None


def test_another_file_is_compared_with_the_baseline(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "000000"
    folder.mkdir(parents=True)
    (folder / "run.log").write_text(OURS)
    (tmp_path / "theirs.log").write_text(THEIRS)
    claim = {"total_tokens_M": 524.288, "num_steps": 1000}
    records = [started(0, 0.0), trained(0, 302.0, 300.0, claim=Claim.model_validate(claim)), *JOURNAL[2:5]]
    tried = {"verdict": "scored", "val_bpb": 1.506, "detail": "", "claim": claim}
    tried["log"] = str(tmp_path / "theirs.log")
    assert json.loads(json.dumps(tried)) == tried
    said = list(compare(rows(records)[0], tmp_path, tried))
    assert said[1:] == [
        "gpu: our baseline is better by +0.006000 bits per byte (aim: ≥ 0.005)",
        "gpu: our baseline does +7.1% tokens per second (aim: ≥ 5 %)",
    ]
