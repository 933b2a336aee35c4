"""The engine, or the runner, fails under a controller: stopped, killed and hung, in every phase."""

from __future__ import annotations

import itertools
import random
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tests.chaos.effort import Effort, Failed
from tests.chaos.engine import GRACE_SECONDS
from tests.chaos.texts import BUDGET_SECONDS
from tests.chaos.victims import Census, Engine, Runner, Victim
from tests.chaos.witness import Story

PHASES = ("proposing", "training", "scoring", "confirmation", "between")
WAYS = {
    # (signal, seconds until it is back)
    "stopped": (signal.SIGTERM, 3.0),
    "killed": (signal.SIGKILL, 3.0),
    "hung": (signal.SIGSTOP, 50.0),  # longer than any request of ours waits
}
_NOWHERE = "unix:///nowhere/engine.sock"
_PHASE_SECONDS = 120.0
_ON_SECONDS = 240.0
_POLL_SECONDS = 0.05


_SETTINGS = {
    "GLOVEBOX_CLAUDE__ANSWER_SECONDS": "30",
    "GLOVEBOX_PATIENCE__FIRST_SECONDS": "1",
    "GLOVEBOX_PATIENCE__MAX_SECONDS": "3",
}


@dataclass
class Record:
    """What the faults came to."""

    faults: list[str] = field(default_factory=list)
    violations: list[str] = field(default_factory=list)
    void: list[str] = field(default_factory=list)
    """Reasons that the journal gives."""
    experiments: int = 0


def of_engine(folder: Path, data: Path, seed: int) -> Record:
    """An engine of our own fails."""
    with Engine.open(folder / "engine") as engine, Census(engine.containers) as census:
        environment = {**_SETTINGS, "DOCKER_HOST": engine.host}
        with Effort.open(folder, data, "claude", sound=True, environment=environment) as effort:
            record = ordeal(effort, engine, seed)
        record.violations += census.overdue(GRACE_SECONDS)
    return record


def of_runner(folder: Path, data: Path, seed: int) -> Record:
    """The runner fails; the controller has no engine but by way of it."""
    with tempfile.TemporaryDirectory(prefix="runner-") as short:  # a socket's address has a limit
        socket = Path(short) / "s"
        both = {**_SETTINGS, "GLOVEBOX_BUDGET__WALL_SECONDS": f"{BUDGET_SECONDS:g}", "GLOVEBOX_DEVICE": "cpu"}
        with Effort.open(folder, data, "claude", sound=True, environment=both) as effort:
            runner = Runner(effort.home, socket, effort.variables())
            without = {"GLOVEBOX_RUNNER": str(socket), "DOCKER_HOST": _NOWHERE}
            effort.environment = {**effort.environment, **without}
            try:
                runner.revive()
                record = ordeal(effort, runner, seed)
                record.violations += effort.watchman.overdue()  # the engine itself was sound
                return record
            finally:
                runner.close()


def ordeal(effort: Effort, victim: Victim, seed: int, ways: tuple[str, ...] = tuple(WAYS)) -> Record:
    """One controller; its victim fails once in each phase in each of `ways`, and comes back each time."""
    record, drawn = Record(), random.Random(seed)
    plan = [*itertools.product(PHASES, ways)]
    drawn.shuffle(plan)
    try:
        with effort.start() as process:
            try:
                for phase, way in plan:
                    _fault(effort, process, victim, record, phase, way, drawn.uniform(0.0, 1.0))
            finally:
                process.kill()
        effort.finish(more=1)
        record.violations += effort.wrong_at_rest(sound_machine=False)
    except Failed as failed:
        record.violations.append(str(failed))
    record.violations += _blamed(effort)
    record.void = _reasons(effort)
    record.experiments = len(Story.of(effort.home).told)
    return record


def _fault(
    effort: Effort,
    process: subprocess.Popen[bytes],
    victim: Victim,
    record: Record,
    phase: str,
    way: str,
    delay: float,
) -> None:
    number, away = WAYS[way]
    reached = _until(lambda: _phase(effort) == phase, process, effort, _PHASE_SECONDS)
    if phase not in ("between", "proposing"):
        time.sleep(delay)
    story = Story.of(effort.home)
    void = story.voided
    due = len(story.told) + (phase in ("between", "proposing"))
    victim.signal(number)
    time.sleep(away)
    victim.revive()
    began = time.monotonic()
    went_on = _until(lambda: _closed(effort) >= due, process, effort, _ON_SECONDS)
    seconds, voided = time.monotonic() - began, Story.of(effort.home).voided - void
    line = f"{victim.name} {way:8} while {phase if reached else story.phase:13} "
    line += f"{voided} void, next verdict {seconds:5.1f} s after it was back"
    record.faults.append(line)
    print(line, flush=True)
    if not went_on:
        raise Failed(f"after the {victim.name} was {way} while {phase} the effort does not go on")


def _until(
    reached: Callable[[], bool], process: subprocess.Popen[bytes], effort: Effort, seconds: float
) -> bool:
    end = time.monotonic() + seconds
    while not reached():
        if process.poll() is not None:
            raise Failed(f"the controller ended with status {process.returncode}: {effort.last_words()}")
        if time.monotonic() > end:
            return False
        time.sleep(_POLL_SECONDS)
    return True


def _phase(effort: Effort) -> str:
    """Where the effort stands, by what the journal and the engine say."""
    journal = effort.home / "audit.jsonl"
    story = Story.of(effort.home) if journal.exists() else Story()
    if not story.told:
        return ""
    match story.told[-1].at:
        case "training_started":
            log = effort.home / "runs" / f"{story.told[-1].number:06d}" / "run.log"
            return "training" if log.exists() and b"training\n" in log.read_bytes() else ""
        case "scoring_started":
            return "confirmation" if effort.watchman.second_worker() else "scoring"
        case "decided" | "committed":
            return "proposing" if story.phase in ("api_answered", "rehearsed") else "between"
        case _:
            return ""


def _closed(effort: Effort) -> int:
    return sum(told.closed for told in Story.of(effort.home).told)


def _blamed(effort: Effort) -> Iterator[str]:
    """Every proposal here is sound: what is not kept is discarded, and nothing else."""
    for told in Story.of(effort.home).told:
        if told.verdict not in (None, "keep", "discard"):
            yield f"experiment {told.number} was blamed: {told.verdict}, {told.cause}"


def _reasons(effort: Effort) -> list[str]:
    return Story.of(effort.home).reasons
