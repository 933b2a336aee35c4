"""The same on real containers: `glovebox run` in its own process, against the local API."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from tests.cli.corpus import write_corpus
from tests.messages_server import MessagesServer
from tests.show.script import TRAIN

PROJECT = Path(__file__).parents[2]
KEY = "sk-test-never-to-be-seen"
SETTINGS = {
    "GLOVEBOX_CLAUDE__MAX_TURNS": "6",
    "GLOVEBOX_CLAUDE__ANSWER_SECONDS": "4",
    "GLOVEBOX_CLAUDE__PATIENCE_SECONDS": "3",
    "GLOVEBOX_ABSENCE__RETRY_SECONDS": "2",
    "GLOVEBOX_ABSENCE__UNDERSTUDY_AFTER_SECONDS": "3",
    "GLOVEBOX_REHEARSAL__SECONDS": "20",
    "GLOVEBOX_JUDGE__SCORE_TOKENS": "2048",
    "GLOVEBOX_JUDGE__HOLDOUT_SCORE_TOKENS": "1024",
    "GLOVEBOX_JUDGE__LEAK_FRACTION": "0.05",  # an honest model: few twins will do
}


def run(home: Path, server: MessagesServer, experiments: int, budget: float) -> None:
    """The effort, from where it stands to its limit. Raises CalledProcessError."""
    with start(home, server, experiments, budget) as process:
        if process.wait() != 0:
            raise subprocess.CalledProcessError(process.returncode, process.args)


def start(home: Path, server: MessagesServer, experiments: int, budget: float) -> subprocess.Popen[bytes]:
    """The same, left running."""
    (home.parent / "train.py").write_text(TRAIN, encoding="utf-8")
    environment = {
        **SETTINGS,
        "ANTHROPIC_API_KEY": KEY,
        "GLOVEBOX_CLAUDE__BASE_URL": server.url,
        "GLOVEBOX_TRAIN": str(home.parent / "train.py"),
    }
    limits = ("--experiments", str(experiments), "--budget", f"{budget:g}")
    return _glovebox(
        home, environment, "run", "--agent", "claude", "--device", "cpu", "--tag", "show", *limits
    )


def prepare(home: Path) -> None:
    """Data at the CPU scale, from a small corpus."""
    write_corpus(home.parent / "corpus")
    _done(home, "prepare", "--corpus", str(home.parent / "corpus"), "--scale", "cpu")


def remove_leftovers(home: Path) -> None:
    _done(home, "reap")


def _done(home: Path, *arguments: str) -> None:
    with _glovebox(home, {}, *arguments) as process:
        if process.wait() != 0:
            raise subprocess.CalledProcessError(process.returncode, process.args)


def _glovebox(home: Path, environment: Mapping[str, str], *arguments: str) -> subprocess.Popen[bytes]:
    ours = {name: os.environ[name] for name in ("PATH", "LANG", "DOCKER_HOST") if name in os.environ}
    with (home.parent / "glovebox.log").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "controller", *arguments, "--home", str(home)],
            env={**ours, "PYTHONPATH": str(PROJECT), **environment},
            cwd=home.parent,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
