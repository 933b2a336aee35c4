"""A command whose streams or terminal are not what one expects ends with a sentence, or goes on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.glovebox import PROJECT, Glovebox, begin


def through_bash(glovebox: Glovebox, redirection: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = ["bash", "-c", f'"$@" {redirection}', "bash", *glovebox.command(*arguments)]
    return subprocess.run(
        command, env=glovebox.env(), cwd=glovebox.folder, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize(
    ("closed", "status", "verb"),
    [(">&-", 0, ["log"]), ("2>&-", 2, ["run", "--tag", "other"]), ("<&- >&- 2>&-", 2, ["show", "0"])],
)
def test_closed_streams_change_no_exit_status(
    glovebox: Glovebox, closed: str, status: int, verb: list[str]
) -> None:
    begin(glovebox.home)
    journal = (glovebox.home / "audit.jsonl").read_bytes()
    done = through_bash(glovebox, closed, *verb)
    assert (done.returncode, "Traceback" in done.stdout + done.stderr) == (status, False)
    assert (glovebox.home / "audit.jsonl").read_bytes() == journal, "it never takes the place of a stream"


@pytest.mark.parametrize("verb", [["version"], ["log", "--json"]])
def test_output_that_finds_no_room_is_a_failure(glovebox: Glovebox, verb: list[str]) -> None:
    begin(glovebox.home)
    done = through_bash(glovebox, ">/dev/full", *verb)
    assert done.returncode == 3 and done.stderr.count("\n") == 1
    assert "No space left" in done.stderr


WAITS = """
from controller.system.signals import stop_on_signals
stop = stop_on_signals()
print("ready", flush=True)
print("asked" if stop.wait(1.0) else "not asked")
"""


@pytest.mark.parametrize(("prefix", "said"), [([], "asked"), (["nohup"], "not asked")])
def test_a_terminal_that_is_closed_stops_what_was_not_to_outlive_it(
    tmp_path: Path, prefix: list[str], said: str
) -> None:
    environment = {**os.environ, "PYTHONPATH": str(PROJECT)}
    command = [*prefix, sys.executable, "-c", WAITS]
    with subprocess.Popen(
        command, env=environment, cwd=tmp_path, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGHUP)
        assert process.stdout.read() == f"{said}\n"
    assert process.returncode == 0


def test_ctrl_c_while_it_is_still_being_loaded_leaves_no_traceback(glovebox: Glovebox) -> None:
    (glovebox.folder / "typer.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGINT)\n")
    done = subprocess.run(
        glovebox.command("version"),
        env=glovebox.env(PYTHONPATH=f"{glovebox.folder}:{PROJECT}"),
        cwd=glovebox.folder,
        capture_output=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, b"", b"")


def test_who_is_to_stay_says_what_a_person_has_to_do_and_waits(glovebox: Glovebox) -> None:
    begin(glovebox.home)
    process = glovebox.start("run", "--tag", "other", "--agent", "tuner", "--stay")
    assert process.stdout is not None
    line = process.stdout.readline()
    assert "needs_a_person" in line and "belongs to the effort t" in line
    assert process.poll() is None
    glovebox("health").refused(3, "No controller")
    process.terminate()
    assert process.wait(60) == 2
    assert "belongs to the effort t" in process.stdout.read()
    process.stdout.close()
