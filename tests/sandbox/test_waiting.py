"""Workers and judge that are started while T still runs: they wait, and nothing of the protection changes."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import pytest

from controller import failpoints
from controller.core.containers.config import MIB, Limits
from controller.core.containers.domains import Domain
from controller.core.containers.names import SLOT, ContainerNames
from controller.core.containers.orders import Item
from controller.core.scoring.config import AHEAD_SECONDS, JudgeConfig
from controller.core.values import Score
from controller.sandbox.engine.caches import EMPTIED
from controller.sandbox.scoring import ContainerJudge
from tests.harness.scoring import MODEL, make_data, reference_bpb, rows_of, tiny_model
from tests.support.bench import Bench, require_runtime

pytestmark = [pytest.mark.engine, pytest.mark.slow]

TRAINS = f"""
import torch
{MODEL}
def build_model():
    return Tiny()

if __name__ == "__main__":
    import pathlib, prepare, time
    torch.manual_seed(3)
    prepare.save_checkpoint(Tiny())
    while prepare.time_left() > 0:
        time.sleep(0.05)
"""
ALL = (Item.WORKER, Item.WORKER_2, Item.JUDGE)


@pytest.fixture
def bench(make_bench: Callable[..., Bench]) -> Bench:
    memory = Limits(memory=1024 * MIB, pids=256, tmp_bytes=64 * MIB)
    bench = make_bench(
        empty_caches=True, workspace_bytes=16 * MIB, trainer=memory, worker=memory, judge_memory=memory.memory
    )
    make_data(bench.home / "data")
    return bench


def judge_of(bench: Bench, config: JudgeConfig) -> ContainerJudge:
    return ContainerJudge(
        bench.sandbox,
        bench.clock,
        config=config,
        containers=bench.config,
        home=bench.home,
        files=bench.files,
    )


class Trial:
    """One attempt and its scoring, with a look at what waits while T runs."""

    def __init__(self, bench: Bench, judge: ContainerJudge, program: str, budget: float) -> None:
        self.bench, self.judge = bench, judge
        self.attempt = bench.attempt(program, budget)
        self.place = ContainerNames(bench.home, "0", 1)
        self.waited: set[Item] = set()

    def train(self) -> None:
        def tick(elapsed: float) -> None:
            self.judge.make_ready(self.attempt, 7, None, self.attempt.budget_seconds - elapsed)
            self.waited |= {item for item in ALL if self.bench.sandbox.alive(self.place.name(item))}

        self.bench.trainer().train(self.attempt, threading.Event(), tick)

    def score(self, seed: int = 7) -> Score:
        found = self.judge.score(self.attempt, seed, lambda score: True, threading.Event())
        assert isinstance(found, Score), found
        return found


@pytest.fixture
def trials(bench: Bench) -> Iterator[Callable[..., Trial]]:
    made: list[Trial] = []

    def make(ahead: float = 8.0, program: str = TRAINS, budget: float = 10.0) -> Trial:
        config = JudgeConfig(batch_tokens=128, total_seconds=100, leak_fraction=0.01, ahead_seconds=ahead)
        made.append(Trial(bench, judge_of(bench, config), program, budget))
        return made[-1]

    yield make
    for trial in made:
        trial.judge.dismiss()
        bench.trainer().discard(trial.attempt)
    assert bench.sandbox.leftovers({SLOT}) == ([], []), "but for what empties the caches"


def test_all_of_them_wait_for_the_end_of_the_training_and_are_those_that_score(
    trials: Callable[..., Trial],
) -> None:
    trial = trials()
    trial.train()
    assert trial.waited == set(ALL)
    starts = threading.Event()
    failpoints.install(lambda place: starts.set() if place.startswith("container-started-worker") else None)
    try:
        score = trial.score()
    finally:
        failpoints.install(None)
    assert score.confirmed and not starts.is_set()
    assert len(score.work) == 2
    assert score.isolation == EMPTIED


def test_a_scoring_with_other_arguments_starts_its_own(trials: Callable[..., Trial]) -> None:
    trial = trials()
    trial.train()
    assert trial.waited == set(ALL)
    assert trial.score(seed=8).confirmed


def test_one_that_died_while_it_waited_is_replaced(trials: Callable[..., Trial]) -> None:
    trial = trials()
    trial.train()
    trial.bench.sandbox.kill(trial.place.name(Item.WORKER_2))
    assert trial.score().confirmed


def test_a_training_that_ends_early_is_scored_without_anybody_waiting(trials: Callable[..., Trial]) -> None:
    trial = trials(ahead=2.0, program=TRAINS.replace("while prepare.time_left() > 0", "if False"))
    trial.train()
    assert trial.waited == set()
    assert trial.score().confirmed


def test_what_waits_for_nothing_is_removed(trials: Callable[..., Trial]) -> None:
    crashes = (
        TRAINS.replace("while prepare.time_left() > 0", "while prepare.time_left() > 4")
        + "    raise ValueError"
    )
    trial = trials(program=crashes)
    trial.train()
    assert trial.waited == set(ALL)
    trial.judge.dismiss()
    assert trial.bench.sandbox.leftovers()[0] == [
        trial.place.name(Domain.TRAINER),
        trial.place.name(Domain.HOLDER),
    ]


def test_only_beside_a_gpu_by_default() -> None:
    assert JudgeConfig().ahead(gpu=True) == AHEAD_SECONDS
    assert JudgeConfig().ahead(gpu=False) == 0
    assert JudgeConfig(ahead_seconds=3).ahead(gpu=False) == 3


def test_beside_a_gpu_they_wait_by_default_and_answer_in_float16(make_bench: Callable[..., Bench]) -> None:
    require_runtime("nvidia")
    bench = make_bench(gpu=("0",), gpu_access="runtime", workspace_bytes=16 * MIB)
    make_data(bench.home / "data")
    config = JudgeConfig(batch_tokens=128, leak_fraction=0.01, total_seconds=100)
    judge = judge_of(bench, config)
    until_they_wait = TRAINS.replace("prepare.time_left() > 0", "prepare.time_left() > 5")
    trial = Trial(bench, judge, until_they_wait, AHEAD_SECONDS)
    try:
        trial.train()
        assert trial.waited == set(ALL)
        found = trial.score().val_bpb
    finally:
        bench.trainer().discard(trial.attempt)
    exact = reference_bpb(tiny_model(), bench.home / "data", rows_of(bench.home / "data").scored)
    assert found == pytest.approx(exact, abs=1e-5)
    assert found != pytest.approx(exact, abs=1e-12), "float32 would have come closer"
