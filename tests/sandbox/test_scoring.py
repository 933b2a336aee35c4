"""W and J on real containers: an honest model gets its score, a broken one its cause."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from controller.core.containers.config import MIB, Limits, SandboxConfig
from controller.core.containers.domains import Domain
from controller.core.containers.names import ContainerNames
from controller.core.errors import InfrastructureError, Interrupted
from controller.core.scoring.allowance import excess
from controller.core.scoring.config import JudgeConfig
from controller.core.values import Cause, Refusal, Score, Work
from controller.ports import Attempt
from controller.sandbox.inputs import sealed
from controller.sandbox.scoring import ContainerJudge
from tests.harness.scoring import (
    IMPORTABLE,
    MODEL,
    REMEMBERING,
    make_data,
    reference_bpb,
    rows_of,
    tiny_model,
)
from tests.support.bench import Bench, open_bench

pytestmark = [pytest.mark.engine, pytest.mark.slow]

TRAINS = f"""
import torch
{MODEL}
def build_model():
    return Tiny()

if __name__ == "__main__":
    import prepare
    torch.manual_seed(3)
    prepare.save_checkpoint(Tiny())
"""


@dataclass
class Trained:
    """An attempt whose T has ended and left a checkpoint; variants of its train.py can be scored."""

    bench: Bench
    attempt: Attempt

    def judge(self, **settings: float) -> ContainerJudge:
        return ContainerJudge(
            self.bench.sandbox,
            self.bench.clock,
            config=JudgeConfig.model_validate({"batch_tokens": 128, "total_seconds": 100, **settings}),
            containers=self.bench.config,
            home=self.bench.home,
            files=self.bench.files,
        )

    def score(self, train_py: str, contends: bool = False, **settings: float) -> Score | Refusal:
        path = self.bench.home / "variant.py"
        path.write_text(train_py)
        judge = self.judge(**settings)
        return judge.score(self.with_train(path), 11, lambda score: contends, threading.Event())

    def with_train(self, path: Path) -> Attempt:
        return replace(self.attempt, train_path=path)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trained]:
    home = tmp_path_factory.mktemp("home")
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
    with open_bench(home, config) as bench:
        make_data(home / "data")
        attempt = bench.attempt(TRAINS, budget=60.0)
        outcome = bench.trainer().train(attempt, threading.Event(), lambda elapsed: None)
        assert outcome.cause is None, bench.log_text
        yield Trained(bench, attempt)


def test_an_honest_model_gets_its_score_and_nothing_is_left(trained: Trained) -> None:
    result = trained.score(IMPORTABLE)
    assert isinstance(result, Score)
    data = trained.bench.home / "data"
    assert result.val_bpb == pytest.approx(reference_bpb(tiny_model(), data, rows_of(data).scored))
    assert result.bytes > result.tokens > 1000
    place = ContainerNames(trained.bench.home, "0")
    containers, volumes = trained.bench.sandbox.leftovers()
    assert sorted(containers) == [place.name(Domain.HOLDER), place.name(Domain.TRAINER)]
    assert volumes == [place.name("workspace")]


def test_a_score_that_contends_is_confirmed_by_a_second_worker(trained: Trained) -> None:
    unconfirmed = trained.score(IMPORTABLE)
    confirmed = trained.score(IMPORTABLE, contends=True, leak_fraction=0.01)
    assert isinstance(unconfirmed, Score) and isinstance(confirmed, Score)
    assert (unconfirmed.confirmed, confirmed.confirmed) == (False, True)
    assert confirmed.val_bpb == pytest.approx(unconfirmed.val_bpb)
    assert set(confirmed.probes) - set(unconfirmed.probes) == {"confirmation"}
    assert trained.bench.sandbox.leftovers()[1] == [ContainerNames(trained.bench.home, "0").name("workspace")]


def test_a_leak_that_a_worker_covers_is_refused_if_its_score_contends(trained: Trained) -> None:
    result = trained.score(REMEMBERING, contends=True, leak_fraction=0.01)
    assert isinstance(result, Refusal)
    assert result.cause in (Cause.NON_CAUSAL, Cause.STATEFUL)
    assert isinstance(trained.score(REMEMBERING), Score)


def forward(statement: str) -> str:
    return IMPORTABLE.replace(
        "        x = self.embed(idx)\n", f"        {statement}\n        x = self.embed(idx)\n"
    )


@pytest.mark.parametrize(
    ("train_py", "cause", "detail"),
    [
        ("\nraise RuntimeError('no build')", Cause.LOAD, "built the model: RuntimeError at line 2"),
        (IMPORTABLE.replace("Linear(48, 24)", "Linear(48, 24, bias=False)"), Cause.LOAD, "does not fit"),
        (forward("raise RuntimeError('no forward')"), Cause.FORWARD, "pass: RuntimeError at line 14"),
        (forward("import os; os._exit(0)"), Cause.FORWARD, "ended by itself"),
        (
            forward("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)"),
            Cause.FORWARD,
            "ended by itself",
        ),
        (forward("blob = bytearray(2 << 30); blob[::4096] = bytes(len(blob[::4096]))"), Cause.OOM, ""),
        (forward("return torch.zeros(2, 3, 4)"), Cause.WRONG_SHAPE, "asked for, [4, 32, 261]"),
        (forward("return torch.full((*idx.shape, 261), float('nan'))"), Cause.NOT_FINITE, "NaN"),
    ],
)
def test_a_broken_worker_gets_its_cause(trained: Trained, train_py: str, cause: Cause, detail: str) -> None:
    result = trained.score(train_py)
    assert isinstance(result, Refusal)
    assert (result.cause, detail in result.detail) == (cause, True), result
    [work] = result.work
    assert 0 < work.wall_seconds < 60 and work.allowed_wall_seconds is None


#: What its one CPU second and the wall seconds of a start fit into, with nothing to spare for more.
REFERENCE = (Work(wall_seconds=20.0, cpu_seconds=4.0), Work(wall_seconds=20.0, cpu_seconds=4.0))
#: One that sleeps may be ended before it has started, for the same cause.
SHORT = (Work(wall_seconds=3.0, cpu_seconds=4.0), Work(wall_seconds=3.0, cpu_seconds=4.0))


def test_what_the_workers_used_is_counted(trained: Trained) -> None:
    path = trained.bench.home / "variant.py"
    path.write_text(IMPORTABLE)
    judge = trained.judge(leak_fraction=0.01, work_share=0.001)
    attempt, cpus = trained.with_train(path), os.cpu_count() or 1
    score = judge.score(attempt, 11, lambda score: True, threading.Event(), reference=REFERENCE)
    assert isinstance(score, Score) and score.confirmed
    assert len(score.work) == 2
    for work in score.work:
        assert work.cpu_seconds is not None and 0.5 < work.cpu_seconds < 7.0
        assert work.allowed_cpu_seconds == pytest.approx(7.0 + 0.06 * cpus)
        assert work.allowed_wall_seconds == pytest.approx(45.06)
        assert 0.5 < work.wall_seconds < 45.06


@pytest.mark.parametrize(
    ("statement", "reference", "cause", "most"),
    [
        ("while True: torch.ones(200, 200) @ torch.ones(200, 200)", REFERENCE, Cause.OVER_BUDGET, 75),
        ("import time; time.sleep(1000)", SHORT, Cause.WORKER_TIMEOUT, 41),
    ],
    ids=["computes", "sleeps"],
)
def test_a_worker_that_uses_too_much_is_ended(
    trained: Trained, statement: str, reference: tuple[Work, ...], cause: Cause, most: float
) -> None:
    path = trained.bench.home / "variant.py"
    path.write_text(forward(statement))
    judge, started = trained.judge(work_share=0.001), time.monotonic()
    attempt = trained.with_train(path)
    refusal = judge.score(attempt, 11, lambda score: True, threading.Event(), reference=reference)
    assert isinstance(refusal, Refusal)
    assert refusal.cause is cause, refusal
    assert time.monotonic() - started < most
    [work] = refusal.work
    assert excess(work) == refusal.detail


SECOND = "if (idx[:, -1:] == idx[:1, -1:]).sum() > 1"
"""The second worker is sent rows that end alike."""


@pytest.mark.parametrize(
    ("statement", "cause", "symptom"),
    [
        ("import os; os._exit(0)", Cause.UNCONFIRMED, Cause.FORWARD),
        ("raise ValueError", Cause.UNCONFIRMED, Cause.FORWARD),
        ("import time; time.sleep(1000)", Cause.UNCONFIRMED, Cause.WORKER_TIMEOUT),
        ("torch.frombuffer(bytearray(2 << 30), dtype=torch.uint8).fill_(1)", Cause.OOM, None),
    ],
)
def test_a_second_worker_that_fails_is_no_accident(
    trained: Trained, statement: str, cause: Cause, symptom: Cause | None
) -> None:
    result = trained.score(
        forward(f"{SECOND}: {statement}"), contends=True, leak_fraction=0.01, batch_seconds=6
    )
    assert isinstance(result, Refusal)
    assert (result.cause, result.symptom, result.confirming) == (cause, symptom, True), result
    assert len(result.work) == 2


def test_what_a_worker_prints_stays_with_a_person(trained: Trained) -> None:
    log = trained.attempt.log_path.with_name("worker.log")
    before = trained.attempt.log_path.read_bytes()
    result = trained.score(forward("print('canary', idx[0]); raise ValueError(f'canary {idx[1]}')"))
    assert isinstance(result, Refusal) and "canary" not in result.model_dump_json()
    assert trained.attempt.log_path.read_bytes() == before
    text = log.read_text()
    assert text.startswith("Output of code that had seen validation text.") and text.count("canary") >= 2
    assert log.stat().st_mode & 0o777 == 0o600
    assert isinstance(trained.score(IMPORTABLE), Score)
    assert not log.exists()  # it is of the last scoring


def test_a_slow_worker_is_ended(trained: Trained) -> None:
    started = time.monotonic()
    result = trained.score(forward("import time; time.sleep(1000)"), first_batch_seconds=8)
    assert isinstance(result, Refusal)
    assert result.cause is Cause.WORKER_TIMEOUT
    assert time.monotonic() - started < 40


def test_an_empty_workspace_has_no_checkpoint(trained: Trained) -> None:
    bench = trained.bench
    attempt = bench.attempt("print('nothing saved')", budget=20.0, experiment="1")
    bench.trainer().train(attempt, threading.Event(), lambda elapsed: None)
    try:
        there = replace(attempt, train_path=trained.attempt.train_path)
        result = trained.judge().score(there, 1, lambda score: True, threading.Event())
        assert isinstance(result, Refusal)
        assert result.cause is Cause.NO_CHECKPOINT
        bench.sandbox.kill(ContainerNames(bench.home, "1").name(Domain.HOLDER))
        with pytest.raises(InfrastructureError, match="workspace"):
            trained.judge().score(attempt, 1, lambda score: True, threading.Event())
    finally:
        bench.trainer().discard(attempt)


def test_scoring_stops_when_asked_and_cleans_up(trained: Trained) -> None:
    stop = threading.Event()
    threading.Timer(3.0, stop.set).start()
    path = trained.bench.home / "variant.py"
    path.write_text(forward("import time; time.sleep(1000)"))
    started = time.monotonic()
    with pytest.raises(Interrupted):
        trained.judge().score(trained.with_train(path), 1, lambda score: True, stop)
    assert time.monotonic() - started < 12
    containers, _ = trained.bench.sandbox.leftovers()
    assert not [name for name in containers if name.endswith(("worker", "judge"))]


def test_a_judge_that_fails_is_not_the_experiments_fault(trained: Trained) -> None:
    (manifest := trained.bench.home / "data" / "judge" / "manifest.json").rename(
        manifest.with_suffix(".away")
    )
    try:
        with pytest.raises(InfrastructureError, match="judge"):
            trained.score(IMPORTABLE)
    finally:
        manifest.with_suffix(".away").rename(manifest)
