"""PID 1 on its own, in a real PID namespace: statuses, deadlines, and children that do not want to die."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import entrypoint

SENTENCE = "entrypoint: "


def run(
    pid1: list[str], script: str, *, limit: float = 10, timeout: float = 20
) -> subprocess.CompletedProcess[str]:
    """Runs a shell script as PID 1's child. Returns only when no process holds its output any more."""
    command = [*pid1, "exec", "--limit", str(limit), "--", "sh", "-c", script]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)


@pytest.mark.parametrize(
    ("script", "status"),
    [("true", 0), ("exit 7", 7), ("kill -SEGV $$", 128 + 11), ("kill -KILL $$", 128 + 9), ("exit 124", 124)],
)
def test_the_status_is_the_childs(pid1: list[str], script: str, status: int) -> None:
    assert run(pid1, script).returncode == status


@pytest.mark.parametrize(
    "script",
    [
        pytest.param("sleep 60", id="sleeps"),
        pytest.param("trap '' TERM INT HUP; while :; do sleep 1; done", id="ignores signals"),
        pytest.param(
            "(setsid sh -c 'trap \"\" TERM; sleep 60' &) ; sleep 60", id="double-forks into a new session"
        ),
        pytest.param("while :; do kill -CHLD 1; done", id="floods PID 1 with signals"),
        pytest.param("kill -KILL 1; kill -STOP 1; sleep 60", id="kills and stops PID 1"),
        pytest.param("while :; do sleep 0.01 & done", id="forks without waiting"),
    ],
)
def test_everything_is_dead_at_the_deadline(pid1: list[str], script: str) -> None:
    begin = time.monotonic()
    result = run(pid1, script, limit=1.0)
    life = time.monotonic() - begin
    assert result.returncode == 124
    assert 0.9 < life < 2.5  # two busy cores shared with other tests; the benchmark measures it tightly


def test_what_the_child_leaves_behind_dies_with_it(pid1: list[str]) -> None:
    begin = time.monotonic()
    assert run(pid1, "setsid sleep 60 & exit 3", limit=50).returncode == 3
    assert time.monotonic() - begin < 5


def test_orphans_are_reaped(pid1: list[str]) -> None:
    # Each inner shell dies at once and leaves its `true` to PID 1; none may remain a zombie.
    script = """
    for i in 1 2 3 4 5; do sh -c 'true & exit 0'; done
    until ! grep -qs '^State:.Z' /proc/[0-9]*/status; do sleep 0.05; done
    """
    assert run(pid1, script).returncode == 0


def test_the_child_starts_with_clean_signals(pid1: list[str]) -> None:
    lines = run(pid1, "grep -E '^Sig(Blk|Ign):' /proc/self/status").stdout.splitlines()
    masks = {line.split()[0]: int(line.split()[1], 16) & 0x7FFFFFFF for line in lines}  # above are libc's own
    assert masks == {"SigBlk:": 0, "SigIgn:": 0}


def test_the_start_is_the_process_start_and_not_the_childs(pid1: list[str]) -> None:
    tick = 0.02  # the kernel counts process starts in hundredths of a second
    before = time.monotonic()
    started = float(run(pid1, "echo $GLOVEBOX_STARTED").stdout)
    assert before - tick <= started <= time.monotonic()


@pytest.mark.parametrize(("verb", "status"), [("exec", 128 + signal.SIGTERM), ("hold", 0)])
def test_sigterm_from_outside_ends_it(pid1: list[str], verb: str, status: int) -> None:
    command = [*pid1, verb, "--limit", "60"]
    if verb == "exec":
        command += ["--", "sh", "-c", "trap '' TERM; sleep 60"]
    with subprocess.Popen(command) as unshare:
        host_pid = only_child(unshare.pid)
        # The kernel drops what reaches a PID 1 that does not listen yet, so this insists.
        while unshare.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(host_pid, signal.SIGTERM)
            time.sleep(0.02)
        assert unshare.returncode == status


WAITS_FOR_THE_WORD = "import signal; signal.sigwait({signal.SIGUSR1}); print('told')"


def insist(pid1: list[str], *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs `exec` with these arguments and tells it to begin, from before its first instruction on."""
    command = [*pid1, "exec", "--limit", "20", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as unshare:
        host_pid = only_child(unshare.pid)
        while unshare.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(host_pid, signal.SIGUSR1)
            time.sleep(0.005)
        assert unshare.stdout is not None
        return subprocess.CompletedProcess(command, unshare.returncode, unshare.stdout.read())


def test_the_word_reaches_a_child_that_waits_and_never_too_early(pid1: list[str]) -> None:
    result = insist(
        pid1, "--waits", "--", sys.executable, "-c", f"import time; time.sleep(0.2); {WAITS_FOR_THE_WORD}"
    )
    assert (result.returncode, result.stdout) == (0, "told\n")


def test_the_word_is_kept_from_a_child_that_does_not_wait(pid1: list[str]) -> None:
    result = insist(pid1, "--", "sh", "-c", "sleep 0.3; echo undisturbed")
    assert (result.returncode, result.stdout) == (0, "undisturbed\n")


def test_the_holder_does_not_outlive_its_limit(pid1: list[str]) -> None:
    assert subprocess.run([*pid1, "hold", "--limit", "0.3"], timeout=10, check=False).returncode == 124


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ([], "required"),
        (["dance", "--limit", "1"], "dance"),
        (["train"], "--limit"),
        (["train", "--limit", "soon"], "soon"),
        (["train", "--limit", "0"], "positive"),
        (["train", "--limit", "nan"], "positive"),
        (["train", "--limit", "inf"], "positive"),
        (["exec", "--limit", "1"], "command"),
        (["exec", "--limit", "1", "--"], "command"),
        (["train", "--limit", "1", "--", "true"], "command"),
        (["train", "--limit", "1", "--waits"], "waits"),
    ],
)
def test_misuse_is_one_sentence(
    capsys: pytest.CaptureFixture[str], arguments: list[str], complaint: str
) -> None:
    with pytest.raises(SystemExit) as stop:
        entrypoint.parse(arguments)
    said = capsys.readouterr().err
    assert stop.value.code == entrypoint.STATUS_BROKEN
    assert said.startswith(SENTENCE) and complaint in said and said.count("\n") == 1


def test_arguments_of_the_command_stay_untouched() -> None:
    argv = ["exec", "--limit", "1.5", "--", "python", "x.py", "--limit", "9", "--", '{"a": 1}']
    assert entrypoint.parse(argv) == (
        "exec",
        1.5,
        False,
        ["python", "x.py", "--limit", "9", "--", '{"a": 1}'],
    )


def test_an_unknown_command_is_our_mistake_and_not_the_childs(pid1: list[str]) -> None:
    result = subprocess.run(
        [*pid1, "exec", "--limit", "5", "--", "no-such-program"], capture_output=True, text=True, check=False
    )
    assert result.returncode == entrypoint.STATUS_BROKEN
    assert result.stderr.startswith(f"{SENTENCE}cannot start no-such-program")


def test_refuses_to_run_where_it_could_kill_a_whole_machine() -> None:
    command = [sys.executable, "-I", "-S", entrypoint.__file__, "exec", "--limit", "0.1", "--", "sleep", "9"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=5, check=False)
    assert result.returncode == entrypoint.STATUS_BROKEN
    assert "PID 1" in result.stderr


def only_child(pid: int) -> int:
    """The process id of the one child of `pid`, as soon as it has one."""
    children = Path(f"/proc/{pid}/task/{pid}/children")
    while not (found := children.read_text(encoding="utf-8").split()):
        time.sleep(0.005)
    return int(found[0])
