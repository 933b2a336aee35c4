"""Three of the measurements behind `make bench`, each on real containers."""

from __future__ import annotations

import datetime as dt
import itertools
import math
import os
import statistics
import subprocess
import sys
import tempfile
import textwrap
import threading
from collections.abc import Sequence
from pathlib import Path

from controller.core.containers.builders import Files
from controller.core.containers.config import SealedConfig
from controller.core.events import TrainingFinished, TrainingStarted
from controller.core.scoring.runlog import claim
from controller.core.values import RunOutcome
from controller.ports import Attempt
from controller.sandbox.engine.docker_sandbox import DockerSandbox
from controller.sandbox.inputs import HarnessFiles
from controller.sandbox.training import ContainerTrainer
from controller.store.journal import read_records
from controller.system.clock import SystemClock

PROJECT = Path(__file__).parents[2]

IGNORES_THE_DEADLINE = """
import signal, time
for number in set(signal.Signals) - {signal.SIGKILL, signal.SIGSTOP}:
    signal.signal(number, signal.SIG_IGN)
while True:
    time.sleep(3600)
"""

STEPS = """
import time
import torch

device = "cuda" if torch.cuda.is_available() else "cpu"
torch.manual_seed(0)
layers = [torch.nn.Sequential(torch.nn.Linear(256, 1024), torch.nn.GELU(), torch.nn.Linear(1024, 256))]
model = torch.nn.Sequential(*layers * 4).to(device)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, foreach=True)
x = torch.randn(512, 256, device=device)

def steps_within(seconds):
    started, steps = time.perf_counter(), 0
    while time.perf_counter() - started < seconds:
        loss = (model(x) - x).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        loss.item()  # waits for the device
        steps += 1
    return steps, time.perf_counter() - started

steps_within(3.0)
steps, seconds = steps_within({seconds})
print("torch", torch.__version__)
print(f"num_steps:        {{steps}}")
print(f"training_seconds: {{seconds}}")
"""


def quantile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least `share` of all values do not exceed."""
    return sorted(values)[max(math.ceil(share * len(values)) - 1, 0)]


def train(home: Path, config: SealedConfig, program: str, budget: float, number: int) -> RunOutcome:
    """Run one program as T in a home of its own."""
    folder = home / "runs" / str(number)
    folder.mkdir(parents=True)
    (folder / "train.py").write_text(program)
    (home / "data" / "public").mkdir(parents=True, exist_ok=True)
    attempt = Attempt(str(number), 1, folder / "train.py", folder / "run.log", budget)
    sandbox = DockerSandbox(config, home, SystemClock())
    try:
        trainer = ContainerTrainer(
            sandbox,
            SystemClock(),
            containers=config,
            home=home,
            files=Files(HarnessFiles.materialise(PROJECT / "harness", home).folder, home / "data"),
        )
        try:
            return trainer.train(attempt, threading.Event(), lambda elapsed: None)
        finally:
            trainer.discard(attempt)
    finally:
        sandbox.close()


def kill_errors(config: SealedConfig, runs: int, limit: float) -> list[float]:
    """Container life minus limit, in seconds, for runs that ignore their deadline; by the engine's clock."""
    with tempfile.TemporaryDirectory() as home:
        lives = [
            train(Path(home), config, IGNORES_THE_DEADLINE, limit, number).seconds for number in range(runs)
        ]
    return [life - limit for life in lives]


def sandbox_tax(config: SealedConfig, rounds: int, seconds: float) -> tuple[float, float]:
    """(training steps per second in T, the same outside): medians over alternating rounds.

    Outside is this interpreter's torch; raises RuntimeError if T's is another version.
    """
    program = STEPS.format(seconds=seconds)
    inside, outside = [], []
    with tempfile.TemporaryDirectory() as home:
        for number in range(rounds):
            outcome = train(Path(home), config, program, seconds + 60.0, number)
            log = (Path(home) / "runs" / str(number) / "run.log").read_text()
            native = subprocess.run(
                [sys.executable, "-c", program], capture_output=True, text=True, check=True
            ).stdout
            if outcome.exit_code != 0 or log.splitlines()[0] != native.splitlines()[0]:
                raise RuntimeError(
                    f"not comparable: {textwrap.shorten(log, 200)} and {native.splitlines()[0]}"
                )
            inside.append(_rate(log))
            outside.append(_rate(native))
    return statistics.median(inside), statistics.median(outside)


def _rate(log: str) -> float:
    printed = claim(log)
    assert printed.num_steps is not None
    assert printed.training_seconds is not None
    return printed.num_steps / printed.training_seconds


def overheads(home: Path, experiments: int, budget: float) -> tuple[list[float], list[float]]:
    """Seconds between two trainings' starts minus the limit, and minus the life of the container.

    Runs a real effort at the CPU scale: preparation, training, scoring, decision, commit.
    """
    glovebox("prepare", "--home", home, "--scale", "cpu")
    limits = ("--experiments", experiments, "--budget", budget)
    glovebox("run", "--home", home, "--agent", "tuner", "--device", "cpu", "--tag", "bench", *limits)
    starts: list[dt.datetime] = []
    lives: list[float] = []
    for record in read_records(home):
        if isinstance(record.data, TrainingStarted):
            starts.append(dt.datetime.fromisoformat(record.time))
        elif isinstance(record.data, TrainingFinished):
            lives.append(record.data.outcome.seconds)
    gaps = [(later - earlier).total_seconds() for earlier, later in itertools.pairwise(starts)]
    return [gap - budget for gap in gaps], [gap - life for gap, life in zip(gaps, lives, strict=False)]


def glovebox(*arguments: object) -> None:
    command = [sys.executable, "-m", "controller", *map(str, arguments)]
    settings = {**os.environ, "GLOVEBOX_REPLICATES": '{"baseline": 1, "every": 0}'}
    subprocess.run(command, cwd=PROJECT, check=True, stdout=subprocess.DEVNULL, env=settings)
