"""C1 and C2: living longer than the budget, with the controller watching and without it."""

from __future__ import annotations

import os
import signal
import textwrap
import time

from controller.core.scoring.runlog import LIMIT_EXIT_CODE
from tests.attacks.ground import LATE_SECONDS, Assault, Ending, Gained, Ground, Run

KILLED, DEAD = "killed", "dead"
_ARMED = "print('armed', flush=True)\n"
_FOREVER = "while True: time.sleep(3600)"
_BOTH_HANDS = "the controller kills the container, and with its PID 1 everything in it"
_PID_1 = "PID 1 of the container has a limit of its own, and no process in it can stop or delay PID 1"

# Each of the processes makes another one whenever it can, so that killing one by one never ends.
HYDRA = """
import os, signal, time
def live():
    while True:
        try:
            if os.fork() == 0:
                os.setsid()
        except OSError:
            time.sleep(0.01)
            try: os.waitpid(-1, os.WNOHANG)
            except ChildProcessError: pass
for number in range(200):
    if number == 5: print('armed', flush=True)
    try: child = os.fork()
    except OSError: break  # the first ones multiply already
    if child == 0:
        os.setsid()
        for number in set(signal.Signals) - {signal.SIGKILL, signal.SIGSTOP}:
            signal.signal(number, signal.SIG_IGN)
        time.sleep(1)
        live()
live()
"""

SIGNALS_TO_PID_1 = """
import os, signal, time
for number in range(1, 65):
    if number not in (signal.SIGTERM, signal.SIGINT):
        try: os.kill(1, number)
        except OSError: pass
print('armed', flush=True)
while True:
    os.kill(1, signal.SIGSTOP); os.kill(1, signal.SIGKILL); os.kill(1, signal.SIGCHLD)
"""

DEAF = (
    """
import signal, threading, time
for number in set(signal.Signals) - {signal.SIGKILL, signal.SIGSTOP}:
    signal.signal(number, signal.SIG_IGN)
signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
"""
    + _ARMED
    + _FOREVER
)

_PROGRAMS = {
    "ignores its deadline": "import time\n" + _ARMED + _FOREVER,
    "ignores and blocks every signal": DEAF,
    "patches the clock and the budget": """
        import time, sys, os
        real = time.sleep
        os.environ["GLOVEBOX_BUDGET_SECONDS"] = os.environ["GLOVEBOX_STARTED"] = "1e9"
        for name in ("time", "monotonic", "perf_counter", "process_time"):
            setattr(time, name, lambda: 0.0)
        import prepare
        prepare.time_left = lambda: 1e9
        print('armed', flush=True)
        while True: real(60)
    """,
    "forks twice and leaves its session": """
        import os, time
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                os.close(0), os.close(1), os.close(2)
                while True: time.sleep(3600)
            os._exit(0)
        print('armed', flush=True)
        while True: time.sleep(3600)
    """,
    "hides its children behind a subreaper": """
        import ctypes, os, time
        assert ctypes.CDLL(None).prctl(36, 1, 0, 0, 0) == 0  # PR_SET_CHILD_SUBREAPER
        for _ in range(8):
            if os.fork() == 0:
                os.setsid()
                if os.fork() == 0:
                    while True: time.sleep(3600)
                os._exit(0)
        print('armed', flush=True)
        while True: time.sleep(3600)
    """,
    "stops and kills PID 1 again and again": SIGNALS_TO_PID_1,
    "stops everything, itself included": """
        import os, signal
        for _ in range(20):
            if os.fork() == 0:
                signal.pause()
        print('armed', flush=True)
        os.kill(-1, signal.SIGSTOP)
        os.kill(os.getpid(), signal.SIGSTOP)
    """,
    "keeps every CPU busy from many threads": """
        import hashlib, os, threading, time
        def burn():
            block = bytes(1 << 20)
            while True: hashlib.sha256(block)  # without the interpreter's lock
        for _ in range(4 * os.cpu_count()):
            threading.Thread(target=burn).start()
        print('armed', flush=True)
        burn()
    """,
    "replaces itself by another program": """
        import os
        print('armed', flush=True)
        os.execv("/bin/sh", ["sh", "-c", "trap '' TERM INT HUP; while :; do sleep 1; exec 3>&1; done"])
    """,
    "waits for a vfork that never returns": """
        import ctypes, time
        libc = ctypes.CDLL(None)
        print('armed', flush=True)
        if libc.vfork() == 0:  # the parent is not to be woken, not even by a signal it would handle
            while True: time.sleep(1)
    """,
    "waits for a pipe, a lock and a futex for ever": """
        import fcntl, os, threading
        lock = threading.Lock()
        lock.acquire()
        os.mkfifo("/tmp/pipe")
        for wait in (lock.acquire, lambda: open("/tmp/pipe"), lambda: os.read(os.pipe()[0], 1)):
            threading.Thread(target=wait).start()
        for _ in range(2):
            if os.fork() == 0:
                fcntl.flock(os.open("/work/lock", os.O_CREAT | os.O_RDWR), fcntl.LOCK_EX)
                os.read(os.pipe()[0], 1)
        print('armed', flush=True)
        lock.acquire()
    """,
    "sets timers of every kind": """
        import signal, time
        for timer, number in ((0, signal.SIGALRM), (1, signal.SIGVTALRM), (2, signal.SIGPROF)):
            signal.signal(number, lambda *_: None)
            signal.setitimer(timer, 0.001, 0.001)
        print('armed', flush=True)
        while True:
            for _ in range(10000): pass
    """,
    "changes its priority, class and CPUs": """
        import os, time
        for action in (
            lambda: os.nice(19),
            lambda: os.setpriority(os.PRIO_PROCESS, 0, -20),
            lambda: os.setpriority(os.PRIO_PROCESS, 1, 19),
            lambda: os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0)),
            lambda: os.sched_setscheduler(1, os.SCHED_IDLE, os.sched_param(0)),
            lambda: os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(99)),
            lambda: os.sched_setaffinity(1, {0}),
            lambda: os.sched_setaffinity(0, {0}),
        ):
            try: action()
            except OSError: pass
        for _ in range(40):
            if os.fork() == 0:
                while True: pass
        print('armed', flush=True)
        while True: pass
    """,
    "has hundreds of children that multiply at the deadline": HYDRA,
    "closes its output and carries on": """
        import os, time
        print('armed', flush=True)
        for descriptor in range(256):
            try: os.close(descriptor)
            except OSError: pass
        while True: time.sleep(3600)
    """,
    "runs out of memory without dying of it": """
        import os, time
        os.setpriority(os.PRIO_PROCESS, 0, 19)
        print('armed', flush=True)
        while True:  # children die of it again and again
            if (child := os.fork()) == 0:
                blocks = []
                while True: blocks.append(bytearray(os.urandom(1 << 16) * 64))
            os.waitpid(child, 0)
    """,
}


def _overstays(name: str, program: str) -> Assault:
    def attack(ground: Ground) -> Ending:
        run = ground.armed(program)
        if "armed" not in run.log:
            return Ending("not armed", run.log[-300:])
        if not run.outcome.killed_at_limit:
            return Ending(f"status {run.outcome.exit_code}", run.log[-300:])
        return Ending(KILLED, late(run))

    return Assault("C1", name, KILLED, _BOTH_HANDS, attack)


def late(run: Run) -> str:
    return f"{run.lateness:+.2f} s"


def _alone(name: str, program: str) -> Assault:
    """T without anybody who would kill it: the engine has it, and no controller knows."""

    def attack(ground: Ground) -> Ending:
        bench = ground.bench
        attempt = bench.attempt(program, 2.0)
        try:
            bench.start(attempt)
            limit = attempt.budget_seconds + bench.config.kill_grace_seconds
            name = bench.trainer().spec(attempt).name
            lived, status = ground.until_dead(name, time.monotonic() + limit + 30)
        finally:
            bench.trainer().discard(attempt)
        return _dead(lived, limit, status)

    return Assault("C2", name, DEAD, _PID_1, attack)


def _without_controller(name: str, what: signal.Signals) -> Assault:
    def attack(ground: Ground) -> Ending:
        budget = 4.0
        process = ground.try_command("import time\nmodel = 0\n" + _FOREVER, budget)
        try:
            ground.wait_for(ground.tried(), process)
            os.kill(process.pid, what)
            limit = budget + ground.bench.config.kill_grace_seconds
            lived, status = ground.until_dead(ground.tried(), time.monotonic() + limit + 30)
        finally:
            process.kill()
            process.communicate()
            ground.sweep()
        return _dead(lived, limit, status)

    return Assault("C2", name, DEAD, _PID_1, attack)


def _dead(lived: float, limit: float, status: int) -> Ending:
    if lived > limit + LATE_SECONDS:
        raise Gained(f"it lived {lived - limit:.1f} s past its own limit")
    if status != LIMIT_EXIT_CODE:
        return Ending(f"status {status}", f"after {lived:.2f} s")
    return Ending(DEAD, f"{lived - limit:+.2f} s")


CASES = (
    *(_overstays(name, textwrap.dedent(program)) for name, program in _PROGRAMS.items()),
    _without_controller("the controller is killed while T runs", signal.SIGKILL),
    _without_controller("the controller is stopped while T runs", signal.SIGSTOP),
    _alone("nobody kills it, and it is deaf to signals", DEAF),
    _alone("nobody kills it, and it sends PID 1 every signal", SIGNALS_TO_PID_1),
    _alone("nobody kills it, and it multiplies", HYDRA),
)
