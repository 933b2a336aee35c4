"""C5: more output than anybody can keep, in every form."""

from __future__ import annotations

import subprocess
import textwrap
import time
from pathlib import Path

from controller.core.containers.config import MIB
from tests.attacks.ground import ENGINE_LOG_BYTES, LOG_BYTES, Assault, Ending, Gained, Ground, Run

CAPPED, FLAT, ENDED = "capped", "flat", "ended"
_WHY = "engine and run.log keep the ends of the output within their limits, and the reader slows the run down"

RUN_LOG_BYTES = 2 * LOG_BYTES + 1024
ENGINE_SLACK = 1.5
"""The engine turns its log over after a whole message, and while it does there is one file more."""
SOME_BYTES = 1 * MIB
"""A flood that printed less than this has not shown that anything is capped."""
CONTROLLER_BYTES = 64 * MIB
"""By so much the controller's memory may grow over that of a quiet run: it cuts run.log 8 MiB at a time."""

_FLOODS = {
    "short lines without end": "while True: os.write(1, b'step 1 loss 3.2\\n' * 4096)",
    "without end and without a newline": "while True: os.write(1, b'x' * (1 << 20))",
    "NUL bytes without end": "while True: os.write(1, bytes(1 << 16))",
    "bytes that are no text, without end": "while True: os.write(1, bytes(range(256)) * 256 + b'\\xc3(')",
    "carriage returns only, without end": "while True: os.write(1, b'100%|#####| 1/1\\r' * 4096)",
    "frames like the engine's, without end": "while True: os.write(1, (b'\\1\\0\\0\\0' + b'~' * 4) * 8192)",
    "single bytes without end, from many threads": """
        import threading
        def write():
            while True: os.write(1, b'x')
        for _ in range(8): threading.Thread(target=write).start()
        while True: os.write(1, b'y' * (1 << 16))
    """,
    "on both streams, from many processes": """
        for _ in range(16):
            if os.fork() == 0: break
        while True: os.write(1 + os.getpid() % 2, b'z' * (1 << 16))
    """,
    "from a daemon after it closed its own output": """
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                while True: os.write(2, b'd' * (1 << 16))
            os._exit(0)
        os.close(1)
        time.sleep(3600)
    """,
    "through its pipe, opened again by name": """
        for path in ('/dev/stdout', '/proc/self/fd/1', '/proc/1/fd/1'):
            try: file = os.open(path, os.O_WRONLY | os.O_NONBLOCK); break
            except OSError: pass
        os.close(1)
        while True:
            try: os.write(file, b'r' * (1 << 16))
            except BlockingIOError: time.sleep(0.001)
    """,
}

_AFTER_THE_END = """
import os, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        while True:
            os.write(1, b'after the end\\n')
            time.sleep(0.01)
    os._exit(0)
time.sleep(0.5)
os.write(1, b'the last word\\n')
"""


def _flood(name: str, program: str) -> Assault:
    def attack(ground: Ground) -> Ending:
        run = ground.run("import os, time\n" + textwrap.dedent(program), 2.0)
        printed = run.outcome.log_bytes
        if not run.outcome.killed_at_limit or printed < SOME_BYTES:
            return Ending(f"status {run.outcome.exit_code}", f"{printed} bytes; {run.log[-200:]!r}")
        _require_capped(ground, run)
        return Ending(CAPPED, f"{printed / MIB:.0f} MiB printed, run.log {_size(ground) / MIB:.1f} MiB")

    return Assault("C5", f"prints {name}", CAPPED, _WHY, attack)


def _require_capped(ground: Ground, run: Run) -> None:
    if _size(ground) > RUN_LOG_BYTES:
        raise Gained(f"run.log has {_size(ground)} bytes")
    if run.engine_log_bytes is not None and run.engine_log_bytes > ENGINE_SLACK * ENGINE_LOG_BYTES:
        raise Gained(f"the engine keeps {run.engine_log_bytes} bytes")
    if "\0" in run.log:
        raise Gained("run.log holds NUL bytes")


def _size(ground: Ground) -> int:
    return (ground.bench.home / "runs" / "0" / "run.log").stat().st_size


def _ends(ground: Ground) -> Ending:
    run = ground.run(_AFTER_THE_END, 20.0)
    if "the last word" not in run.log or run.outcome.exit_code != 0:
        return Ending(f"status {run.outcome.exit_code}", run.log[-200:])
    return Ending(ENDED, f"after {run.outcome.seconds:.1f} s")


def _flat(ground: Ground) -> Ending:
    """The peak of the real controller's memory, flooded and not."""
    quiet = _peak(ground, "model = 0\nraise SystemExit(3)")
    flooded = _peak(ground, "import os\nmodel = 0\nwhile True: os.write(1, b'x' * (1 << 20))")
    grown = f"{(flooded - quiet) / MIB:+.0f} MiB over {quiet / MIB:.0f}"
    if flooded - quiet > CONTROLLER_BYTES:
        raise Gained(f"the controller's memory grew by {grown} MiB")
    return Ending(FLAT, grown)


def _peak(ground: Ground, program: str) -> int:
    """The most memory that `glovebox try` ever had while it ran this; bytes."""
    process, peak = ground.try_command(program, 4.0), 0
    try:
        give_up = time.monotonic() + 120
        while process.poll() is None:
            if time.monotonic() > give_up:
                raise Gained("the controller does not come to an end")
            peak = max(peak, _resident(process))
            time.sleep(0.02)
        said, error = process.communicate()
    finally:
        process.kill()
        ground.sweep()
    if process.returncode != 0 or '"verdict": "crash"' not in said:
        raise RuntimeError(f"the try ended with {process.returncode}: {said[-300:]} {error[-300:]}")
    return peak


def _resident(process: subprocess.Popen[str]) -> int:
    try:
        lines = Path(f"/proc/{process.pid}/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")), 0)


CASES = (
    *(_flood(name, program) for name, program in _FLOODS.items()),
    Assault("C5", "prints on after its end, from a daemon", ENDED, "the container ends with it", _ends),
    Assault("C5", "prints at the controller's own memory", FLAT, _WHY, _flat),
)
