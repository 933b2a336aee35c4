"""T against programs that do what they should not, on the real engine."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from controller.core import volumes
from controller.core.domains import Domain
from controller.core.model import Cause, InfrastructureError, Interrupted
from controller.core.place import Place
from controller.ports import Attempt
from controller.trainer import ContainerTrainer, TrainerConfig
from tests.sandbox.conftest import Bench

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
    place = Place(bench.home, "0")
    bench.start(attempt)
    end = bench.sandbox.wait(
        place.name(Domain.TRAINER), deadline=bench.clock.monotonic() + 30, stop=threading.Event()
    )
    limit = attempt.budget_seconds + bench.config.kill_grace_seconds
    assert (end.exit_code, end.killed) == (124, False)
    # On a busy machine the engine notes the start a while after PID 1 began to count.
    assert limit - KILL_SLACK <= end.seconds < limit + KILL_SLACK


def test_what_an_earlier_attempt_left_goes_when_the_next_begins(bench: Bench) -> None:
    first, other = bench.attempt("import time\ntime.sleep(60)", 60.0), Place(bench.home, "01")
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
        print("to stdout")
        print("to stderr", file=sys.stderr)
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


def test_a_memory_bomb_is_seen_by_the_engine(bench: Bench) -> None:
    outcome = bench.run("blob = []\nwhile True: blob.append(bytearray(1 << 24))")
    assert outcome.oom_killed
    assert outcome.cause is Cause.OOM


def test_tmpfs_counts_as_memory(make_bench: Callable[..., Bench]) -> None:
    bench = make_bench(workspace_bytes=1 << 30)
    outcome = bench.run(
        """
        for number in range(64):
            with open(f"fill-{number}", "wb") as file:
                file.write(bytes(16 << 20))
        """
    )
    assert outcome.cause is Cause.OOM


def test_a_fork_bomb_is_contained(bench: Bench) -> None:
    outcome = bench.run(
        """
        import os, time
        count = 0
        try:
            while True:
                if os.fork() == 0:
                    time.sleep(3600)
                count += 1
        except OSError as error:
            print("forks", count, error.errno, flush=True)
        os._exit(0)
        """
    )
    assert outcome.exit_code == 0
    assert "forks" in bench.log_text
    assert int(bench.log_text.split()[1]) < 64


WRITES = """
    import os
    def attempt(what, action):
        try:
            action()
            print("DONE", what)
        except OSError as error:
            print("denied", what, error.errno)
    def write(path):
        with open(path, "ab") as file:
            file.write(b"#")
    for path in ("/x", "/etc/passwd", "/glovebox/train.py", "/glovebox/x", "prepare.py", "/data/x",
                 "/usr/bin/x", "/opt/glovebox/entrypoint.py", "/proc/sysrq-trigger",
                 "/proc/sys/kernel/hostname", "/sys/fs/cgroup/x"):
        attempt("write " + path, lambda: write(path))
    attempt("unlink prepare.py", lambda: os.unlink("prepare.py"))
    attempt("replace prepare.py", lambda: (write("other.py"), os.replace("other.py", "prepare.py")))
    attempt("chown", lambda: os.chown("train.py", 0, 0))
    attempt("mknod", lambda: os.mknod("device", 0o20666, os.makedev(1, 3)))
    attempt("chroot", lambda: os.chroot("/tmp"))
    attempt("setuid", lambda: os.setuid(0))
"""


def test_nothing_can_be_written_outside_the_workspace(bench: Bench) -> None:
    bench.run(WRITES)
    lines = bench.log_text.splitlines()
    assert len(lines) == 17
    assert [line for line in lines if not line.startswith("denied")] == []


def test_train_py_is_the_runs_to_write_and_the_proposal_is_not(bench: Bench) -> None:
    proposal = "open('train.py', 'a').write('# changed')\nprint(open('train.py').read()[-9:])"
    outcome = bench.run(proposal)
    assert outcome.exit_code == 0
    assert "# changed" in bench.log_text
    assert (bench.home / "runs" / "0" / "train.py").read_text() == proposal


def test_caps_of_workspace_tmp_and_shm(bench: Bench) -> None:
    outcome = bench.run(
        """
        import errno, os, signal
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        def fill(folder, block):
            count = 0
            try:
                while count < 1000:
                    with open(f"{folder}/{count}", "wb") as file:
                        file.write(bytes(block))
                    count += 1
            except OSError as error:
                print(folder, count, errno.errorcode[error.errno], flush=True)
            for number in range(count + 1):
                if os.path.exists(f"{folder}/{number}"):
                    os.unlink(f"{folder}/{number}")
        fill("/work", 1 << 20); fill("/work", 0); fill("/tmp", 1 << 20); fill("/dev/shm", 1 << 20)
        try:
            with open("/tmp/large", "wb") as file:
                for _ in range(32): file.write(bytes(1 << 20))
        except OSError as error:
            print("large", errno.errorcode[error.errno])
        """
    )
    assert outcome.exit_code == 0, bench.log_text
    results = [line.split() for line in bench.log_text.splitlines()]
    assert [[row[0], row[-1]] for row in results] == [
        ["/work", "ENOSPC"],
        ["/work", "ENOSPC"],
        ["/tmp", "ENOSPC"],
        ["/dev/shm", "ENOSPC"],
        ["large", "EFBIG"],
    ]
    bytes_cap, inodes_cap, tmp_cap, shm_cap = (int(row[1]) for row in results[:4])
    assert bytes_cap <= 16
    assert inodes_cap < 64
    assert tmp_cap <= 32
    assert shm_cap <= 8


def test_compiled_code_runs_from_tmp(bench: Bench) -> None:
    outcome = bench.run(
        """
        import ctypes, pathlib, subprocess, tempfile
        folder = pathlib.Path(tempfile.mkdtemp())
        assert folder.parent == pathlib.Path("/tmp")
        (folder / "answer.c").write_text("int answer(void) { return 42; }")
        library = folder / "answer.so"
        subprocess.run(["gcc", "-shared", "-fPIC", "-o", library, folder / "answer.c"], check=True)
        print(ctypes.CDLL(str(library)).answer())
        """
    )
    assert outcome.exit_code == 0, bench.log_text
    assert bench.log_text == "42\n"


def test_there_is_no_network(bench: Bench) -> None:
    bench.run(
        """
        import os, socket
        print(os.listdir("/sys/class/net"))
        for address in ("127.0.0.1", "169.254.169.254", "172.17.0.1", "1.1.1.1"):
            try:
                socket.create_connection((address, 80), timeout=2)
                print("connected", address)
            except OSError as error:
                print("refused", address, error.errno)
        for family, kind in ((socket.AF_PACKET, socket.SOCK_RAW), (socket.AF_INET, socket.SOCK_RAW)):
            try:
                socket.socket(family, kind)
                print("opened", family)
            except OSError:
                print("refused", family)
        """
    )
    lines = bench.log_text.splitlines()
    assert lines[0] == "['lo']"
    assert len(lines) == 7
    assert all(line.startswith("refused") for line in lines[1:])


def test_the_environment_holds_nothing_of_ours(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-needle-in-environment")
    monkeypatch.setenv("https_proxy", "http://user:needle-in-proxy@proxy.invalid")
    bench.run(
        """
        import os, pathlib
        print(dict(os.environ))
        for path in pathlib.Path("/proc").glob("[0-9]*/environ"):
            try: print(path.read_bytes())
            except OSError: pass
        print(open("/proc/self/mountinfo").read())
        """
    )
    assert "GLOVEBOX_BUDGET_SECONDS" in bench.log_text
    assert "needle" not in bench.log_text


def test_capabilities_and_namespaces(bench: Bench) -> None:
    bench.run(
        """
        import ctypes, os
        lines = open("/proc/self/status").read().splitlines()
        status = dict(line.split(":\\t", 1) for line in lines if ":\\t" in line)
        print(status["CapEff"], status["CapPrm"], status["CapBnd"], status["NoNewPrivs"], status["Seccomp"])
        print(os.getuid(), os.getgid(), os.getgroups())
        libc = ctypes.CDLL(None, use_errno=True)
        for flag in (0x10000000, 0x00020000, 0x40000000):  # new user, mount, network namespace
            print(libc.unshare(flag))
        print(os.path.exists("/var/run/docker.sock"))
        """
    )
    zero = "0" * 16
    assert bench.log_text.splitlines() == [
        f"{zero} {zero} {zero} 1 2",
        "10001 10001 [10001]",
        "-1",
        "-1",
        "-1",
        "False",
    ]


@pytest.mark.slow
def test_run_log_is_capped_and_exact_in_its_count(bench: Bench) -> None:
    log = TrainerConfig(log_head_bytes=1 << 20, log_tail_bytes=1 << 20)
    outcome = bench.run(
        """
        import sys
        line = b"x" * 99 + b"\\n"
        for _ in range(200):
            sys.stdout.buffer.write(line * 10_000)
        print("the very last line")
        """,
        budget=120.0,
        log=log,
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
    assert again == outcome
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


def test_a_lost_workspace_is_not_blamed_on_the_run(bench: Bench) -> None:
    attempt, trainer = bench.attempt("import time\ntime.sleep(2)", budget=20.0), bench.trainer()
    holder = Place(bench.home, "0").name(Domain.HOLDER)
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
