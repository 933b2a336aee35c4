"""What a rehearsal takes from the training beside it."""

from __future__ import annotations

import statistics
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from controller.core.containers.builders import Files
from controller.core.containers.config import SealedConfig
from controller.core.scoring.runlog import claim
from controller.core.values import RehearsalResult
from controller.sandbox.engine.docker_sandbox import DockerSandbox
from controller.sandbox.inputs import HarnessFiles
from controller.sandbox.rehearsal import ContainerRehearsal, RehearsalConfig
from controller.system.clock import SystemClock
from tests.bench.measures import PROJECT, STEPS, train
from tests.show.live import prepare


@dataclass(frozen=True)
class Beside:
    """Medians over the rounds."""

    result: str
    """Of the last rehearsal."""
    rehearsal_seconds: float
    lost_seconds: float
    """Of training, for each rehearsal: the steps that were not made, in the time they would have taken."""

    def __str__(self) -> str:
        return (
            f"a rehearsal of the baseline takes {self.rehearsal_seconds:.1f} s ({self.result}) beside a "
            f"training on every CPU, and takes {self.lost_seconds:.1f} s from it"
        )


def beside(folder: Path, config: SealedConfig, rounds: int, seconds: float = 30.0) -> Beside:
    """Train alone and beside a rehearsal in turn, `seconds` each."""
    home = folder / "home"
    prepare(home)
    found: list[RehearsalResult] = []
    lost = []
    for number in range(rounds):
        alone = _rate(folder / f"alone-{number}", config, seconds)
        with ThreadPoolExecutor(1) as pool:
            rehearsal = pool.submit(_rehearse, home, config)
            together = _rate(folder / f"beside-{number}", config, seconds)
            found.append(rehearsal.result())
        lost.append(seconds * (1 - together / alone))
    return Beside(found[-1].result, statistics.median(r.seconds for r in found), statistics.median(lost))


def _rate(home: Path, config: SealedConfig, seconds: float) -> float:
    """Steps per second of a training on every CPU."""
    outcome = train(home, config, STEPS.format(seconds=seconds), seconds + 60.0, 0)
    printed = claim((home / "runs" / "0" / "run.log").read_text())
    if outcome.exit_code != 0 or printed.num_steps is None or printed.training_seconds is None:
        raise RuntimeError(f"the training failed: {outcome}")
    return printed.num_steps / printed.training_seconds


def _rehearse(home: Path, config: SealedConfig) -> RehearsalResult:
    with closing(DockerSandbox(config, home, SystemClock())) as sandbox:
        rehearsal = ContainerRehearsal(
            sandbox,
            SystemClock(),
            config=RehearsalConfig(),
            containers=config,
            home=home,
            files=Files(HarnessFiles.materialise(PROJECT / "harness", home).folder, home / "data"),
        )
        return rehearsal.rehearse((PROJECT / "harness" / "train.py").read_text(), threading.Event())
