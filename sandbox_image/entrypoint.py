"""PID 1 of every sandbox container: starts one child, reaps, and kills everything at the deadline.

    entrypoint.py train --limit SECONDS             copy the proposal into the workspace and train it
    entrypoint.py exec  --limit SECONDS -- ARGV...  run ARGV; with --waits it waits for SIGUSR1
    entrypoint.py hold  --limit SECONDS             keep volumes mounted until SIGTERM

This is the second safeguard of the time limit. The first is the controller, which kills the container at
the budget; this one still works when all our other processes are dead. Seconds count from the start of
the container, on CLOCK_MONOTONIC. When PID 1 ends, so does its PID namespace: the kernel then kills
whatever is left, even if it ignored SIGTERM, changed its session or double-forked. From inside, PID 1
can be neither killed nor stopped, and because it is not dumpable it cannot be traced or written to.

Not protected against here: a child of the same user can send SIGTERM or set a CPU limit, which ends its
own container early, and can lower PID 1's scheduling priority, which can delay this safeguard (but not
the controller).

Exit status: the child's; 128+n if signal n ended it; 143 after SIGTERM; 124 at the deadline; 125 if
this program was misused or could not start the child. A status proves nothing about the child,
which may exit with any status.

Needs only the standard library, and no writable file system except the workspace.
"""

import argparse
import contextlib
import ctypes
import math
import os
import shutil
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

PROPOSAL = Path("/glovebox/train.py")
WORKSPACE = Path("/work")

STATUS_TIMEOUT = 124
STATUS_BROKEN = 125
STATUS_TERMINATED = 128 + signal.SIGTERM

START_SIGNAL = signal.SIGUSR1
WAKE_UP = (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, START_SIGNAL)
RESETTABLE = signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}  # others stay ignored across exec
PR_SET_DUMPABLE = 4  # <linux/prctl.h>


def main(argv: Sequence[str]) -> int:
    """Runs one of the three verbs; returns the container's exit status."""
    verb, limit, waits, command = parse(argv)
    if os.getpid() != 1:
        broken("must be PID 1 of a container: at the deadline it kills every process it can see")
    make_untraceable()
    started = container_start()
    signal.pthread_sigmask(
        signal.SIG_BLOCK, WAKE_UP
    )  # before the child exists, so that its exit cannot be missed
    deadline = started + limit
    if verb == "hold":
        return hold(deadline)
    if verb == "train":
        command = stage_proposal()
    return supervise(start(command, started, waits), deadline, waits)


def parse(argv: Sequence[str]) -> tuple[str, float, bool, list[str]]:
    """(verb, limit in seconds, whether `exec` waits, command of `exec`). Exits 125 on misuse."""
    ours, command = list(argv), []
    if "--" in ours:
        cut = ours.index("--")
        ours, command = ours[:cut], ours[cut + 1 :]
    parser = Parser(prog="entrypoint.py")
    parser.add_argument("verb", choices=("train", "exec", "hold"))
    parser.add_argument("--limit", type=float, required=True, metavar="SECONDS")
    parser.add_argument("--waits", action="store_true")
    arguments = parser.parse_args(ours)
    if not (arguments.limit > 0 and math.isfinite(arguments.limit)):
        broken(f"--limit must be a positive number of seconds, not {arguments.limit}")
    if (arguments.verb == "exec") != bool(command):
        broken("exec needs a command after --, and only exec takes one")
    if arguments.waits and arguments.verb != "exec":
        broken("--waits is only for exec")
    return arguments.verb, arguments.limit, arguments.waits, command


class Parser(argparse.ArgumentParser):
    """Exits with our own status on misuse; argparse's 2 could also be the child's."""

    def error(self, message: str) -> NoReturn:
        broken(message)


def broken(reason: str) -> NoReturn:
    """Prints what is wrong and exits with STATUS_BROKEN."""
    print(f"entrypoint: {reason}", file=sys.stderr)
    raise SystemExit(STATUS_BROKEN)


def make_untraceable() -> None:
    """Denies the child, which has our user id, ptrace and /proc/1/mem. An exec would undo this."""
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_DUMPABLE, 0, 0, 0, 0) != 0:
        broken(f"prctl(PR_SET_DUMPABLE): {os.strerror(ctypes.get_errno())}")


def container_start() -> float:
    """When this process started, in CLOCK_MONOTONIC seconds; proc_pid_stat(5), field 22, is since boot."""
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    since_boot = int(fields[19]) / os.sysconf("SC_CLK_TCK")
    age = time.clock_gettime(time.CLOCK_BOOTTIME) - since_boot
    return time.monotonic() - max(0.0, age)


def stage_proposal() -> list[str]:
    """Copies train.py to the workspace, which the run may write to; returns the command that runs it."""
    try:
        shutil.copyfile(PROPOSAL, WORKSPACE / "train.py")
        os.chdir(WORKSPACE)
    except OSError as error:
        broken(f"cannot place train.py in {WORKSPACE}: {error}")
    return ["python", "-u", "train.py"]


def start(command: list[str], started: float, waits: bool) -> int:
    """Starts the child in its own session with default signal handlers; returns its process id.

    A child that waits starts with the start signal blocked, so that it cannot arrive too early.
    """
    environment = {**os.environ, "GLOVEBOX_STARTED": repr(started)}
    try:
        return os.posix_spawnp(
            command[0],
            command,
            environment,
            setsid=True,
            setsigmask=(START_SIGNAL,) if waits else (),
            setsigdef=RESETTABLE,
        )
    except OSError as error:
        broken(f"cannot start {command[0]}: {error}")


def supervise(child: int, deadline: float, waits: bool) -> int:
    """Reaps until the child ends, SIGTERM arrives or the deadline passes; returns the exit status.

    The start signal is forwarded to a child that waits for it. `deadline` is in CLOCK_MONOTONIC seconds and
    checked on every turn: a flood of signals cannot postpone it.
    """
    while True:
        status = reap(child)
        if status is not None:
            return status
        remaining = deadline - time.monotonic()
        if remaining <= 0:
            kill_everything()
            return STATUS_TIMEOUT
        received = signal.sigtimedwait(WAKE_UP, remaining)
        if received is None or received.si_signo == signal.SIGCHLD:
            continue
        if received.si_signo != START_SIGNAL:
            kill_everything()
            return STATUS_TERMINATED
        if waits:
            os.kill(child, START_SIGNAL)


def reap(child: int) -> int | None:
    """Reaps all dead processes, orphans included; returns the child's exit status once it is dead."""
    while True:
        try:
            pid, raw = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return None
        if pid == child:
            code = os.waitstatus_to_exitcode(raw)
            return code if code >= 0 else 128 - code
        if pid == 0:
            return None


def kill_everything() -> None:
    """Sends SIGKILL to every other process in this PID namespace."""
    with contextlib.suppress(ProcessLookupError):  # there are none
        os.kill(-1, signal.SIGKILL)


def hold(deadline: float) -> int:
    """Sleeps until SIGTERM (returns 0) or the deadline (124), keeping the container's volumes mounted."""
    while (remaining := deadline - time.monotonic()) > 0:
        received = signal.sigtimedwait(WAKE_UP, remaining)
        if received is not None and received.si_signo in (signal.SIGTERM, signal.SIGINT):
            return 0
    return STATUS_TIMEOUT


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
