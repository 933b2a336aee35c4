"""The real command in its own process, with an environment of its own."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from controller.core.containers.config import SandboxConfig
from controller.core.events import EffortStarted
from controller.sandbox.engine.docker_sandbox import DockerSandbox
from controller.sandbox.inputs import sealed
from controller.store.journal import Journal
from controller.system.clock import SystemClock
from tests.cli.corpus import write_corpus
from tests.support import forked

_OF_AN_INTERPRETER = {"LANG", "LC", "PYTHONCOERCECLOCALE", "PYTHONIOENCODING", "PYTHONUTF8", "PYTHONWARNINGS"}
"""Beginnings of variables that only a start of the interpreter reads."""

PROJECT = Path(__file__).parents[2]
NO_ENGINE = "unix:///nowhere/engine.sock"


@dataclass(frozen=True)
class Said:
    """How one command ended and what it said."""

    status: int
    out: str
    err: str

    def json(self) -> Any:
        assert self.status == 0, self.err
        return json.loads(self.out)

    def refused(self, status: int, *words: str) -> None:
        """One sentence on stderr that holds all of `words`, the right exit status, nothing else."""
        assert self.status == status, self
        lines = self.err.splitlines()
        assert len(lines) == 1, self
        assert lines[0].startswith("glovebox: ") and lines[0].endswith("."), self
        for word in words:
            assert word in lines[0], self
        assert "Traceback" not in self.out


@dataclass(frozen=True)
class Glovebox:
    """Runs `glovebox` on one home, from an empty folder."""

    home: Path
    folder: Path
    environment: Mapping[str, str] = field(default_factory=dict)
    prefix: Sequence[str] = ()
    """Command that runs the command, as another user for instance."""
    umask: int = 0o022

    def __call__(self, *arguments: str, timeout: float = 120, **extra: str) -> Said:
        """`extra` are environment variables."""
        if not self.prefix and not _OF_AN_INTERPRETER & {name.split("_")[0] for name in self._given(extra)}:
            environment = self.env(**extra)
            return Said(*forked.run(arguments, environment, self.folder, self.umask, timeout))
        done = subprocess.run(
            self.command(*arguments),
            env=self.env(**extra),
            cwd=self.folder,
            umask=self.umask,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        return Said(done.returncode, done.stdout, done.stderr)

    def _given(self, extra: Mapping[str, str]) -> set[str]:
        return {*self.environment, *extra}

    def start(self, *arguments: str, **extra: str) -> subprocess.Popen[str]:
        """Start the command and leave it running; stderr is joined to stdout."""
        return subprocess.Popen(
            self.command(*arguments),
            env=self.env(**extra),
            cwd=self.folder,
            umask=self.umask,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def command(self, *arguments: str) -> list[str]:
        return [*self.prefix, sys.executable, "-m", "controller", *arguments]

    def env(self, **extra: str) -> dict[str, str]:
        """Nothing of this machine's settings, keys or proxies; the engine is the one tests run on."""
        ours = {name: os.environ[name] for name in ("PATH", "LANG", "DOCKER_HOST") if name in os.environ}
        return {
            **ours,
            "PYTHONPATH": str(PROJECT),
            "PYTHONDONTWRITEBYTECODE": "1",
            "GLOVEBOX_HOME": str(self.home),
            "GLOVEBOX_JUDGE__LEAK_FRACTION": "0.05",  # honest models: few twins will do
            "GLOVEBOX_NOISE__ENABLED": "false",  # others may well be at work on the machine
            **self.environment,
            **extra,
        }


@pytest.fixture
def glovebox(tmp_path: Path) -> Glovebox:
    """The command on a home that does not exist yet, on a machine whose engine cannot be reached.

    So a sentence about anything else shows that it was found out before the engine was asked.
    """
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    return Glovebox(tmp_path / "home", folder, {"DOCKER_HOST": NO_ENGINE})


@pytest.fixture
def on_engine(engine: None, tmp_path: Path) -> Iterator[Glovebox]:
    """The command on a home that does not exist yet; what it leaves in the engine is removed."""
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    command = Glovebox(tmp_path / "home", folder)
    yield command
    remove_leftovers(command.home)


def begin(home: Path) -> None:
    """An effort `t` in which nothing was run yet."""
    journal = Journal(home, SystemClock())
    journal.append(EffortStarted(tag="t", base_commit="0" * 40))
    journal.close()


def remove_leftovers(home: Path) -> None:
    sandbox = DockerSandbox(sealed(SandboxConfig()), home, SystemClock())
    containers, volumes = sandbox.leftovers()
    sandbox.remove(containers=containers, volumes=volumes)
    sandbox.close()


def no_leftovers(home: Path) -> bool:
    """True if the engine has no container and no volume of this home."""
    sandbox = DockerSandbox(sealed(SandboxConfig()), home, SystemClock())
    try:
        return sandbox.leftovers() == ([], [])
    finally:
        sandbox.close()


@pytest.fixture(scope="session")
def prepared(engine: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A home that `glovebox prepare` put data into, from a folder of links as a model hub makes it."""
    folder = tmp_path_factory.mktemp("prepared")
    write_corpus(folder / "blobs")
    (folder / "corpus").mkdir()
    for path in (folder / "blobs").iterdir():
        (folder / "corpus" / path.name).symlink_to(f"../blobs/{path.name}")
    command = Glovebox(folder / "home", folder, umask=0o077)
    said = command("prepare", "--corpus", "corpus", "--scale", "cpu", timeout=240)
    assert said.status == 0, said
    assert said.err == ""
    assert re.search(r"^read: \d+ documents from (\d+) of \1 files$", said.out, re.MULTILINE), said
    yield command.home
    remove_leftovers(command.home)


@pytest.fixture(scope="session")
def with_data(prepared: Path) -> Callable[[Path], None]:
    """Gives a home the prepared data, as hard links."""

    def link(home: Path) -> None:
        for source in (path for path in (prepared / "data").rglob("*") if path.is_file()):
            target = home / source.relative_to(prepared)
            target.parent.mkdir(parents=True, exist_ok=True)
            os.link(source, target)

    return link
