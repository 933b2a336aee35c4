"""The command: where it listens, how it ends, and what it costs the other verbs."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import time
import urllib.request

import pytest

from tests.support.glovebox import PROJECT, Glovebox, begin


def started(glovebox: Glovebox, *arguments: str) -> tuple[subprocess.Popen[str], str]:
    process = glovebox.start("web", "--port", "0", *arguments)
    assert process.stdout is not None
    return process, process.stdout.readline()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_ends_at_once_although_a_page_is_open(glovebox: Glovebox, number: int) -> None:
    begin(glovebox.home)
    process, said = started(glovebox)
    url = said.split()[-1]
    with urllib.request.urlopen(f"{url}events", timeout=10) as stream:
        assert stream.readline().startswith(b"data: ")
        began = time.monotonic()
        process.send_signal(number)
        assert process.wait(10) == 0
    assert time.monotonic() - began < 5.0
    assert process.stdout is not None and process.stdout.read() == ""
    process.stdout.close()


def test_beyond_loopback_it_makes_a_token_and_says_where(glovebox: Glovebox) -> None:
    begin(glovebox.home)
    process, said = started(glovebox, "--host", "0.0.0.0")
    token = glovebox.home / "web-token"
    assert str(token) in said and token.stat().st_mode & 0o777 == 0o600
    assert token.read_text(encoding="ascii").strip() not in said
    process.terminate()
    assert process.wait(10) == 0
    assert process.stdout is not None
    process.stdout.close()


def test_a_home_that_is_not_there_is_not_made(glovebox: Glovebox) -> None:
    process, _ = started(glovebox)
    process.terminate()
    assert process.wait(10) == 0
    assert not glovebox.home.exists()
    assert process.stdout is not None
    process.stdout.close()


def test_a_port_in_use_is_one_sentence(glovebox: Glovebox) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        glovebox("web", "--port", str(port)).refused(2, f"Port {port} of 127.0.0.1", "--port")


@pytest.mark.parametrize("host", ["no.such.host.invalid", "203.0.113.77", "a" * 70])
def test_an_address_that_is_not_ours_is_one_sentence(glovebox: Glovebox, host: str) -> None:
    glovebox("web", "--port", "0", "--host", host).refused(2, host, "--host")


def test_a_home_that_cannot_hold_the_token_is_one_sentence(glovebox: Glovebox) -> None:
    glovebox("web", "--port", "0", "--host", "0.0.0.0").refused(2, "web-token", "No such file")


def test_other_verbs_do_not_load_the_server() -> None:
    loaded = (
        "import controller.cli, sys; print(sorted({'starlette', 'uvicorn', 'jinja2'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", loaded], cwd=PROJECT, capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"
