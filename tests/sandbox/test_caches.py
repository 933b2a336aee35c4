"""Emptying the kernel's caches on the real engine: when a container is made for it, and failures."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace

import pytest

from controller import failpoints
from controller.core.containers import service_builders
from controller.core.containers.config import MIB, Limits
from controller.core.containers.domains import Domain
from controller.core.containers.names import ContainerNames
from controller.core.containers.spec import ContainerSpec
from controller.core.errors import GloveboxError, InfrastructureError
from controller.core.scoring.config import JudgeConfig
from controller.core.values import Score
from controller.sandbox.engine.caches import EMPTIED, SHARED
from controller.sandbox.engine.docker_sandbox import DockerSandbox
from controller.sandbox.scoring import ContainerJudge
from tests.harness.scoring import make_data
from tests.sandbox.cis import TRAINS
from tests.support.bench import Bench, engine

pytestmark = pytest.mark.engine


@pytest.fixture
def started() -> Iterator[list[str]]:
    """The domains of the containers that are started, in order."""
    heard: list[str] = []

    def hear(place: str) -> None:
        if place.startswith("container-started-"):
            heard.append(place.removeprefix("container-started-"))

    failpoints.install(hear)
    yield heard
    failpoints.install(None)


@pytest.fixture
def bench(make_bench: Callable[..., Bench]) -> Bench:
    return make_bench(empty_caches=True)


def spec(bench: Bench, domain: Domain, *argv: str, number: int = 1) -> ContainerSpec:
    """A container that is taken for one of this domain."""
    place = ContainerNames(bench.home, "7", number)
    probe = service_builders.gpu_probe(bench.config, place, "")
    command = ("exec", "--limit", "60", "--", *(argv or ("true",)))
    return replace(
        probe, domain=domain, name=place.name(domain), labels=place.labels(domain), command=command
    )


def run(bench: Bench, domain: Domain) -> None:
    made = spec(bench, domain)
    bench.sandbox.start(made)
    bench.sandbox.wait(made.name, deadline=float("inf"), stop=threading.Event())
    bench.sandbox.remove(containers=[made.name])


def test_a_container_empties_them_before_an_experiments_code_and_is_gone(
    bench: Bench, started: list[str]
) -> None:
    assert bench.sandbox.describe()["isolation"] == EMPTIED
    started.clear()
    trainer = spec(bench, Domain.TRAINER, "sleep", "60")
    bench.sandbox.start(trainer)
    run(bench, Domain.REHEARSAL)  # beside it
    bench.sandbox.remove(containers=[trainer.name])
    judge = spec(bench, Domain.JUDGE, "sleep", "60")
    bench.sandbox.start(judge)
    for domain in (Domain.WORKER, Domain.WORKER):
        run(bench, domain)
    assert " ".join(started) == "caches trainer rehearsal judge worker caches worker"
    bench.sandbox.remove(containers=[judge.name])  # nobody is left who knows what the workers knew
    run(bench, Domain.TRAINER)
    assert started[-2:] == ["caches", "trainer"] and started.count("caches") == 3
    assert bench.sandbox.leftovers() == ([], [])


def test_not_while_a_worker_is_alive(bench: Bench, started: list[str]) -> None:
    worker = spec(bench, Domain.WORKER, "sleep", "60")
    bench.sandbox.start(worker)
    started.clear()
    for domain in (Domain.WORKER, Domain.REHEARSAL, Domain.TRAINER):
        with pytest.raises(InfrastructureError, match="while a worker is alive"):
            bench.sandbox.start(spec(bench, domain, number=2))
    assert started == []
    bench.sandbox.remove(containers=[worker.name])
    run(bench, Domain.TRAINER)
    assert started == ["caches", "trainer"]


PRINTS = "import signal, time; signal.sigwait({signal.SIGUSR1}); print('told', flush=True); time.sleep(60)"


def waiting(bench: Bench, number: int) -> ContainerSpec:
    """A worker that waits for the word."""
    command = ("exec", "--limit", "60", "--waits", "--", "python", "-c", PRINTS)
    made = replace(spec(bench, Domain.WORKER, number=number), command=command, waits=True)
    bench.sandbox.start(made)
    return made


def tell(bench: Bench, made: ContainerSpec) -> None:
    """Insist until it has heard."""
    while b"told" not in bench.sandbox.output(made.name, 100):
        assert bench.sandbox.alive(made.name)
        bench.sandbox.begin(made.name)


def test_they_are_emptied_when_a_worker_is_given_the_word_and_not_when_it_is_started(
    bench: Bench, started: list[str]
) -> None:
    run(bench, Domain.TRAINER)
    first, second = waiting(bench, 1), waiting(bench, 2)
    tell(bench, first)
    assert started == ["caches", "trainer", "worker", "worker"]
    with pytest.raises(InfrastructureError, match="another one is alive"):
        bench.sandbox.begin(second.name)
    assert b"told" not in bench.sandbox.output(second.name, 100)
    bench.sandbox.remove(containers=[first.name])
    tell(bench, second)
    assert started[4:] == ["caches"]
    bench.sandbox.remove(containers=[second.name])
    run(bench, Domain.TRAINER)
    assert started[5:] == ["caches", "trainer"]


def test_a_rehearsal_may_start_beside_a_worker_that_waits_but_not_beside_one_that_works(
    bench: Bench, started: list[str]
) -> None:
    made = waiting(bench, 1)
    run(bench, Domain.REHEARSAL)
    tell(bench, made)
    with pytest.raises(InfrastructureError, match="while a worker is alive"):
        run(bench, Domain.REHEARSAL)


def test_only_who_started_it_gives_the_word(bench: Bench) -> None:
    """Nobody else knows whose traces the caches hold."""
    made = waiting(bench, 1)
    with (
        closing(DockerSandbox(bench.config, bench.home, bench.clock)) as other,
        pytest.raises(InfrastructureError, match="not started by us"),
    ):
        other.begin(made.name)
    tell(bench, made)


def test_a_failure_after_it_worked_starts_nothing(bench: Bench, started: list[str]) -> None:
    tag = f"glovebox-test-caches-{os.getpid()}"
    with closing(engine()) as client:
        client.tag(bench.config.image, tag, "latest")
        config = bench.config.model_copy(update={"image": f"{tag}:latest"})
        try:
            with closing(DockerSandbox(config, bench.home, bench.clock)) as sandbox:
                assert sandbox.describe()["isolation"] == EMPTIED
                client.remove_image(f"{tag}:latest")
                started.clear()
                with pytest.raises(GloveboxError):
                    sandbox.start(spec(bench, Domain.TRAINER))  # whose image is there
                assert started == []
        finally:
            if client.images(tag):
                client.remove_image(f"{tag}:latest")


def test_turned_off_nothing_is_made_for_it(make_bench: Callable[..., Bench], started: list[str]) -> None:
    bench = make_bench(empty_caches=False)
    for domain in (Domain.TRAINER, Domain.WORKER, Domain.WORKER):
        run(bench, domain)
    assert started == ["trainer", "worker", "worker"]
    described = bench.sandbox.describe()
    assert (described["isolation"], described["obstacle"]) == (SHARED, "sandbox.empty_caches is off")


@pytest.mark.slow
def test_an_experiment_and_its_score(make_bench: Callable[..., Bench]) -> None:
    """The first worker's container is gone before the second one's start, and the score tells of it."""
    memory = Limits(memory=1024 * MIB, pids=256, tmp_bytes=64 * MIB)
    bench = make_bench(empty_caches=True, trainer=memory, worker=memory, judge_memory=memory.memory)
    make_data(bench.home / "data")
    attempt, stop = bench.attempt(TRAINS, budget=60.0), threading.Event()
    outcome = bench.trainer().train(attempt, stop, lambda elapsed: None)
    assert outcome.cause is None, bench.log_text
    judge = ContainerJudge(
        bench.sandbox,
        bench.clock,
        config=JudgeConfig(leak_fraction=0.05, total_seconds=100),
        containers=bench.config,
        home=bench.home,
        files=bench.files,
    )
    heard: list[str] = []
    failpoints.install(heard.append)
    try:
        score = judge.score(attempt, 1, lambda score: True, stop)
    finally:
        failpoints.install(None)
    assert isinstance(score, Score) and score.confirmed, score
    assert score.isolation == EMPTIED
    confirming = heard[heard.index("first-worker-done") :]
    made = [place for place in confirming if place.startswith(("container-removed", "container-started"))]
    assert made[:4] == [
        "container-removed",
        "container-started-caches",
        "container-removed",
        "container-started-worker",
    ]
    bench.trainer().discard(attempt)


def test_somebody_else_than_root_is_refused_and_told_why(bench: Bench) -> None:
    """What a rootless engine comes to: the kernel lets nobody else write there."""
    made = replace(
        service_builders.caches(bench.config, ContainerNames(bench.home, "slot")), user="10001:10001"
    )
    assert bench.sandbox.start(made)
    end = bench.sandbox.wait(made.name, deadline=float("inf"), stop=threading.Event())
    said = bench.sandbox.output(made.name, 1000)
    assert end.exit_code == 1 and b"Permission denied" in said
