"""A real effort on a GPU, from prepared data to figures: what cannot be measured on a machine without one.

With `--device cpu` and a small budget the same runs anywhere, to try the way there.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from controller.core.values import Claim
from controller.store.journal import read_records
from tests.bench.measures import PROJECT
from tests.bench.timeline import EARNEST_SECONDS, Pace, Row, first_step, pace, rows, table, tokens_per_second


@dataclass(frozen=True)
class Measure:
    """One effort, and one try of another train.py beside it."""

    device: str
    experiments: int
    budget: float
    data: Path | None
    """A home whose data/ and glovebox.toml are taken; None: they are prepared."""
    keep: Path | None
    """The home that is made, to stay; None: a temporary one."""
    upstream: Path | None
    replay: Path | None

    def lines(self) -> Iterator[str]:
        """What was found, as it is found. Raises CalledProcessError if a command fails."""
        with self._home() as home:
            self._prepare(home)
            self._glovebox(home, "run", *self._effort())
            yield from self._of_effort(home)
            if self.upstream is not None:
                yield from self._of_upstream(home, self.upstream)

    @contextlib.contextmanager
    def _home(self) -> Iterator[Path]:
        if self.keep is not None:
            self.keep.mkdir(parents=True, exist_ok=True)
            yield self.keep.resolve()
            return
        beside = self.data.resolve().parent if self.data else None  # so that data can be linked
        with tempfile.TemporaryDirectory(dir=beside) as folder:
            yield Path(folder)

    def _prepare(self, home: Path) -> None:
        if (home / "audit.jsonl").exists():
            raise SystemExit(f"{home} holds an effort already; its figures would be mixed with the new ones.")
        if (home / "data").exists():
            return
        if self.data is None:
            self._glovebox(home, "prepare", "--scale", "cpu" if self.device == "cpu" else "gpu")
            return
        shutil.copytree(self.data / "data", home / "data", copy_function=_link)
        if (self.data / "glovebox.toml").exists():
            shutil.copy(self.data / "glovebox.toml", home)

    def _effort(self) -> list[str]:
        agent = f"replay:{self.replay.resolve()}" if self.replay else "tuner"
        limits = ["--experiments", str(self.experiments), "--budget", str(self.budget)]
        return ["--device", self.device, "--agent", agent, "--tag", "bench", *limits]

    def _of_effort(self, home: Path) -> Iterator[str]:
        found = rows(read_records(home))
        yield from (f"gpu: {line}" for line in table(found))
        for row in found:
            yield f"gpu: {_of_run(row, _log(home / 'runs' / f'{row.number:06d}'))}"
        with contextlib.suppress(ValueError):
            told = pace(found)
            yield f"gpu: at {EARNEST_SECONDS:g} s, one in five confirmed: {_pace(told)} (aim: 11.5 and 96 %)"
            yield f"gpu: with the {told.between:.1f} s that lie between them: {_pace(told.all_told)}"

    def _of_upstream(self, home: Path, file: Path) -> Iterator[str]:
        said = self._glovebox(
            home, "try", str(file.resolve()), "--json", "--device", self.device, "--budget", str(self.budget)
        )
        yield from compare(rows(read_records(home))[0], home, json.loads(said))

    def _glovebox(self, home: Path, *arguments: str) -> str:
        command = [sys.executable, "-m", "controller", *arguments, "--home", str(home)]
        # Without a GPU the figures mean nothing, and somebody else at work shall hold nobody up.
        calm = {"GLOVEBOX_REPLICATES": '{"baseline": 1, "every": 0}'}
        if self.device == "cpu":
            calm["GLOVEBOX_NOISE__ENABLED"] = "false"
        done = subprocess.run(
            command, cwd=PROJECT, env={**os.environ, **calm}, check=True, stdout=subprocess.PIPE, text=True
        )
        return done.stdout


def compare(baseline: Row, home: Path, tried: dict[str, Any]) -> Iterator[str]:
    """The other train.py against our baseline: bits per byte and tokens a second."""
    claim = Claim.model_validate(tried["claim"])
    theirs = tokens_per_second(claim, Path(tried["log"]).read_text(encoding="utf-8", errors="replace"))
    assert baseline.outcome is not None
    ours = tokens_per_second(baseline.outcome.claim, _log(home / "runs" / f"{baseline.number:06d}"))
    yield f"gpu: the other file: {tried['verdict']}, val_bpb {tried['val_bpb']}, {_rate(theirs)}"
    if tried["detail"]:
        yield f"gpu: {tried['detail']}"
    if baseline.score is not None and tried["val_bpb"] is not None:
        gain = tried["val_bpb"] - baseline.score.val_bpb
        yield f"gpu: our baseline is better by {gain:+.6f} bits per byte (aim: ≥ 0.005)"
    if ours and theirs:
        yield f"gpu: our baseline does {ours / theirs - 1:+.1%} tokens per second (aim: ≥ 5 %)"


def _of_run(row: Row, log: str) -> str:
    """What a run says of itself."""
    assert row.outcome is not None
    claim, began = row.outcome.claim, first_step(row.outcome.claim)
    told = {
        "start-up": claim.startup_seconds,
        "compiling": claim.compile_seconds,
        "first settled step after": began,
    }
    words = [f"{name} {seconds:.1f} s" for name, seconds in told.items() if seconds is not None]
    steps = f"{claim.num_steps:.0f} steps" if claim.num_steps is not None else "no summary"
    return ", ".join([f"experiment {row.number}: {steps}", _rate(tokens_per_second(claim, log)), *words])


def _pace(told: Pace) -> str:
    return f"{told.an_hour:.2f} experiments an hour, {told.share:.1%} of the time in training"


def _rate(tokens: float | None) -> str:
    return "tokens per second not known" if tokens is None else f"{tokens:,.0f} tokens per second"


def _log(folder: Path) -> str:
    """Empty if it is gone."""
    with contextlib.suppress(OSError):
        return (folder / "run.log").read_text(encoding="utf-8", errors="replace")
    return ""


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # on another file system
        shutil.copy2(source, target)
