"""The same on real containers: `glovebox run` in its own process, against the local API."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from tests.cli.corpus import write_corpus
from tests.show.script import TRAIN
from tests.support.messages_server import MessagesServer

PROJECT = Path(__file__).parents[2]
KEY, NEXT_KEY = "sk-test-never-to-be-seen", "sk-test-of-the-day-after"
UNDERSTUDY = {"GLOVEBOX_ABSENCE__UNDERSTUDY_AFTER_SECONDS": "12"}
SETTINGS = {
    "GLOVEBOX_REPLICATES": '{"baseline": 1, "every": 0}',
    "GLOVEBOX_CLAUDE__MAX_TURNS": "6",
    "GLOVEBOX_CLAUDE__ANSWER_SECONDS": "10",
    "GLOVEBOX_CLAUDE__PATIENCE_SECONDS": "3",
    "GLOVEBOX_ABSENCE__RETRY_SECONDS": "2",
    "GLOVEBOX_NOISE__ENABLED": "false",  # on a busy machine no run would count, and no end come
    "GLOVEBOX_JUDGE__SCORE_TOKENS": "2048",
    "GLOVEBOX_JUDGE__HOLDOUT_SCORE_TOKENS": "1024",
    "GLOVEBOX_JUDGE__LEAK_FRACTION": "0.05",  # an honest model: few twins will do
}


def run(
    home: Path, server: MessagesServer, experiments: int, budget: float, train: str = TRAIN, **changes: str
) -> None:
    """The effort, from where it stands to its limit, with `changes` to the environment.

    Raises CalledProcessError.
    """
    with start(home, server, experiments, budget, train, **changes) as process:
        if process.wait() != 0:
            raise subprocess.CalledProcessError(process.returncode, process.args)


def stopped(home: Path, server: MessagesServer, experiments: int, budget: float) -> tuple[int, str]:
    """The effort, until it stops by itself: exit status and last words."""
    with start(home, server, experiments, budget) as process:
        status = process.wait()
    return status, _log(home).read_text(encoding="utf-8").rstrip().rpartition("\n")[2]


def start(
    home: Path, server: MessagesServer, experiments: int, budget: float, train: str = TRAIN, **changes: str
) -> subprocess.Popen[bytes]:
    """The same, left running. `train`: the first train.py."""
    (home.parent / "train.py").write_text(train, encoding="utf-8")
    environment = {
        **SETTINGS,
        "ANTHROPIC_API_KEY": KEY,
        "GLOVEBOX_CLAUDE__BASE_URL": server.url,
        "GLOVEBOX_TRAIN": str(home.parent / "train.py"),
        **changes,
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


def leaks(home: Path) -> Iterator[str]:
    """Every file in which one of the keys stands."""
    for path in (path for path in home.parent.rglob("*") if path.is_file()):
        content = path.read_bytes()
        if any(key.encode() in content for key in (KEY, NEXT_KEY)):
            yield f"a key stands in {path}"


def _done(home: Path, *arguments: str) -> None:
    with _glovebox(home, {}, *arguments) as process:
        if process.wait() != 0:
            raise subprocess.CalledProcessError(process.returncode, process.args)


def _glovebox(home: Path, environment: Mapping[str, str], *arguments: str) -> subprocess.Popen[bytes]:
    ours = {name: os.environ[name] for name in ("PATH", "LANG", "DOCKER_HOST") if name in os.environ}
    with _log(home).open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "controller", *arguments, "--home", str(home)],
            env={**ours, "PYTHONPATH": str(PROJECT), **environment},
            cwd=home.parent,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
        )


def _log(home: Path) -> Path:
    """What every command said."""
    return home.parent / "glovebox.log"
