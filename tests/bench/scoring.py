"""The scoring pipeline at the GPU scale, without a GPU: real exchange, real judge, prepared logits.

What is measured is everything but the model: that logits get from a worker into the exchange, and from there
through the judge's checks and arithmetic, 8192 numbers for each token. Judge and workers are containers as
they always are, sealed, with their tmpfs volumes between them.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
import threading
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from controller.core.containers import builders, volumes
from controller.core.containers.builders import Files
from controller.core.containers.config import SealedConfig
from controller.core.containers.names import ContainerNames
from controller.core.containers.spec import ContainerSpec, Mount
from controller.core.containers.volumes import EXCHANGES, Exchange
from controller.core.scoring.config import JudgeConfig
from controller.sandbox.engine.docker_sandbox import DockerSandbox
from controller.system.clock import SystemClock

PROJECT = Path(__file__).parents[2]
SIDES = Path(__file__).with_name("scoring_sides.py")
LIFE_SECONDS = 3600.0
VOCAB = 8192
BEFORE = "6a0ec67"
"""The last commit whose workers answered in float32 and wrote one batch after the other."""


class Stage(NamedTuple):
    """What one worker was asked, and how long it took."""

    name: str
    seconds: float
    cpu: float
    """Seconds of the judge's CPU time."""
    tokens: int
    """That the worker had to look at."""
    answers: int
    """For which it was asked for logits."""
    bytes: int
    """Of logits."""

    def __str__(self) -> str:
        rate = self.bytes / 1e9 / self.seconds
        return f"{self.seconds:.1f} s for {self.tokens / 1e6:.2f}M tokens, {rate:.2f} GB/s"

    def details(self) -> str:
        each = 1e9 * self.seconds / self.answers / VOCAB
        return (
            f"{self}; {self.answers / 1e6:.2f}M answers, {self.bytes / 1e9:.1f} GB, {each:.2f} ns a logit; "
            f"the judge used {self.cpu:.1f} s of CPU time"
        )


def harness_of(commit: str | None, folder: Path) -> Path | None:
    """The harness as it is, or in a copy as it was; None if this clone does not reach back so far."""
    if commit is None:
        return PROJECT / "harness"
    archive = subprocess.run(
        ["git", "archive", commit, "harness"], cwd=PROJECT, capture_output=True, check=False
    )
    if archive.returncode != 0:
        return None
    subprocess.run(["tar", "x", "-C", folder], input=archive.stdout, check=True)
    return folder / "harness"


def measure(config: SealedConfig, harness: Path, tokens: int) -> list[Stage]:
    """Scoring and confirmation of so many tokens. Raises RuntimeError if a side fails."""
    with tempfile.TemporaryDirectory() as home:
        place = ContainerNames(Path(home).resolve(), "try")
        config = config.model_copy(update={"empty_caches": False})  # all three are ours
        sandbox = DockerSandbox(config, place.home, SystemClock())
        names = [place.name(names.worker) for names in EXCHANGES]
        try:
            for names_ in EXCHANGES:
                for volume in volumes.exchange_volumes(config, place, names_, LIFE_SECONDS):
                    sandbox.create_volume(volume)
            for exchange in EXCHANGES:
                sandbox.start(_worker(config, place, harness, exchange))
            judge = _judge(config, place, harness, tokens)
            began = sandbox.start(judge)
            end = sandbox.wait(judge.name, deadline=began + LIFE_SECONDS, stop=threading.Event())
            said = sandbox.output(judge.name, 1 << 16).decode()
            if end.exit_code != 0:
                worker = sandbox.output(names[0], 1 << 12).decode()
                raise RuntimeError(f"the judge ended with status {end.exit_code}: {said} {worker}")
            return [_stage(line) for line in said.splitlines()]
        finally:
            sandbox.remove(
                containers=[*names, place.name("judge")],
                volumes=[place.name(name) for names_ in EXCHANGES for name in names_[1:]],
            )
            sandbox.close()


def _stage(line: str) -> Stage:
    told = json.loads(line)
    return Stage(told.pop("stage"), **told)


def _sides(harness: Path) -> tuple[Mount, ...]:
    files = [SIDES, *sorted(harness.glob("*.py"))]
    return tuple(Mount(str(file), f"/glovebox/{file.name}") for file in files)


def _command(side: str, folders: dict[str, str], *more: object) -> tuple[str, ...]:
    script = ("python", "/glovebox/scoring_sides.py", side, json.dumps(folders), *map(str, more))
    return ("exec", "--limit", str(LIFE_SECONDS), "--", *script)


def _worker(config: SealedConfig, place: ContainerNames, harness: Path, names: Exchange) -> ContainerSpec:
    files = Files(harness, harness)
    spec = builders.worker(config, place, files, JudgeConfig(), names, train=SIDES, seed=42)
    mounts = (
        *_sides(harness),
        Mount(place.name(names.requests), "/requests", volume=True),
        Mount(place.name(names.replies), "/replies", read_only=False, volume=True),
    )
    command = _command("worker", {"requests": "/requests", "replies": "/replies"})
    return replace(
        spec, command=command, mounts=mounts, life_seconds=LIFE_SECONDS, waits=False, streamed=False
    )


def _judge(config: SealedConfig, place: ContainerNames, harness: Path, tokens: int) -> ContainerSpec:
    files = Files(harness, harness)
    spec = builders.judge(config, place, files, JudgeConfig(), seed=5, draw=None, row_tokens=1)
    folders = {
        f"{prefix}{kind}": f"/{name}"
        for prefix, names in zip(("", "second_"), EXCHANGES, strict=True)
        for kind, name in (("requests", names.requests), ("replies", names.replies))
    }
    between = [mount for mount in spec.mounts if mount.volume]
    return replace(
        spec,
        command=_command("judge", folders, tokens),
        mounts=(*_sides(harness), *between),
        life_seconds=LIFE_SECONDS,
        waits=False,
    )
