"""What the loop may rely on: real Trainer and Judge and their fakes, held to one contract."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from controller.core.containers.config import MIB, Limits, SandboxConfig
from controller.core.errors import InfrastructureError, Interrupted
from controller.core.scoring.config import JudgeConfig
from controller.core.values import Cause, RunOutcome, Score
from controller.ports import Attempt, Judge, Trainer
from controller.sandbox.inputs import sealed
from controller.sandbox.scoring import ContainerJudge
from tests.harness.scoring import MODEL, make_data
from tests.support.bench import open_bench
from tests.support.fakes import FakeJudge, FakeTrainer, train_py

REAL = f"""
import torch
{MODEL}
def build_model():
    return Tiny()

if __name__ == "__main__":
    import prepare
    torch.manual_seed(3)
    prepare.save_checkpoint(Tiny())
    {{last}}
"""


@dataclass
class World:
    trainer: Trainer
    judge: Judge
    good: str
    crashes: str
    breaks: str
    """Reports a loss that is no number, and trains on."""
    make: Callable[[str], Attempt]
    """An attempt at a text of train.py."""


def _fake(folder: Path) -> World:
    trainer = FakeTrainer()

    def make(text: str) -> Attempt:
        (folder / "train.py").write_text(text)
        return Attempt("0", 1, folder / "train.py", folder / "run.log", 60.0)

    return World(
        trainer,
        FakeJudge(trainer),
        train_py(2.5),
        train_py(2.5, "crash NameError"),
        train_py(2.5, "trains nan"),
        make,
    )


@pytest.fixture(params=["fake", pytest.param("real", marks=[pytest.mark.engine, pytest.mark.slow])])
def world(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[World]:
    if request.param == "fake":
        yield _fake(tmp_path)
        return
    memory = Limits(memory=1024 * MIB, pids=256, tmp_bytes=64 * MIB)
    config = sealed(
        SandboxConfig(
            workspace_bytes=16 * MIB,
            empty_caches=False,
            trainer=memory,
            worker=memory,
            judge_memory=memory.memory,
        )
    )
    with open_bench(tmp_path, config) as bench:
        make_data(tmp_path / "data")
        judge = ContainerJudge(
            bench.sandbox,
            bench.clock,
            config=JudgeConfig(total_seconds=100, leak_fraction=0.05),  # honest models: few twins will do
            containers=config,
            home=tmp_path,
            files=bench.files,
        )
        good, crashes = REAL.format(last="pass"), REAL.format(last="undefined_name")
        breaks = REAL.format(last="prepare.report(3, float('nan'))\n    while True: pass")
        yield World(bench.trainer(), judge, good, crashes, breaks, lambda text: bench.attempt(text, 60.0))


def train(world: World, attempt: Attempt, ticks: list[float] | None = None) -> object:
    seen = ticks if ticks is not None else []
    return world.trainer.train(attempt, threading.Event(), seen.append)


def test_a_good_run_is_scored_and_leaves_a_log(world: World) -> None:
    attempt = world.make(world.good)
    outcome = world.trainer.train(attempt, threading.Event(), lambda elapsed: None)
    assert (outcome.cause, outcome.exit_code, outcome.killed_at_limit) == (None, 0, False)
    assert attempt.log_path.exists() and outcome.log_sha256
    asked: list[Score] = []

    def never(score: Score) -> bool:
        asked.append(score)
        return False

    score = world.judge.score(attempt, 1, never, threading.Event())
    assert isinstance(score, Score) and score.val_bpb > 0
    assert asked == [score.model_copy(update={"isolation": ""})] and not score.confirmed
    world.trainer.discard(attempt)


def test_a_score_that_contends_comes_back_confirmed(world: World) -> None:
    attempt = world.make(world.good)
    train(world, attempt)
    score = world.judge.score(attempt, 1, always, threading.Event())
    assert isinstance(score, Score) and score.confirmed
    names = [spec.name for spec in world.judge.specs(attempt, 1)]
    assert names and len(names) == len({*names})
    world.trainer.discard(attempt)


def always(score: Score) -> bool:
    return True


def test_a_run_that_has_ended_is_adopted_not_repeated(world: World) -> None:
    attempt = world.make(world.good)
    first, again = train(world, attempt), train(world, attempt)
    assert isinstance(first, RunOutcome)
    assert again == first.model_copy(update={"start_seconds": None})
    world.trainer.discard(attempt)


def test_a_crash_is_a_value(world: World) -> None:
    attempt = world.make(world.crashes)
    outcome = world.trainer.train(attempt, threading.Event(), lambda elapsed: None)
    assert (outcome.cause, outcome.exit_code) == (Cause.NAME, 1)
    assert "NameError" in outcome.detail
    world.trainer.discard(attempt)


def test_a_hopeless_run_is_ended_early_if_there_are_limits(world: World) -> None:
    attempt = replace(world.make(world.breaks), limits=())
    outcome = world.trainer.train(attempt, threading.Event(), lambda elapsed: None)
    assert (outcome.cause, outcome.exit_code) == (Cause.HOPELESS, 137)
    assert not outcome.killed_at_limit and outcome.curve.broken_at is not None
    assert "not a finite number" in outcome.detail
    again = world.trainer.train(attempt, threading.Event(), lambda elapsed: None)
    assert again == outcome.model_copy(update={"start_seconds": None})  # the next controller sees the same
    world.trainer.discard(attempt)


def test_a_stop_is_an_interruption_everywhere(world: World) -> None:
    stop = threading.Event()
    stop.set()
    attempt = world.make(world.good)
    with pytest.raises(Interrupted):
        world.trainer.train(attempt, stop, lambda elapsed: None)
    train(world, attempt)
    with pytest.raises(Interrupted):
        world.judge.score(attempt, 1, always, stop)
    world.trainer.discard(attempt)


def test_nothing_is_judged_without_its_workspace(world: World) -> None:
    attempt = world.make(world.good)
    train(world, attempt)
    world.trainer.discard(attempt)
    world.trainer.discard(attempt)
    with pytest.raises(InfrastructureError):
        world.judge.score(attempt, 1, always, threading.Event())
    world.trainer.discard(attempt)
