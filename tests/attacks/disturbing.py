"""M18: runs that look disturbed when they do not like their loss, to be drawn again.

Each runs as T on a watched slot and makes others work for it: the engine, the kernel, what a host runs for
it. However it looked, the run counts if the slot is calm without it.
"""

from __future__ import annotations

import textwrap
import time

from controller.core.hardware.disturbance import NoiseConfig
from controller.experiments import lasting_disturbance
from controller.sandbox.monitor import NoiseMonitor
from tests.attacks.ground import Assault, Ending, Gained, Ground, Run

COUNTS = "counts"
_WHY = "noise makes a run void only if it is there without the run, too"

CONFIG = NoiseConfig(retry_seconds=3.0)
BUDGET = 9.0
"""Seconds; a run that is watched for less than four is never said to be disturbed."""
_CALM_SECONDS = 120.0
"""So long the machine may take to be calm before the attack."""
_LONG_GONE_SECONDS = 20.0
"""After the second look: noise that is still there then is not the attack's."""

_BAD = """
import mmap, os, signal, time
loss = 9.9
print('armed', flush=True)
def children(count, work):
    for _ in range(count):
        if os.fork() == 0: work()
    work()
if loss > 1.0:
"""

_NOISES = {
    "floods its output": "while True: os.write(1, b'x' * (1 << 16))",
    "floods its output with lines, from many processes": """
        def work():
            while True: os.write(1 + os.getpid() % 2, b'loss\\n' * 8192)
        children(8, work)
    """,
    "makes the kernel's timers fire without end": """
        signal.signal(signal.SIGALRM, lambda *_: None)
        def work():
            signal.setitimer(signal.ITIMER_REAL, 1e-5, 1e-5)
            while True: signal.pause()
        children(16, work)
    """,
    "wakes and sleeps so that no tick of the clock sees it": """
        def work():
            while True:
                end = time.perf_counter() + 0.0004
                while time.perf_counter() < end: pass
                time.sleep(0.0001)
        children(4, work)
    """,
    "forks and reaps without end": """
        def work():
            while True:
                child = os.fork()
                if child == 0: os._exit(0)
                os.waitpid(child, 0)
        children(8, work)
    """,
    "lets processes die of a signal that dumps their core": """
        def work():
            while True:
                child = os.fork()
                if child == 0: os.abort()
                os.waitpid(child, 0)
        children(4, work)
    """,
    "fills and empties its tmpfs without end": """
        def work():
            path = f'/tmp/{os.getpid()}'
            while True:
                with open(path, 'wb') as file: file.write(bytes(4 << 20))
                os.unlink(path)
        children(4, work)
    """,
    "lives at the limit of its memory": """
        def work():
            while True:
                block = mmap.mmap(-1, 40 << 20)
                for page in range(0, 40 << 20, 4096): block[page] = 1
                block.close()
        children(3, work)
    """,
    "leaves all that it may hold to be cleared away": """
        held = [bytes([n]) * (1 << 20) for n in range(100)]
        for n in range(7): open(f'/tmp/{n}', 'wb').write(bytes(4 << 20))
        while True: os.write(1, b'x' * (1 << 16))
    """,
}


def _disturbs(name: str, program: str) -> Assault:
    def attack(ground: Ground) -> Ending:
        bench = ground.bench
        monitor = NoiseMonitor(
            bench.sandbox,
            bench.clock,
            config=CONFIG,
            containers=bench.config,
            home=bench.home,
            budget_seconds=BUDGET,
        )
        _await_calm(monitor, ground)
        run = ground.run(
            _BAD + textwrap.indent(textwrap.dedent(program).strip("\n"), "    "), BUDGET, monitor=monitor
        )
        if "armed" not in run.log:
            return Ending("not armed", run.log[-200:])
        seen = lasting_disturbance(monitor, CONFIG.retry_seconds, bench.stop)
        if seen is not None:
            bench.stop.wait(_LONG_GONE_SECONDS)
            if monitor.look(bench.stop) is not None:
                raise RuntimeError(f"somebody else disturbs the machine: {seen.detail}")
            raise Gained(f"it is drawn again: {seen.detail} {_beside(run)}")
        return Ending(COUNTS, _beside(run))

    return Assault("M18", name, COUNTS, _WHY, attack, alone=True)


def _await_calm(monitor: NoiseMonitor, ground: Ground) -> None:
    """Raises RuntimeError on a machine where nothing can be shown."""
    give_up = time.monotonic() + _CALM_SECONDS
    while (found := monitor.look(ground.bench.stop)) is not None:
        if time.monotonic() > give_up:
            raise RuntimeError(f"the machine is not calm without the attack: {found.detail}")


def _beside(run: Run) -> str:
    cpu = run.outcome.conditions.cpu if run.outcome.conditions else None
    return f"others used {cpu.contended:.0%} beside it" if cpu else "nobody watched it"


CASES = tuple(_disturbs(name, program) for name, program in _NOISES.items())
