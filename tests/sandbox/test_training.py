"""T against programs that do what they should not, on the real engine."""

from __future__ import annotations

import os
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from controller.core.containers import volumes
from controller.core.containers.domains import Domain
from controller.core.containers.names import ContainerNames
from controller.core.errors import InfrastructureError, Interrupted
from controller.core.values import Cause
from controller.ports import Attempt
from controller.sandbox.training import ContainerTrainer
from tests.support.bench import Bench

pytestmark = pytest.mark.engine

KILL_SLACK = 1.5
"""Seconds a life may exceed its limit here, on a loaded machine; tests/bench measures the real figure."""


def host_processes_with(marker: str) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                command = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if marker.encode() in command and int(entry.name) != os.getpid():
                found.append(int(entry.name))
    return found


IGNORES = {
    "the deadline": "import time\nwhile True: time.sleep(3600)",
    "SIGTERM": """
        import signal, time
        for number in set(signal.Signals) - {signal.SIGKILL, signal.SIGSTOP}:
            signal.signal(number, signal.SIG_IGN)
        while True: time.sleep(3600)
    """,
    "the clock": """
        import time
        sleep, time.time, time.monotonic = time.sleep, lambda: 0.0, lambda: 0.0
        while True: sleep(1)
    """,
    "its CPU": "while True: pass",
}


@pytest.mark.parametrize("program", IGNORES.values(), ids=IGNORES)
def test_a_run_that_ignores_its_limit_dies_at_it(bench: Bench, program: str) -> None:
    outcome = bench.run(program, budget=2.0)
    assert outcome.killed_at_limit
    assert outcome.exit_code == 137
    assert outcome.cause is None  # whether it left a checkpoint is for the worker to find out
    assert 2.0 <= outcome.seconds < 2.0 + KILL_SLACK
    assert outcome.kill_sent_seconds is not None and outcome.start_seconds is not None
    assert 2.0 <= outcome.kill_sent_seconds <= outcome.seconds + 0.05
    assert 0 < outcome.start_seconds < 30


def test_daemons_of_a_run_die_with_it(bench: Bench) -> None:
    marker = f"97531.{os.getpid()}"
    outcome = bench.run(
        f"""
        import os, time
        for _ in range(3):
            if os.fork() == 0:
                os.setsid()
                if os.fork() == 0:
                    os.execvp("sleep", ["sleep", "{marker}"])
                os._exit(0)
        print("daemons started", flush=True)
        time.sleep(3600)
        """,
        budget=2.0,
    )
    assert outcome.killed_at_limit
    assert "daemons started" in bench.log_text
    assert host_processes_with(marker) == []


def test_daemons_die_when_the_run_ends_early(bench: Bench) -> None:
    marker = f"97532.{os.getpid()}"
    outcome = bench.run(
        f"""
        import os, time
        if os.fork() == 0:
            os.setsid()
            os.execvp("sleep", ["sleep", "{marker}"])
        """
    )
    assert outcome.exit_code == 0
    assert host_processes_with(marker) == []


def test_pid_1_ends_a_container_that_nobody_kills(bench: Bench) -> None:
    attempt = bench.attempt("import time\nwhile True: time.sleep(3600)", budget=1.0)
    place = ContainerNames(bench.home, "0")
    bench.start(attempt)
    end = bench.sandbox.wait(
        place.name(Domain.TRAINER), deadline=bench.clock.monotonic() + 30, stop=threading.Event()
    )
    limit = attempt.budget_seconds + bench.config.kill_grace_seconds
    assert (end.exit_code, end.killed) == (124, False)
    # On a busy machine the engine notes the start a while after PID 1 began to count.
    assert limit - KILL_SLACK <= end.seconds < limit + KILL_SLACK


def test_what_an_earlier_attempt_left_goes_when_the_next_begins(bench: Bench) -> None:
    first, other = bench.attempt("import time\ntime.sleep(60)", 60.0), ContainerNames(bench.home, "01")
    bench.start(first)
    bench.sandbox.create_volume(volumes.workspace(bench.config, other, 60.0))
    second = replace(bench.attempt("pass", 60.0), number=2)
    bench.trainer().train(second, bench.stop, lambda elapsed: None)
    bench.trainer().discard(second)
    assert bench.sandbox.leftovers() == ([], [other.name("workspace")])


def test_a_good_run(bench: Bench) -> None:
    elapsed: list[float] = []
    program = """
        import sys, time
        sys.stdout.write("to stdout\\n")  # in one piece, or the other stream's line may come in between
        sys.stderr.write("to stderr\\n")
        time.sleep(2.5)
        print("---")
        print("val_bpb:          1.2345")
        print("num_steps:        17")
    """
    attempt, trainer = bench.attempt(program, budget=30.0), bench.trainer()
    try:
        outcome = trainer.train(attempt, bench.stop, elapsed.append)
    finally:
        trainer.discard(attempt)
    assert (outcome.exit_code, outcome.cause, outcome.killed_at_limit) == (0, None, False)
    assert outcome.claim.val_bpb == 1.2345
    assert outcome.claim.num_steps == 17
    assert 2.5 < outcome.seconds < 15
    assert len(elapsed) >= 2
    assert elapsed == sorted(elapsed)
    # Two pipes: which of two lines the engine reads first is not settled.
    assert set(bench.log_text.split("\n")[:2]) == {"to stdout", "to stderr"}
    assert outcome.log_bytes == len(bench.log_text.encode())
    assert bench.sandbox.leftovers() == ([], [])


@pytest.mark.parametrize(
    ("program", "cause"),
    [
        ("import nothing_like_that", Cause.IMPORT),
        ("def broken(:\n    pass", Cause.SYNTAX),
        ("print(undefined_name)", Cause.NAME),
        ("raise SystemExit(3)", Cause.EXIT),
        ("import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)", Cause.EXIT),
        ("blob = bytearray(1 << 30)\nfor i in range(0, len(blob), 4096): blob[i] = 1", Cause.OOM),
    ],
)
def test_a_crash_gets_its_cause(bench: Bench, program: str, cause: Cause) -> None:
    outcome = bench.run(program)
    assert outcome.cause == cause
    assert outcome.detail or cause is Cause.EXIT
    assert not outcome.killed_at_limit


@pytest.mark.slow
def test_run_log_is_capped_and_exact_in_its_count(bench: Bench) -> None:
    outcome = bench.run(
        """
        import sys
        line = b"x" * 99 + b"\\n"
        for _ in range(200):
            sys.stdout.buffer.write(line * 10_000)
        print("the very last line")
        """,
        budget=120.0,
    )
    assert outcome.exit_code == 0
    assert outcome.log_bytes == 200_000_019
    size = (bench.home / "runs" / "0" / "run.log").stat().st_size
    assert size < (2 << 20) + 100
    assert bench.log_text.endswith("x\nthe very last line\n")
    assert f"[... {200_000_019 - (2 << 20)} bytes left out ...]" in bench.log_text


def test_run_log_can_be_read_while_the_run_goes_on(bench: Bench) -> None:
    attempt, trainer = (
        bench.attempt("import time\nprint('early')\ntime.sleep(3600)", budget=20.0),
        bench.trainer(),
    )
    worker = threading.Thread(target=_train_until_stopped, args=(trainer, attempt, bench.stop))
    worker.start()
    try:
        deadline = time.monotonic() + 15
        while not (attempt.log_path.exists() and attempt.log_path.read_text() == "early\n"):
            assert time.monotonic() < deadline
            time.sleep(0.05)
    finally:
        bench.stop.set()
        worker.join()
        trainer.discard(attempt)


def _train_until_stopped(trainer: ContainerTrainer, attempt: Attempt, stop: threading.Event) -> None:
    with pytest.raises(Interrupted):
        trainer.train(attempt, stop, lambda elapsed: None)


def test_stop_is_noticed_at_once_and_the_run_can_be_adopted(bench: Bench) -> None:
    program = """
        import time
        print("first byte")
        time.sleep(4)
        print("last byte")
    """
    attempt, trainer = bench.attempt(program, budget=20.0), bench.trainer()
    stopped_at: list[float] = []

    def stop_soon(elapsed: float) -> None:
        stopped_at.append(time.monotonic())
        bench.stop.set()

    with pytest.raises(Interrupted):
        trainer.train(attempt, bench.stop, stop_soon)
    assert time.monotonic() - stopped_at[0] < 0.5

    ticks: list[float] = []
    outcome = bench.trainer().train(attempt, threading.Event(), ticks.append)
    assert outcome.exit_code == 0
    assert 4.0 < outcome.seconds < 10
    assert ticks[0] > 1.5  # counted from the container's start, not from the adoption
    assert attempt.log_path.read_text() == "first byte\nlast byte\n"

    again = bench.trainer().train(attempt, threading.Event(), ticks.append)  # a run that has ended
    assert again == outcome.model_copy(update={"start_seconds": None})
    trainer.discard(attempt)
    trainer.discard(attempt)
    assert bench.sandbox.leftovers() == ([], [])


def test_an_adopted_run_is_killed_at_its_own_deadline(bench: Bench) -> None:
    attempt, trainer = bench.attempt("while True: pass", budget=3.0), bench.trainer()
    with pytest.raises(Interrupted):
        trainer.train(attempt, bench.stop, lambda elapsed: bench.stop.set())
    outcome = bench.trainer().train(attempt, threading.Event(), lambda elapsed: None)
    trainer.discard(attempt)
    assert outcome.killed_at_limit
    assert 3.0 <= outcome.seconds < 3.0 + KILL_SLACK


def test_a_run_far_beyond_its_limits_is_ended_early(bench: Bench) -> None:
    program = """
        import time
        for second in range(60):
            print(f"report: step={second} seconds={second}.0 loss=9.5")
        time.sleep(3600)
    """
    attempt, trainer = bench.attempt(program, budget=64.0), bench.trainer()
    outcome = trainer.train(replace(attempt, limits=(None, *[5.0] * 63)), bench.stop, lambda elapsed: None)
    trainer.discard(attempt)
    assert (outcome.cause, outcome.exit_code, outcome.killed_at_limit) == (Cause.HOPELESS, 137, False)
    assert outcome.seconds < 20
    assert outcome.curve.losses == (9.5,) * 60 and outcome.curve.step == 59
    assert attempt.log_path.read_text().count("report:") == 60


def test_without_limits_no_run_is_ended_early(bench: Bench) -> None:
    attempt, trainer = (
        bench.attempt("print('report: step=1 seconds=1.0 loss=nan')", budget=20.0),
        bench.trainer(),
    )
    outcome = trainer.train(attempt, bench.stop, lambda elapsed: None)
    trainer.discard(attempt)
    assert (outcome.cause, outcome.exit_code, outcome.curve.broken_at) == (None, 0, 1.0)


def test_a_lost_workspace_is_not_blamed_on_the_run(bench: Bench) -> None:
    attempt, trainer = bench.attempt("import time\ntime.sleep(2)", budget=20.0), bench.trainer()
    holder = ContainerNames(bench.home, "0").name(Domain.HOLDER)
    try:
        with pytest.raises(InfrastructureError, match="workspace"):
            trainer.train(attempt, bench.stop, lambda elapsed: bench.sandbox.kill(holder))
        with pytest.raises(InfrastructureError, match="workspace"):
            trainer.train(attempt, bench.stop, lambda elapsed: None)
    finally:
        trainer.discard(attempt)


def test_a_container_that_vanishes_is_an_infrastructure_failure(bench: Bench) -> None:
    attempt, trainer = bench.attempt("import time\ntime.sleep(10)", budget=20.0), bench.trainer()
    name = trainer.spec(attempt).name
    try:
        with pytest.raises(InfrastructureError):
            trainer.train(attempt, bench.stop, lambda elapsed: bench.sandbox.remove(containers=[name]))
    finally:
        trainer.discard(attempt)


def test_nothing_survives_into_the_next_experiment(bench: Bench) -> None:
    leave = "for folder in ('/work', '/tmp', '/dev/shm'): open(folder + '/left', 'w').write('x')"
    find = "import os\nprint([f for f in ('/work', '/tmp', '/dev/shm') if os.path.exists(f + '/left')])"
    assert bench.run(leave).exit_code == 0
    bench.run(find)
    assert bench.log_text == "[]\n"


def test_an_occupied_attempt_is_started_over(bench: Bench) -> None:
    """A controller that died between creating and starting leaves names taken and a stale workspace."""
    attempt, trainer = bench.attempt("print('ran')", budget=20.0), bench.trainer()
    bench.start(attempt)
    bench.sandbox.remove(containers=[trainer.spec(attempt).name])
    outcome = trainer.train(attempt, bench.stop, lambda elapsed: None)
    trainer.discard(attempt)
    assert outcome.exit_code == 0
    assert attempt.log_path.read_text() == "ran\n"
