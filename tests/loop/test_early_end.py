"""Runs that train far worse than every kept program end early, are told of everywhere, and have no score."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

from controller.agents.replay import Replay
from controller.core.events import TrainingFinished
from controller.core.experiment import Experiment
from controller.core.rules import ReplicatesConfig
from controller.core.state import fold
from controller.core.values import Cause, Curve, RunOutcome, Verdict
from controller.ports import Attempt
from controller.store.journal import Journal, read_records
from controller.store.snapshot import EVERY, SNAPSHOT, standing
from controller.store.verify import verify
from controller.system.clock import SystemClock
from controller.views import facts, report
from tests.loop.effort import Effort, start
from tests.support.fakes import FakeJudge, FakeTrainer, train_py

BASELINE = train_py(3.0, "trains 2.0")


def effort_with(efforts: list[Effort], tmp_path: Path, *texts: str, baseline: str = BASELINE) -> Effort:
    """One whose baseline runs four times before its proposals do."""
    folder = tmp_path / "proposals"
    folder.mkdir()
    for number, text in enumerate(texts):
        (folder / f"{number}.py").write_text(text, encoding="utf-8")
    effort = start(efforts, tmp_path / "home", Replay(folder), baseline)
    effort.slot.judge = FakeJudge(effort.trainer, chance=0.001)
    effort.rule(replicates=ReplicatesConfig(baseline=4, every=0))
    return effort


def finished(effort: Effort) -> list[Experiment]:
    effort.loop().run()
    return [*standing(effort.home)[0].finished]


def test_a_hopeless_run_is_discarded_without_a_score(tmp_path: Path, efforts: list[Effort]) -> None:
    effort = effort_with(efforts, tmp_path, train_py(1.0, "trains 9.0"), train_py(2.5, "trains 2.0"))
    *_, hopeless, next_one = finished(effort)
    assert (hopeless.verdict, hopeless.cause, hopeless.score) == (Verdict.DISCARD, Cause.HOPELESS, None)
    assert next_one.verdict is Verdict.KEEP
    row = (effort.home / "results.tsv").read_text().splitlines()[5].split("\t")
    assert (row[1], row[3], row[8]) == ("", "discard", "hopeless")
    assert verify(effort.home) == []
    state = standing(effort.home)[0]
    shown = facts.show(facts.Exhibit(state, hopeless.number))
    assert shown["outcome"]["curve"]["losses"][0] == 9.0
    assert "above 2.0000" in shown["outcome"]["detail"]
    records = [*read_records(effort.home)]
    told = report.render(records, state)
    assert "not a number or far above that of every kept program: 1. These have no score." in told
    assert tmp_path / "report" / "curves.svg" in report.write(records, tmp_path / "report")


def test_a_setting_turns_it_off(tmp_path: Path, efforts: list[Effort]) -> None:
    effort = effort_with(efforts, tmp_path, train_py(2.5, "trains 9.0"))
    effort.rule(early_end=False)
    assert finished(effort)[-1].verdict is Verdict.KEEP


def test_a_replicate_is_only_ended_for_what_is_no_number(tmp_path: Path, efforts: list[Effort]) -> None:
    """Without its bad runs a program would seem steadier than it is."""

    class Worse(FakeTrainer):
        """Later runs of the baseline go badly."""

        def train(self, attempt: Attempt, stop: threading.Event, tick: Callable[[float], None]) -> RunOutcome:
            if attempt.experiment in losses:
                text = train_py(3.0, f"trains {losses[attempt.experiment]}")
                attempt.train_path.write_text(text, encoding="utf-8")
            return super().train(attempt, stop, tick)

    losses = {"4": "9.0", "5": "nan"}
    effort = effort_with(efforts, tmp_path, train_py(2.5, "trains 2.0"))
    effort.train_with(Worse())
    effort.rule(replicates=ReplicatesConfig(baseline=6, every=0))
    finished(effort)
    state = standing(effort.home)[0]
    causes = [state.experiments[number].cause for number in range(1, 6)]
    assert causes == [*[Cause.REPLICATE] * 4, Cause.HOPELESS]
    assert (state.yardstick.parts[0].df, state.yardstick.parts[0].worst) == (4, 9.0)


def test_a_journal_that_ends_a_run_early_without_a_reason_is_found_out(
    tmp_path: Path, efforts: list[Effort]
) -> None:
    effort = effort_with(efforts, tmp_path, train_py(1.0, "trains 9.0"))
    finished(effort)
    copy = tmp_path / "copy"
    copy.mkdir()
    retold = Journal(copy, SystemClock())
    for record in read_records(effort.home):
        event = record.data
        if isinstance(event, TrainingFinished) and event.outcome.cause is Cause.HOPELESS:
            innocent = event.outcome.model_copy(update={"curve": Curve(losses=(2.0,) * 64)})
            event = event.model_copy(update={"outcome": innocent})
        retold.append(event)
    assert [problem for problem in verify(copy) if "ended early" in problem and "not hopeless" in problem]


def test_curves_and_limits_survive_a_snapshot(tmp_path: Path, efforts: list[Effort]) -> None:
    effort = effort_with(efforts, tmp_path, train_py(2.5, "trains 2.0"), train_py(1.0, "trains 9.0"))
    effort.archive.stored = -EVERY  # so that one is taken as soon as it can be
    finished(effort)
    assert (effort.home / SNAPSHOT).exists()
    from_snapshot, replayed = standing(effort.home)[0], fold(read_records(effort.home))
    assert from_snapshot.yardstick == replayed.yardstick and set(replayed.yardstick.means) == {0, 4}
    assert from_snapshot.slots == replayed.slots and 2.0 in replayed.slots[0].limits
    assert [run.outcome for run in from_snapshot.finished] == [run.outcome for run in replayed.finished]


def test_a_baseline_that_diverges_ends_early_too(tmp_path: Path, efforts: list[Effort]) -> None:
    text = train_py(3.0, "trains nan")
    effort = effort_with(efforts, tmp_path, train_py(2.5, "trains 2.0"), baseline=text)
    first, second = finished(effort)
    assert (first.verdict, first.cause) == (Verdict.DISCARD, Cause.HOPELESS)
    assert second.verdict is Verdict.KEEP
