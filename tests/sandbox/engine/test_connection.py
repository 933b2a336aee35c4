"""Which engine is talked to: the one that the command `docker` talks to."""

from __future__ import annotations

import hashlib
import json
import socket
import threading
from pathlib import Path

import docker
import pytest

from controller.core.errors import NotReady
from controller.sandbox.engine import connection as engine

SOCKET = "unix:///run/other.sock"
USUAL = "unix:///var/run/docker.sock"


@pytest.fixture
def configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's Docker configuration, with the contexts `other` and `far`; none is chosen."""
    for name in ("DOCKER_HOST", "DOCKER_CONTEXT", "DOCKER_TLS_VERIFY", "DOCKER_CERT_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    (tmp_path / "config.json").write_text("{}")
    for name, host in (("other", SOCKET), ("far", "ssh://me@elsewhere")):
        file = meta(tmp_path, name)
        file.parent.mkdir(parents=True)
        file.write_text(json.dumps({"Name": name, "Metadata": {}, "Endpoints": {"docker": {"Host": host}}}))
    return tmp_path


def meta(configuration: Path, name: str) -> Path:
    return configuration / "contexts" / "meta" / hashlib.sha256(name.encode()).hexdigest() / "meta.json"


@pytest.mark.parametrize(
    ("host", "context", "chosen", "expected"),
    [
        (None, None, None, f"{USUAL} (the usual socket)"),
        (None, None, "other", f"{SOCKET} (Docker context other)"),
        (None, "other", None, f"{SOCKET} (Docker context other)"),
        (None, "default", "other", f"{USUAL} (the usual socket)"),
        ("unix:///mine.sock", "other", "other", "unix:///mine.sock (DOCKER_HOST)"),
        ("unix:///mine.sock", None, "far", "unix:///mine.sock (DOCKER_HOST)"),
        (None, "far", None, r"The Docker context far is an engine on another machine; .*DOCKER_HOST=unix://"),
        (None, None, "gone", r"The Docker context .* does not exist; `docker context ls`"),
        (None, "broken", None, r"The Docker context cannot be read: .*broken"),
    ],
)
def test_the_address_is_found_as_docker_finds_it(
    host: str | None,
    context: str | None,
    chosen: str | None,
    expected: str,
    configuration: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    broken = meta(configuration, "broken")
    broken.parent.mkdir()
    broken.write_text("{")
    for name, value in (("DOCKER_HOST", host), ("DOCKER_CONTEXT", context)):
        if value is not None:
            monkeypatch.setenv(name, value)
    if chosen is not None:
        (configuration / "config.json").write_text(json.dumps({"currentContext": chosen}))
    if expected.startswith("The"):
        with pytest.raises(NotReady, match=expected), engine.engine_call("answer", starting_up=True):
            engine.connect()
    else:
        assert str(engine.address()) == expected


def test_the_engine_of_the_context_is_the_one_that_is_asked(
    configuration: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "engine.sock"
    file = meta(configuration, "other")
    file.write_text(file.read_text().replace(SOCKET, f"unix://{path}"))
    monkeypatch.setenv("DOCKER_CONTEXT", "other")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        heard: list[bytes] = []

        def hear() -> None:
            with listener.accept()[0] as connection:
                heard.append(connection.recv(100))

        thread = threading.Thread(target=hear)
        thread.start()
        with pytest.raises(docker.errors.DockerException):
            engine.connect()
        thread.join(timeout=10)
    assert heard[0].startswith(b"GET /version ")


def test_it_stays_the_same_while_a_process_lives(configuration: Path) -> None:
    first = engine.address()
    (configuration / "config.json").write_text(json.dumps({"currentContext": "other"}))
    assert engine.address() == first
