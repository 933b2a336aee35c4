"""Kills the runner of one effort again and again, while its controller is at work."""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Sequence

from tests.chaos.effort import Effort, Failed
from tests.chaos.faults import blamed
from tests.chaos.plan import Kill
from tests.chaos.torment import Tally, rest
from tests.chaos.victims import Runner

SETTINGS = {
    "GLOVEBOX_NOISE__ENABLED": "true",  # so that the runner is asked what containers use
    "GLOVEBOX_NOISE__CPU_SHARE": "1",  # of which nothing comes
    "GLOVEBOX_RETRY__FIRST_SECONDS": "1",
    "GLOVEBOX_RETRY__MAX_SECONDS": "3",
}
_BOTH = 5
"""With every so many kills of the runner the controller dies, too, and all of the home is looked at."""
_AT_A_START = ("-describe", "-device")
"""A controller asks that once in its life."""
_LOOK_SECONDS = 1.0


def torment_runner(
    effort: Effort,
    kills: Sequence[Kill],
    tally: Tally,
    name: str,
    *,
    more: int = 1,
    stop: threading.Event | None = None,
) -> None:
    """One life of the runner for each kill, or until `stop`; each begins as soon as the last has ended."""
    runner, controller = effort.runner, None
    assert runner is not None
    try:
        for number, kill in enumerate(kills):
            if stop is not None and stop.is_set():
                break
            runner.revive(f"{kill.place}:{kill.nth}" if kill.kind == "place" else None)
            if controller is not None and (number % _BOTH == 0 or kill.place.endswith(_AT_A_START)):
                controller.kill()
                controller.wait()
                tally.note(name, effort.wrong())
                controller = None
            controller = controller or effort.start()
            reached = _carry_out(effort, runner, controller, kill)
            tally.killed(name, effort, kill, reached, effort.wrong_alive())
        runner.revive()
        if controller is not None:
            controller.kill()
            controller.wait()
            tally.note(name, effort.wrong())
        wrong = [*rest(effort, more), *blamed(effort)]
    except (Failed, RuntimeError) as failed:
        wrong = [str(failed)]
    finally:
        if controller is not None and controller.poll() is None:
            controller.kill()
            controller.wait()
    tally.ended(name, effort, wrong)


def _carry_out(effort: Effort, runner: Runner, controller: subprocess.Popen[bytes], kill: Kill) -> bool:
    """True if the runner died where it should. Raises Failed."""
    if kill.kind == "moment":
        time.sleep(kill.seconds)
        runner.kill()
        return True
    end = time.monotonic() + effort.patience_seconds
    while not runner.died(_LOOK_SECONDS):
        if controller.poll() is not None:
            raise Failed(f"the controller ended with status {controller.returncode}: {effort.last_words()}")
        if kill.place.endswith("-ping"):
            runner.ask()
        if time.monotonic() > end:
            runner.kill()
            return False
    return True
