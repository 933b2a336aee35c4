"""The API key reaches the agent and nothing else (A5)."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from controller import settings
from controller.app import agent as choose
from controller.core.containers.names import LABEL_HOME, ContainerNames
from controller.core.errors import UserError
from tests.cli.test_end_to_end import make_effort, train_py
from tests.support.glovebox import Glovebox, remove_leftovers
from tests.support.messages_server import Fail, MessagesServer

KEY = "sk-ant-a-key-that-is-none"


@pytest.fixture
def key_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file with the key, in an environment without one."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ANTHROPIC_API_KEY", raising=False)
    path = tmp_path / "key"
    path.write_text(KEY + "\n")
    path.chmod(0o600)
    return path


def test_a_key_may_come_from_a_file(key_file: Path) -> None:
    config = settings.load(anthropic_api_key_file=key_file)
    key = config.api_key()
    assert key is not None and key.get_secret_value() == KEY
    assert choose.make_agent(config).name == "claude"
    assert KEY not in repr(config) + config.model_dump_json()


def test_the_environment_comes_before_the_file(key_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANTHROPIC_API_KEY", "other")
    key = settings.load(anthropic_api_key_file=key_file).api_key()
    assert key is not None and key.get_secret_value() == "other"


def test_an_empty_file_is_no_key(key_file: Path) -> None:
    key_file.write_text("\n", encoding="utf-8")
    assert choose.make_agent(settings.load(anthropic_api_key_file=key_file)).name == "tuner"


@pytest.mark.parametrize("content", [None, "k\u00e9y"])
def test_a_file_that_is_no_good_is_named_and_not_quoted(key_file: Path, content: str | None) -> None:
    key_file.unlink()
    if content is not None:
        key_file.write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match=f"The key file {key_file}") as caught:
        choose.make_agent(settings.load(anthropic_api_key_file=key_file))
    assert caught.value.__cause__ is None or "key" not in str(caught.value.__cause__).replace(
        str(key_file), ""
    )


def test_doctor_says_where_the_key_is_and_who_can_read_it(glovebox: Glovebox, key_file: Path) -> None:
    def key_check(**environment: str) -> tuple[bool, str]:
        command = replace(glovebox, environment={**glovebox.environment, **environment})
        checks = json.loads(command("doctor", "--json").out)
        return next((check["ok"], check["detail"]) for check in checks if check["check"] == "key")

    file = {"GLOVEBOX_ANTHROPIC_API_KEY_FILE": str(key_file)}
    assert key_check(**file) == (True, f"from {key_file}")
    assert key_check(ANTHROPIC_API_KEY=KEY) == (True, "from ANTHROPIC_API_KEY")
    assert key_check()[0]
    key_file.chmod(0o644)
    ok, detail = key_check(**file)
    assert not ok and f"chmod 600 {key_file}" in detail


class Onlooker:
    """Refuses every request, with the key in its words; looks at the machine while it is asked."""

    def __init__(self, home: Path) -> None:
        self.seen: list[str] = []
        self._home = home

    def __call__(self, _body: object) -> Fail:
        containers = self._containers()
        self.seen += [*self._processes(), containers]
        if "trainer" not in containers:
            return Fail(529, "overloaded_error", f"busy with {KEY}")  # until a run is under way
        return Fail(401, "authentication_error", f"invalid x-api-key: {KEY}")

    def _processes(self) -> Iterator[str]:
        """Every command line, and the environment of every process but the controller and this one."""
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                command = (folder / "cmdline").read_bytes()
                yield command.decode(errors="replace")
                if b"controller\0run" not in command and folder.name != str(os.getpid()):
                    yield (folder / "environ").read_text(errors="replace")
            except OSError:
                continue  # it ended, or is not ours

    def _containers(self) -> str:
        mine = f"label={LABEL_HOME}={ContainerNames(self._home, '').home_id}"
        names = subprocess.run(["docker", "ps", "-q", "--filter", mine], capture_output=True, check=True)
        if not names.stdout:
            return ""
        inspect = ["docker", "inspect", *names.stdout.decode().split()]
        return subprocess.run(inspect, capture_output=True, check=False, text=True).stdout


@pytest.mark.engine
@pytest.mark.slow
def test_the_key_is_nowhere_but_in_the_process_that_needs_it(
    engine: None, tmp_path: Path, with_data: Callable[[Path], None]
) -> None:
    command, run = make_effort(tmp_path, with_data, train_py(), [])
    run[run.index("--agent") + 1] = "claude"
    run[run.index("--experiments") + 1] = "2"
    onlooker, children = Onlooker(command.home), tmp_path / "children"
    children.mkdir()
    (children / "git").write_text(f'#!/bin/sh\nenv >> {children}/seen\nexec {shutil.which("git")} "$@"\n')
    (children / "git").chmod(0o755)
    path = f"{children}:{os.environ['PATH']}"
    try:
        with MessagesServer(onlooker) as server:
            theirs = {"ANTHROPIC_API_KEY": KEY, "GLOVEBOX_CLAUDE__BASE_URL": server.url, "PATH": path}
            said = command(*run, **theirs, timeout=240)
            assert server.received[0].headers["x-api-key"] == KEY
    finally:
        remove_leftovers(command.home)
    assert said.status == 2 and "ANTHROPIC_API_KEY" in said.err, said
    assert "trainer" in onlooker.seen[-1]
    assert KEY not in said.out + said.err + "".join(onlooker.seen)
    inherited = (children / "seen").read_text()
    assert "GLOVEBOX_CLAUDE__BASE_URL=" in inherited and KEY not in inherited, "a child got it"
    files = [path for path in command.home.rglob("*") if path.is_file() and not path.is_symlink()]
    assert len(files) > 10
    assert not [path for path in files if KEY.encode() in path.read_bytes()]
