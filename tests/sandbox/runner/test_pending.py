"""Whoever asks what there is hears it after what was ordered before is done: its caller may have died."""

from __future__ import annotations

import json
import socket
import threading
from contextlib import closing
from pathlib import Path

import pytest

from controller.core.containers import builders
from controller.core.containers.config import SealedConfig
from controller.core.containers.names import ContainerNames
from controller.core.containers.spec import ContainerSpec
from controller.core.errors import InfrastructureError
from controller.sandbox.runner import wire
from controller.sandbox.runner.client import RunnerSandbox
from controller.sandbox.runner.pending import PendingRequests
from controller.system.clock import SystemClock
from tests.sandbox.runner.conftest import BUDGET, make_templates, serving
from tests.support.fakes import EmptyEngine

CONFIG = SealedConfig(seccomp="{}")


class Slow(EmptyEngine):
    """An engine that takes as long to start something as somebody wants."""

    def __init__(self) -> None:
        self.asked, self.done = threading.Event(), threading.Event()
        self.started: list[str] = []

    def start(self, spec: ContainerSpec) -> float:
        self.asked.set()
        assert self.done.wait(30)
        self.started.append(spec.name)
        return 1.0

    def running_since(self, name: str) -> float | None:
        return 1.0 if name in self.started else None

    def leftovers(self, keep: object = ()) -> tuple[list[str], list[str]]:
        return [*self.started], []


@pytest.mark.parametrize("question", ["running-since", "leftovers"])
def test_an_order_of_somebody_who_died_is_done_before_there_is_an_answer(
    question: str, tmp_path: Path, socket_path: Path
) -> None:
    engine = Slow()
    made = make_templates(tmp_path, CONFIG, tmp_path / "harness")
    spec = builders.holder(CONFIG, ContainerNames(tmp_path, "1"), BUDGET)
    with serving(engine, made, socket_path) as client:
        request = {"verb": "start", "order": {"experiment": "1", "attempt": 1, "item": "holder"}}
        with closing(socket.socket(socket.AF_UNIX)) as dead:
            dead.connect(str(socket_path))
            wire.send(dead, json.dumps({**request, "digest": spec.digest()}).encode())
            assert engine.asked.wait(10)
        answers: list[object] = []
        ask = client.leftovers if question == "leftovers" else lambda: client.running_since(spec.name)
        asking = threading.Thread(target=lambda: answers.append(ask()))
        asking.start()
        asking.join(0.5)
        assert answers == [], "it is not known yet"
        assert not client.alive(spec.name), "others need not wait"
        engine.done.set()
        asking.join(30)
    assert answers == [([spec.name], []) if question == "leftovers" else 1.0]


def test_what_comes_later_is_not_waited_for() -> None:
    requests, over = PendingRequests(), threading.Event()

    def always_something() -> None:
        last = requests.begin()
        while not over.is_set():
            later = requests.begin()
            requests.end(last)
            requests.end(last)
            last = later

    ticket = requests.begin()
    assert not requests.settled(0.0)
    busy = threading.Thread(target=always_something)
    busy.start()
    requests.end(ticket)
    assert requests.settled(20.0)
    over.set()
    busy.join(20)


@pytest.mark.parametrize("since", [12.5, None])
def test_a_start_without_an_answer_is_looked_for(
    since: float | None, tmp_path: Path, socket_path: Path
) -> None:
    """By name, once there is a runner again."""
    spec = builders.holder(CONFIG, ContainerNames(tmp_path, "1"), BUDGET)
    heard: list[str] = []

    def runner(listener: socket.socket) -> None:
        for answer in (None, {"value": since}):
            with listener.accept()[0] as connection:
                heard.append(json.loads(wire.receive(connection, 10_000, 10.0))["verb"])
                if answer is not None:
                    wire.send_json(connection, answer)

    with closing(socket.socket(socket.AF_UNIX)) as listener:
        listener.bind(str(socket_path))
        listener.listen(5)
        listener.settimeout(20)
        thread = threading.Thread(target=runner, args=(listener,))
        thread.start()
        client = RunnerSandbox(socket_path, SystemClock())
        if since is None:
            with pytest.raises(InfrastructureError, match="went away in the middle"):
                client.start(spec)
        else:
            assert client.start(spec) == since
        thread.join(20)
    assert heard == ["start", "running-since"]
