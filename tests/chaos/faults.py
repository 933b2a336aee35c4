"""The engine, or the runner, fails under a controller: stopped, killed and hung, in every phase."""

from __future__ import annotations

import itertools
import random
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tests.chaos.effort import Effort, Failed
from tests.chaos.engine import GRACE_SECONDS
from tests.chaos.texts import CRASH
from tests.chaos.victims import Census, Engine, Victim

PHASES = ("proposing", "training", "scoring", "confirmation", "between")
WAYS = {
    # (signal, seconds until it is back)
    "stopped": (signal.SIGTERM, 3.0),
    "killed": (signal.SIGKILL, 3.0),
    "hung": (signal.SIGSTOP, 50.0),  # longer than any request of ours waits
}
_PHASE_SECONDS = 240.0
_ON_SECONDS = 900.0
_POLL_SECONDS = 0.05


_SETTINGS = {
    "GLOVEBOX_CLAUDE__ANSWER_SECONDS": "30",
    "GLOVEBOX_RETRY__FIRST_SECONDS": "1",
    "GLOVEBOX_RETRY__MAX_SECONDS": "3",
}


@dataclass
class Record:
    """What the faults came to."""

    faults: list[str] = field(default_factory=list)
    violations: list[str] = field(default_factory=list)
    void: list[str] = field(default_factory=list)
    """Reasons that the journal gives."""
    adopted: int = 0
    """Trainings that were under way when something failed and came to their end in the journal."""
    under_way: set[tuple[int, int]] = field(default_factory=set)
    """(experiment, attempt) of every training that was."""
    experiments: int = 0
    restarts: int = 0


def of_engine(folder: Path, data: Path, seed: int) -> Record:
    """An engine of our own fails."""
    with Engine.open(folder / "engine") as engine, Census(engine.containers) as census:
        environment = {**_SETTINGS, "DOCKER_HOST": engine.host}
        with Effort.open(
            folder, data, "claude", sound=True, answer_seconds=4.0, environment=environment
        ) as effort:
            record = ordeal(effort, engine, seed)
        record.restarts = engine.lives - 1
        record.violations += census.overdue(GRACE_SECONDS)
    return record


def of_runner(folder: Path, data: Path, seed: int) -> Record:
    """The runner fails; the controller has no engine but by way of it."""
    with Effort.open(
        folder, data, "claude", sound=True, through_runner=True, answer_seconds=4.0, environment=_SETTINGS
    ) as effort:
        assert effort.runner is not None
        effort.runner.revive()
        record = ordeal(effort, effort.runner, seed)
        record.restarts = effort.runner.lives - 1
        record.violations += [*effort.watchman.overdue(), *effort.watchman.doubled()]  # the engine was sound
    return record


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
    record.violations += blamed(effort)
    story = effort.story()
    record.void, record.experiments = story.reasons, len(story.told)
    record.adopted = len(record.under_way & story.trained)
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
    story = effort.story()
    void = story.voided
    due = len(story.told) + (phase in ("between", "proposing"))
    if story.told and story.told[-1].running:
        record.under_way.add((story.told[-1].number, story.told[-1].attempts))
    victim.signal(number)
    time.sleep(away)
    victim.revive()
    began = time.monotonic()
    went_on = _until(lambda: _closed(effort) >= due, process, effort, _ON_SECONDS)
    seconds, voided = time.monotonic() - began, effort.story().voided - void
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
    story = effort.story()
    if not story.told:
        return ""
    match story.told[-1].at:
        case "training_started":
            log = effort.home / "runs" / f"{story.told[-1].number:06d}" / "run.log"
            return "training" if log.exists() and b"training\n" in log.read_bytes() else ""
        case "scoring_started":
            return "confirmation" if effort.watchman.second_worker() else "scoring"
        case "decided" | "committed":
            return "proposing" if story.phase in ("api_answered", "proposal_rehearsed") else "between"
        case _:
            return ""


def _closed(effort: Effort) -> int:
    return sum(told.closed for told in effort.story().told)


def blamed(effort: Effort) -> Iterator[str]:
    """Every proposal that is not made to crash is sound: it is kept or discarded, and nothing else."""
    for told in effort.story().told:
        ran = effort.home / "runs" / f"{told.number:06d}" / "train.py"
        due = ("crash",) if ran.exists() and CRASH in ran.read_text() else (None, "keep", "discard")
        if told.verdict not in (None, *due):
            yield f"experiment {told.number} was blamed: {told.verdict}, {told.cause}"
