"""A reaper and an engine that does not obey: what cannot be killed spares nothing else."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import requests

from controller.core.containers.names import LABEL_DEADLINE, LABEL_EXPERIMENT, LABEL_HOME
from controller.sandbox.engine.reaper import Reaper

SLOW_SECONDS = 30.0


class Engine(ThreadingHTTPServer):
    """Lists what is long due. The first hangs, the second refuses, the third cannot be inspected."""

    daemon_threads = True
    names = ("a-hangs", "b-refuses", "c-odd", "d-dies", "e-undated")

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.killed: set[str] = set()
        self.others_dead = threading.Event()

    def kill(self, name: str) -> int:
        if name == "a-hangs":
            return 204 if self.others_dead.wait(SLOW_SECONDS) else 500
        if name == "b-refuses":
            return 500
        self.killed.add(name)
        if len(self.killed) == 3:
            self.others_dead.set()
        return 204


def listed(name: str) -> dict[str, object]:
    due = "nan" if name == "e-undated" else "1"
    return {
        "Id": name,
        "State": "running",
        "Labels": {LABEL_DEADLINE: due, LABEL_HOME: "h", LABEL_EXPERIMENT: "1"},
    }


class Answer(BaseHTTPRequestHandler):
    server: Engine

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path.endswith("/version"):
            self._say(200, {"ApiVersion": "1.43"})
        elif path.endswith("/containers/json"):
            self._say(200, [listed(name) for name in self.server.names])
        elif path.endswith("/volumes"):
            self._say(200, {"Volumes": None})
        elif "c-odd" in path:
            self._say(500, {"message": "something is odd about it"})
        else:
            moment = "2026-01-01T00:00:00.5Z"
            self._say(200, {"State": {"StartedAt": moment}, "Created": moment})

    def do_POST(self) -> None:
        self._say(self.server.kill(self.path.partition("?")[0].split("/")[-2]), {"message": "no"})

    def _say(self, status: int, body: object) -> None:
        content = json.dumps(body).encode() if status != 204 else b""
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def stubborn(monkeypatch: pytest.MonkeyPatch) -> Iterator[Engine]:
    with Engine() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("DOCKER_HOST", f"tcp://127.0.0.1:{server.server_address[1]}")
        yield server
        server.shutdown()


def test_what_will_not_die_spares_nothing_else(stubborn: Engine) -> None:
    with pytest.raises(requests.RequestException):
        Reaper().sweep()
    assert stubborn.killed == {"c-odd", "d-dies", "e-undated"}
    assert stubborn.others_dead.is_set()
