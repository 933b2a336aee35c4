"""A person's mistake is one sentence and an exit status, found before the engine is asked for anything."""

from __future__ import annotations

import dataclasses
import fcntl
import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.glovebox import Glovebox
from tests.support.story import tell

NOBODY = 65534


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--agent", "nobody"], ["no agent 'nobody'", "tuner"]),
        (["--agent", "claude"], ["ANTHROPIC_API_KEY", "--agent tuner"]),
        (["--agent", "replay:"], ["replay:DIR"]),
        (["--agent", "replay:absent"], ["absent", "not a folder"]),
        (["--budget", "0"], ["budget.wall_seconds", "greater than 0"]),
        (["--budget", "-20"], ["budget.wall_seconds", "greater than 0"]),
        (["--budget", "nan"], ["budget.wall_seconds"]),
        (["--budget", "inf"], ["budget.wall_seconds"]),
        (["--experiments", "0"], ["limits.experiments"]),
        (["--hours", "0"], ["limits.hours"]),
        (["--device", "tpu"], ["device", "'gpu'"]),
        (["--tag", "no..branch~"], ["tag", "not a valid branch name"]),
    ],
)
def test_a_wrong_option_of_run(glovebox: Glovebox, arguments: list[str], words: list[str]) -> None:
    glovebox("run", *arguments).refused(2, *words)
    assert not (glovebox.home / "audit.jsonl").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ["run", "--budget", "soon"],
        ["run", "--faster"],
        ["show", "first"],
        ["show"],
        ["show", "3", "--proposal", "3"],
        ["try"],
        ["dance"],
    ],
)
def test_a_command_line_that_makes_no_sense(glovebox: Glovebox, arguments: list[str]) -> None:
    said = glovebox(*arguments)
    assert said.status == 2
    assert "Error: " in said.err and "Traceback" not in said.err
    assert not glovebox.home.exists()


def test_a_mistaken_agent_leaves_no_home_behind(glovebox: Glovebox) -> None:
    glovebox("run", "--agent", "nobody").refused(2)
    assert not glovebox.home.exists()


def test_a_replay_folder_without_programs(glovebox: Glovebox) -> None:
    (glovebox.folder / "ideas").mkdir()
    glovebox("run", "--agent", "replay:ideas").refused(2, "ideas", "*.py")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"budget = [", ["glovebox.toml", "cannot be read"]),
        (b"\nagent = '\xff'", ["glovebox.toml, line 2", "0xff is not UTF-8; save"]),
        ("agent = ''".encode("utf-16"), ["glovebox.toml is UTF-16; save it as UTF-8"]),
        (b"\xef\xbb\xbf\nagent = x\n", ["glovebox.toml", "line 2"]),
        (b"colour = 'red'", ["no setting colour"]),
        (b"slots = 2", ['The setting slots is wrong: it is "auto", or a list']),
        (b"[[slots]]\ncpus = '3-1'\n", ["The setting slots.0.cpus is wrong: '3-1' is not a list of CPUs"]),
        (
            b"[[slots]]\ncpus = '0'\n[[slots]]\n",
            ["each slot has to name its GPU"],
        ),
        (b"[[slots]]\ncpus = '0'\n[[slots]]\ncpus = '0,1'\n", ["the CPU 0 is in two slots"]),
        (b"[[slots]]\ngpu = ['0']\n[[slots]]\ngpu = ['0']\n", ["the GPU 0 is named twice"]),
        (b"[[slots]]\ncpus = '0'\n[[slots]]\ncpus = '1-2'\n", ["as many CPUs as the others"]),
        (b"slots = 'auto'\n[sandbox]\ngpu = ['0']", ["slots is wrong: name the GPUs here or in sandbox.gpu"]),
        (b"device = 'cpu'\n[[slots]]\ngpu = ['0']", ["the slots name GPUs, but device is cpu"]),
        (b"device = 'gpu'\n[[slots]]\ncpus = '0'", ["the slots name no GPU, but device is gpu"]),
        (b"[sandbox]\nimages = 'x'", ["no setting sandbox.images"]),
        (b"[sandbox.holder]\nmemory = 1", ["no setting sandbox.holder; docs/settings.md lists"]),
        (b"[trainer]\nlog_head_bytes = 1", ["no setting trainer; docs/settings.md lists"]),
        (b"[budget]\nwall_seconds = 'long'", ["budget.wall_seconds", "number"]),
        (b"budget = 20", ["budget"]),
    ],
)
def test_an_unusable_settings_file(glovebox: Glovebox, content: bytes, words: list[str]) -> None:
    glovebox.home.mkdir()
    (glovebox.home / "glovebox.toml").write_bytes(content)
    glovebox("run").refused(2, *words)
    assert os.listdir(glovebox.home) == ["glovebox.toml"]


def test_a_setting_in_the_environment_that_cannot_be(glovebox: Glovebox) -> None:
    glovebox("run", GLOVEBOX_BUDGET__WALL_SECONDS="-1").refused(2, "budget.wall_seconds")
    glovebox("run", GLOVEBOX_SANDBOX="no json").refused(2, "sandbox", "JSON")
    glovebox("run", GLOVEBOX_NOTIFY__ON="keep").refused(2, "notify", "JSON")
    glovebox("run", GLOVEBOX_CLAUDE__BASE_URL="ftp://x").refused(
        2, "claude.base_url is wrong: it must begin with"
    )
    glovebox("run", GLOVEBOX_CLAUDE__BASE_URL="http://a:b@x").refused(
        2, "claude.base_url", "not hold a password"
    )


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("GLOVEBOX_LIMTS__DOLLARS", ["no setting limts", "limits"]),
        ("GLOVEBOX_AGNET", ["no setting agnet", "agent"]),
        ("GLOVEBOX_MONEY__DOLLARS", ["no setting money", "docs/settings.md"]),
        ("GLOVEBOX_LIMITS__DOLARS", ["no setting limits.dolars"]),
        ("GLOVEBOX_SANDBOX__JUDGE__MEMORY", ["no setting sandbox.judge"]),
        ("GLOVEBOX_JUDGE__LEAK_REACH", ["no setting judge.leak_reach"]),
    ],
)
def test_a_variable_that_was_meant_to_be_a_setting(glovebox: Glovebox, name: str, words: list[str]) -> None:
    """A limit that nobody noticed was none is found out when the money is gone."""
    dataclasses.replace(glovebox, environment={**glovebox.environment, name: "3"})("run").refused(2, *words)
    (glovebox.folder / ".env").write_text(f"{name}=3\n")
    glovebox("run").refused(2, *words)


def test_a_settings_file_may_begin_with_a_byte_order_mark(glovebox: Glovebox) -> None:
    glovebox.home.mkdir()
    (glovebox.home / "glovebox.toml").write_bytes(b"\xef\xbb\xbfagent = 'nobody'\r\n")
    glovebox("run").refused(2, "no agent", "nobody")


def test_a_settings_file_that_is_no_file_is_not_waited_for(glovebox: Glovebox) -> None:
    glovebox.home.mkdir()
    os.mkfifo(glovebox.home / "glovebox.toml")
    glovebox("status", timeout=30).refused(2, "glovebox.toml is a named pipe")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, ["There is no train.py", "mine.py"]),
        (b"\nmodel = '\xff'", ["mine.py", "line 2", "0xff", "UTF-8"]),
        (b"# coding: klingon\nmodel = 1", ["mine.py", "klingon"]),
        (b"model = '\x00'", ["mine.py", "null"]),
        (b"def build_model(:\n", ["mine.py", "line 1"]),
        (b"print('hello')\n", ["mine.py", "build_model"]),
        (b"", ["mine.py", "empty"]),
    ],
)
def test_a_train_py_that_cannot_be_run(glovebox: Glovebox, content: bytes | None, words: list[str]) -> None:
    if content is not None:
        (glovebox.folder / "mine.py").write_bytes(content)
    glovebox("try", "mine.py").refused(2, *words)
    glovebox("run", GLOVEBOX_TRAIN="mine.py").refused(2, *words)
    assert not (glovebox.home / "audit.jsonl").exists() and not (glovebox.home / "tries").exists()


def test_instructions_that_are_no_text(glovebox: Glovebox) -> None:
    (glovebox.folder / "mine.md").write_bytes(b"Try\nt\xfcrme.\n")
    glovebox("run", GLOVEBOX_PROGRAM="mine.md").refused(
        2, "mine.md, line 2: the byte 0xfc is not UTF-8; save"
    )


def test_a_key_that_can_be_none(glovebox: Glovebox) -> None:
    said = glovebox("run", "--agent", "claude", ANTHROPIC_API_KEY="“sk-ant-secret”")
    said.refused(2, "ANTHROPIC_API_KEY holds no key")
    assert "secret" not in said.err
    (glovebox.folder / "key").write_bytes(b"\xef\xbb\xbfsk-ant\xff")
    said = glovebox("run", "--agent", "claude", GLOVEBOX_ANTHROPIC_API_KEY_FILE="key")
    said.refused(2, "key file key holds no key")


def test_a_home_whose_name_is_no_text(glovebox: Glovebox) -> None:
    """The engine would be told another name."""
    glovebox("status", "--home", os.fsdecode(b"gr\xf6\xdfe")).refused(2, "no UTF-8; choose another folder")


def test_a_corpus_or_a_scale_that_does_not_exist(glovebox: Glovebox) -> None:
    glovebox("prepare", "--corpus", "absent").refused(2, "no corpus 'absent'", "stdlib", "climbmix")
    glovebox("prepare", "--scale", "huge").refused(2, "no scale 'huge'", "cpu, small, medium or gpu")


def test_another_tag_in_a_used_home(glovebox: Glovebox) -> None:
    tell(glovebox.home)
    before = (glovebox.home / "audit.jsonl").read_bytes()
    glovebox("run", "--tag", "other").refused(2, "belongs to the effort test", "--home")
    assert (glovebox.home / "audit.jsonl").read_bytes() == before


def test_an_experiment_that_is_not_there(glovebox: Glovebox) -> None:
    tell(glovebox.home)
    glovebox("show", "5").refused(2, "no experiment 5", "glovebox log")
    glovebox("show", "--proposal", "99").refused(2, "no proposal 99")


@pytest.mark.parametrize("verb", [["status"], ["log"], ["show", "0"], ["report"], ["verify"]])
def test_reading_a_home_in_which_nothing_was_run(glovebox: Glovebox, verb: list[str]) -> None:
    glovebox(*verb).refused(2, "No effort", "glovebox run")
    assert not glovebox.home.exists(), "looking at a home must not make it"


@pytest.mark.parametrize("verb", [["run"], ["prepare"], ["try", "mine.py"]])
def test_no_engine(glovebox: Glovebox, verb: list[str]) -> None:
    (glovebox.folder / "mine.py").write_text("model = None\n")
    glovebox(*verb).refused(3, "engine does not answer", "make engine")
    assert not (glovebox.home / "audit.jsonl").exists()


def test_an_address_of_the_engine_that_is_none(glovebox: Glovebox) -> None:
    glovebox("run", DOCKER_HOST="the big one").refused(3, "DOCKER_HOST")


def test_doctor_without_an_engine_names_everything_that_is_missing(glovebox: Glovebox) -> None:
    said = glovebox("doctor", "--json")
    assert said.status == 3 and said.err == ""
    assert '"check": "engine"' in said.out and "glovebox prepare" in said.out
    assert not glovebox.home.exists()


@pytest.mark.parametrize(
    ("agent", "given", "said"),
    [
        ("claude", "", "FAIL None, and the agent claude needs one: set ANTHROPIC_API_KEY."),
        ("claude", "schlüssel", "FAIL The variable ANTHROPIC_API_KEY holds no key: "),
        ("claude", "  ", "FAIL None, and the agent claude needs one"),
        ("claude", "key", "ok from ANTHROPIC_API_KEY"),
        ("tuner", "", "ok none; only the agent claude needs one"),
        ("nobody", "", "ok none; only the agent claude needs one"),
    ],
)
def test_each_line_of_doctor_is_true_by_itself(agent: str, given: str, said: str, glovebox: Glovebox) -> None:
    lines = glovebox("doctor", GLOVEBOX_AGENT=agent, ANTHROPIC_API_KEY=given).out.splitlines()
    [key] = [" ".join(line.split()) for line in lines if line.split()[1] == "key"]
    status, _, detail = said.partition(" ")
    assert key.startswith(f"{status} key {detail}")


def test_a_home_in_use(glovebox: Glovebox) -> None:
    tell(glovebox.home)
    (glovebox.folder / "mine.py").write_text("model = None\n")
    with (glovebox.home / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for verb in (["run"], ["prepare"], ["try", "mine.py"]):
            glovebox(*verb).refused(2, "in use", "--home")
        assert glovebox("status", "--json").json()["running"] is True
        assert glovebox("health").status == 0
    assert glovebox("status", "--json").json()["running"] is False
    assert glovebox("health").status == 3


def test_a_home_that_is_a_file(glovebox: Glovebox) -> None:
    glovebox.home.write_text("not a folder")
    glovebox("run").refused(2, "cannot be written to", "--home")
    assert glovebox.home.read_text() == "not a folder"


def test_a_home_on_a_read_only_disk(glovebox: Glovebox) -> None:
    glovebox.home.mkdir()
    script = f'mount -t tmpfs -o ro none {glovebox.home} && exec "$@"'
    command = ["unshare", "--mount", "sh", "-c", script, "sh", *glovebox.command("run")]
    done = subprocess.run(
        command, env=glovebox.env(), cwd=glovebox.folder, capture_output=True, text=True, check=False
    )
    if "unshare:" in done.stderr or "mount:" in done.stderr:
        pytest.skip(f"this machine does not let us mount: {done.stderr.strip()}")
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "cannot be written to" in done.stderr


@pytest.fixture
def other_user(glovebox: Glovebox) -> Iterator[Glovebox]:
    """The command for a user without rights: another one than root, who may still read what is installed."""
    folder = Path(tempfile.mkdtemp(prefix="glovebox-"))  # pytest's own folders let nobody else in
    folder.chmod(0o777)
    command = dataclasses.replace(glovebox, home=folder / "home", folder=folder)
    if os.getuid() == 0:
        read = "+dac_read_search"
        ids = [f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
        prefix = ["setpriv", *ids, f"--inh-caps={read}", f"--ambient-caps={read}"]
        command = dataclasses.replace(command, prefix=prefix)
    try:
        if not shutil.which("setpriv") or (said := command("version")).status != 0:
            pytest.skip("this machine does not let us be another user")
        assert said.err == ""
        yield command
    finally:
        shutil.rmtree(folder)


def test_a_user_who_may_not_use_the_engine(other_user: Glovebox) -> None:
    path = other_user.folder / "engine.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        path.chmod(0o600 if os.getuid() == 0 else 0)
        said = other_user("run", DOCKER_HOST=f"unix://{path}")
    said.refused(3, "may not use the container engine", "group `docker`")


def test_a_home_that_cannot_be_written_to(other_user: Glovebox) -> None:
    tell(other_user.home)
    other_user.home.chmod(0o555)
    (other_user.home / "lock").touch(mode=0o444)
    other_user("run").refused(2, "cannot be written to", "--home")
    assert len(other_user("log", "--json").json()) == 5, "reading it is allowed"
    other_user("report").refused(2, "report", "cannot be written")
    other_user.home.chmod(0o755)


def test_a_home_that_cannot_be_made(other_user: Glovebox) -> None:
    other_user.folder.chmod(0o555)
    other_user("run").refused(2, "cannot be written to", "--home")
    assert "cannot be written to" in other_user("doctor").out
    other_user.folder.chmod(0o777)


def test_a_journal_that_cannot_be_read(glovebox: Glovebox) -> None:
    (glovebox.home / "audit.jsonl").mkdir(parents=True)
    for verb in ("run", "status", "verify"):
        glovebox(verb).refused(2, "cannot be read")
