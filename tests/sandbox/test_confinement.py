"""What a run can use up, write, see and reach from inside T, on the real engine."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from controller.core.containers.volumes import WORKSPACE_INODES
from controller.core.values import Cause
from tests.support.bench import Bench

pytestmark = pytest.mark.engine


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
                while count < 50_000:
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
    assert WORKSPACE_INODES - 50 < inodes_cap < WORKSPACE_INODES
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
