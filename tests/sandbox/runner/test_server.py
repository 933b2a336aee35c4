"""A runner among people who do not wish it well. No engine is needed for that."""

from __future__ import annotations

import json
import socket
import stat
import struct
import threading
import time
from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controller.app.device import resolve_devices
from controller.core.containers import builders, service_builders, volumes
from controller.core.containers.config import SandboxConfig, SealedConfig
from controller.core.containers.names import ContainerNames
from controller.core.containers.orders import Item
from controller.core.containers.spec import ContainerSpec
from controller.core.containers.templates import Templates
from controller.core.errors import InfrastructureError, NotReady, UserError
from controller.sandbox.runner import wire
from controller.sandbox.runner.client import RunnerSandbox
from controller.settings import Settings
from controller.system.clock import SystemClock
from tests.sandbox.runner.conftest import BUDGET, DEVICE, make_templates, serving
from tests.support.fakes import EmptyEngine

CONFIG = SealedConfig(seccomp="{}")


class SystemClockAhead(SystemClock):
    """The clock of a machine that has been up for longer."""

    def monotonic(self) -> float:
        return super().monotonic() + 1000.0


class SlowEngine(EmptyEngine):
    """Makes no container before it is told to."""

    def __init__(self) -> None:
        self.go_on = threading.Event()
        self.asked: set[str] = set()
        self.made: list[str] = []

    def start(self, spec: ContainerSpec) -> float:
        self.asked.add(spec.name)
        assert self.go_on.wait(60)
        self.made.append(spec.name)
        return 0.0

    def leftovers(self, keep: Collection[str] = ()) -> tuple[list[str], list[str]]:
        return list(self.made), []


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[RunnerSandbox, Path, Templates]]:
    home = tmp_path_factory.mktemp("home")
    path = tmp_path_factory.mktemp("s") / "r.sock"
    made = make_templates(home, CONFIG, home / "harness")
    with serving(EmptyEngine(), made, path) as client:
        yield client, path, made


def say(path: Path, raw: bytes) -> bytes:
    """What a runner answers to these bytes before it hangs up."""
    with closing(socket.socket(socket.AF_UNIX)) as connection:
        connection.settimeout(20)
        connection.connect(str(path))
        with suppress(OSError):
            connection.sendall(raw)
            connection.shutdown(socket.SHUT_WR)
        answer = b""
        with suppress(ConnectionResetError):
            while piece := connection.recv(65536):
                answer += piece
        return answer


def framed(payload: bytes) -> bytes:
    return struct.pack(">I", len(payload)) + payload


def answer_to(path: Path, raw: bytes) -> dict[str, Any]:
    answer = say(path, raw)
    assert struct.unpack(">I", answer[:4])[0] == len(answer) - 4
    told = json.loads(answer[4:])
    assert isinstance(told, dict)
    return told


@settings(max_examples=150, deadline=None)
@given(raw=st.binary(max_size=300) | st.binary(max_size=300).map(framed))
def test_no_bytes_bring_a_runner_down(served: tuple[RunnerSandbox, Path, Templates], raw: bytes) -> None:
    client, path, _ = served
    assert not answer_to(path, raw).keys().isdisjoint({"refused", "error"})
    client.ping()


def test_a_caller_hears_of_the_gpu_that_its_runner_has_asked(
    served: tuple[RunnerSandbox, Path, Templates],
) -> None:
    _, path, _ = served
    ours = Settings(runner=path, sandbox=SandboxConfig(log_bytes=1))
    [heard] = resolve_devices(ours)
    assert (heard.scale, heard.gpu, heard.notes) == ("gpu", DEVICE.gpu, DEVICE.notes)
    assert (heard.sandbox.gpu, heard.sandbox.log_bytes) == (("1",), 1)


def test_what_is_too_long_is_refused_before_it_is_read(
    served: tuple[RunnerSandbox, Path, Templates],
) -> None:
    client, path, _ = served
    assert "more than" in answer_to(path, struct.pack(">I", 2**32 - 1))["message"]
    order = {"experiment": "1", "attempt": 1, "item": "trainer"}
    start = {"verb": "start", "order": order, "digest": "0" * 64, "text_bytes": 5}
    assert "more than" in answer_to(path, framed(json.dumps(start).encode()) + framed(b"123456"))["message"]
    assert "shorter" in answer_to(path, framed(json.dumps(start).encode()) + framed(b"1234"))["refused"]
    client.ping()


def place_of(made: Templates, experiment: str = "1") -> ContainerNames:
    return ContainerNames(made.home, experiment)


def test_somebody_slow_holds_nobody_up(served: tuple[RunnerSandbox, Path, Templates]) -> None:
    client, path, _ = served
    slow = [socket.socket(socket.AF_UNIX) for _ in range(10)]
    for connection in slow:
        connection.connect(str(path))
        connection.sendall(b"\0")
    began = time.monotonic()
    client.ping()
    assert time.monotonic() - began < 4.0  # less than the five seconds that the slow ones are given
    slow[0].settimeout(30)
    answer = json.loads(wire.receive(slow[0], 10_000, 30.0))
    assert "timed out" in answer["message"]
    for connection in slow:
        connection.close()


def test_the_socket_is_for_its_group_alone(served: tuple[RunnerSandbox, Path, Templates]) -> None:
    _, path, _ = served
    status = path.stat()
    assert stat.S_ISSOCK(status.st_mode) and stat.S_IMODE(status.st_mode) == 0o660


def test_there_is_one_runner_at_a_socket(served: tuple[RunnerSandbox, Path, Templates]) -> None:
    client, path, made = served
    with pytest.raises(AssertionError), serving(EmptyEngine(), made, path):
        pass
    client.ping()


def test_nobody_reaches_beyond_the_home(served: tuple[RunnerSandbox, Path, Templates]) -> None:
    client, path, _ = served
    name = ContainerNames(Path("/another/home"), "1").name(Item.TRAINER)
    for ask in (client.alive, client.running_since, client.kill, lambda name: client.output(name, 10)):
        with pytest.raises(UserError, match="does not belong to this home"):
            ask(name)
    with pytest.raises(UserError, match="does not belong to this home"):
        client.remove(volumes=[name])
    foreign = {"verb": "remove", "containers": ["somebody-elses-database"]}
    assert "not a valid request" in answer_to(path, framed(json.dumps(foreign).encode()))["refused"]


def test_other_settings_are_told_from_another_digest(served: tuple[RunnerSandbox, Path, Templates]) -> None:
    client, _, made = served
    other = CONFIG.model_copy(update={"image": "an-image-of-mine"})
    with pytest.raises(UserError, match="different settings"):
        client.start(builders.holder(other, place_of(made), BUDGET))
    with pytest.raises(UserError, match="different settings"):
        client.create_volume(volumes.workspace(CONFIG, place_of(made), BUDGET + 1))
    with pytest.raises(InfrastructureError, match="no container can be made"):
        client.start(builders.holder(CONFIG, place_of(made), BUDGET))


def test_a_train_py_is_kept_where_only_the_runner_writes(tmp_path: Path, socket_path: Path) -> None:
    engine, made = SlowEngine(), make_templates(tmp_path, CONFIG, tmp_path / "harness")
    engine.go_on.set()
    train = made.home / "train.py"
    train.write_text("print(1)")
    place = place_of(made, "9")
    spec = builders.trainer(CONFIG, place, made.files, train=train, budget_seconds=BUDGET, seed=42)
    with serving(engine, made, socket_path) as client:
        client.start(spec)
        kept = made.files.train(place, train)
        assert kept.is_relative_to(made.home / "runner") and kept.read_text() == "print(1)"
        assert str(kept) in [mount.source for mount in spec.mounts]
        train.write_text("print(2)")
        with pytest.raises(UserError, match=r"another train\.py"):
            client.start(spec)
        client.remove(containers=[spec.name])
        assert not kept.exists()
        worker = builders.worker(CONFIG, place, made.files, made.judging, volumes.FIRST, train=train, seed=42)
        with pytest.raises(InfrastructureError, match=r"train\.py of this attempt"):
            client.start(worker)
        with pytest.raises(UserError, match="comes with a trainer"):
            client.start(replace(spec, train=None))


def test_a_container_without_an_order_is_none_for_a_runner(
    served: tuple[RunnerSandbox, Path, Templates],
) -> None:
    client, _, made = served
    with pytest.raises(UserError, match="cannot start"):
        client.start(service_builders.gpu_probe(CONFIG, ContainerNames(made.home, "doctor"), ""))


def test_without_a_runner_one_sentence_says_so(tmp_path: Path) -> None:
    client = RunnerSandbox(tmp_path / "none.sock", SystemClock(), ready_seconds=0.5)
    with pytest.raises(NotReady, match="nothing answers"):
        client.describe()


def test_another_machines_clock_is_noticed(served: tuple[RunnerSandbox, Path, Templates]) -> None:
    _, path, _ = served
    with pytest.raises(NotReady, match="monotonic clock"):
        RunnerSandbox(path, SystemClockAhead()).describe()


def test_a_flood_of_orders_at_once_gets_no_more_than_one_after_the_other(
    tmp_path: Path, socket_path: Path
) -> None:
    engine, made = SlowEngine(), make_templates(tmp_path, CONFIG, tmp_path / "harness")
    with serving(engine, made, socket_path) as client, ThreadPoolExecutor(40) as pool:
        specs = [builders.holder(CONFIG, place_of(made, str(number)), BUDGET) for number in range(40)]
        refused = threading.Semaphore(0)

        def start(spec: ContainerSpec) -> bool:
            try:
                client.start(spec)
            except InfrastructureError as error:
                assert "too many" in str(error)
                refused.release()
                return False
            return True

        orders = [pool.submit(start, spec) for spec in specs]
        for _ in range(40 - 24):
            assert refused.acquire(timeout=60)
        engine.go_on.set()
        assert sum(order.result(60) for order in orders) == len(engine.made) == len(engine.asked) == 24


def test_an_order_that_comes_twice_at_once_is_one_order(tmp_path: Path, socket_path: Path) -> None:
    engine, made = SlowEngine(), make_templates(tmp_path, CONFIG, tmp_path / "harness")
    with serving(engine, made, socket_path) as client, ThreadPoolExecutor(1) as pool:
        spec = builders.holder(CONFIG, place_of(made), BUDGET)
        first = pool.submit(client.start, spec)
        while not engine.asked:
            assert not first.done()
        with pytest.raises(InfrastructureError, match="being made already"):
            client.start(spec)
        engine.go_on.set()
        first.result(60)
        assert engine.made == [spec.name]


def test_orders_that_come_to_nothing_leave_no_train_py_behind(
    served: tuple[RunnerSandbox, Path, Templates],
) -> None:
    """They could fill the disk: each may bring 256 KiB, and there are a billion places."""
    client, _, made = served
    train = made.home / "train.py"
    train.write_text("print(1)")
    for number in range(100, 103):
        place = place_of(made, str(number))
        spec = builders.trainer(CONFIG, place, made.files, train=train, budget_seconds=BUDGET, seed=42)
        with pytest.raises(InfrastructureError, match="no container can be made"):
            client.start(spec)
        assert not made.files.train(place, train).parent.exists()
