"""What DockerSandbox adds to the engine: readiness, attestation, a clock that holds, and survival."""

from __future__ import annotations

import datetime as dt
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import docker
import pytest

from controller.core.containers import builders, service_builders, volumes
from controller.core.containers.config import SealedConfig
from controller.core.containers.names import ContainerNames
from controller.core.containers.spec import ContainerSpec
from controller.core.errors import InfrastructureError, NotReady
from controller.sandbox.engine.docker_sandbox import DockerSandbox
from controller.system.clock import SystemClock
from tests.support.bench import Bench

pytestmark = pytest.mark.engine

PROJECT = Path(__file__).parents[3]
FOREVER = float("inf")


def command(bench: Bench, *argv: str, streamed: bool = False) -> ContainerSpec:
    """A container of this home that runs `argv`."""
    probe = service_builders.gpu_probe(replace_gpu(bench.config), ContainerNames(bench.home, "doctor"), "")
    return replace(probe, command=("exec", "--limit", "60", "--", *argv), streamed=streamed)


def replace_gpu(config: SealedConfig) -> SealedConfig:
    return config.model_copy(update={"gpu": ()})


def wait(bench: Bench, spec: ContainerSpec) -> int | None:
    return bench.sandbox.wait(spec.name, deadline=FOREVER, stop=threading.Event()).exit_code


def test_start_tells_when_life_began(bench: Bench) -> None:
    spec = command(bench, "sleep", "60")
    before = time.monotonic()
    started = bench.sandbox.start(spec)
    after = time.monotonic()
    assert before <= started <= after
    since = bench.sandbox.running_since(spec.name)
    assert since == pytest.approx(started, abs=0.05)
    assert bench.sandbox.alive(spec.name)
    bench.sandbox.kill(spec.name)
    assert wait(bench, spec) == 137
    assert not bench.sandbox.alive(spec.name)
    bench.sandbox.kill(spec.name)
    assert bench.sandbox.running_since(spec.name) == pytest.approx(started, abs=0.05)
    bench.sandbox.remove(containers=[spec.name])
    bench.sandbox.kill(spec.name)
    assert bench.sandbox.running_since(spec.name) is None
    assert not bench.sandbox.alive(spec.name)


class SetClock(SystemClock):
    """A wall clock that somebody sets while we run."""

    ahead = dt.timedelta()

    def now(self) -> dt.datetime:
        return super().now() + self.ahead


@pytest.mark.parametrize("hours", [-1, 1])
def test_a_wall_clock_that_is_set_moves_no_deadline(bench: Bench, hours: int) -> None:
    clock = SetClock()
    sandbox = DockerSandbox(bench.config, bench.home, clock)
    spec = command(bench, "sleep", "60")
    started = sandbox.start(spec)
    clock.ahead = dt.timedelta(hours=hours)
    end = sandbox.wait(spec.name, deadline=started + 2.0, stop=threading.Event())
    sandbox.close()
    assert end.killed
    assert 2.0 <= end.seconds < 2.5


def test_waiting_for_the_dead_returns_at_once_even_past_the_deadline(bench: Bench) -> None:
    spec = command(bench, "sh", "-c", "exit 7")
    started = bench.sandbox.start(spec)
    assert wait(bench, spec) == 7
    stop = threading.Event()
    stop.set()
    began = time.monotonic()
    end = bench.sandbox.wait(spec.name, deadline=started, stop=stop)
    assert (end.exit_code, end.killed) == (7, False)
    assert time.monotonic() - began < 1.0


def test_output_is_the_end_of_stdout(bench: Bench) -> None:
    spec = command(bench, "sh", "-c", "echo first; echo hidden >&2; sleep 0.1; echo last")
    bench.sandbox.start(spec)
    wait(bench, spec)
    assert bench.sandbox.output(spec.name, 1000) == b"first\nlast\n"
    assert bench.sandbox.output(spec.name, 4) == b"ast\n"


@pytest.mark.parametrize("streamed", [True, False])
def test_following_gets_the_first_byte_and_the_last(bench: Bench, streamed: bool) -> None:
    spec = command(bench, "sh", "-c", "echo out; echo err >&2; sleep 1; echo end", streamed=streamed)
    received: list[bytes] = []
    bench.sandbox.start(spec)
    thread = bench.sandbox.follow(spec.name, received.append)
    wait(bench, spec)
    thread.join(10)
    assert not thread.is_alive()
    assert sorted(b"".join(received).split()) == [b"end", b"err", b"out"]


def test_closing_leaves_no_output_open_that_nobody_followed(bench: Bench) -> None:
    before = open_sockets()
    sandbox = DockerSandbox(bench.config, bench.home, SystemClock())
    sandbox.start(command(bench, "sleep", "30", streamed=True))
    opened = open_sockets() - before
    assert opened
    sandbox.close()
    assert not opened & open_sockets()


def open_sockets() -> set[str]:
    """This process's, each by the kernel's number."""
    found = set()
    for descriptor in Path("/proc/self/fd").iterdir():
        with suppress(OSError):
            found.add(str(descriptor.readlink()))
    return {one for one in found if one.startswith("socket:")}


def test_leftovers_are_those_of_this_home(bench: Bench, tmp_path_factory: pytest.TempPathFactory) -> None:
    other = DockerSandbox(bench.config, tmp_path_factory.mktemp("other"), SystemClock())
    place = ContainerNames(bench.home, "3")
    volume = volumes.workspace(bench.config, place, 10.0)
    holder = builders.holder(bench.config, place, 10.0)
    bench.sandbox.create_volume(volume)
    bench.sandbox.start(holder)
    assert bench.sandbox.leftovers() == ([holder.name], [volume.name])
    assert bench.sandbox.leftovers({"2", "4"}) == ([holder.name], [volume.name])
    assert bench.sandbox.leftovers({"3"}) == ([], [])
    assert other.leftovers() == ([], [])
    other.close()
    bench.sandbox.remove(containers=[holder.name], volumes=[volume.name])
    bench.sandbox.remove(containers=[holder.name], volumes=[volume.name])
    assert bench.sandbox.leftovers() == ([], [])


def test_everything_carries_the_time_after_which_it_may_go(bench: Bench) -> None:
    spec = command(bench, "true")
    bench.sandbox.start(spec)
    client = docker.APIClient()
    labels = client.inspect_container(spec.name)["Config"]["Labels"]
    client.close()
    assert float(labels["glovebox.deadline"]) - time.time() == pytest.approx(spec.life_seconds, abs=10)


def test_a_taken_name_is_an_infrastructure_failure(bench: Bench) -> None:
    spec = command(bench, "true")
    bench.sandbox.start(spec)
    with pytest.raises(InfrastructureError, match="already in use"):
        bench.sandbox.start(spec)


def test_a_volume_of_another_size_is_noticed(bench: Bench) -> None:
    spec = volumes.workspace(bench.config, ContainerNames(bench.home, "3"), 10.0)
    bench.sandbox.create_volume(spec)
    with pytest.raises(InfrastructureError, match="volume"):
        bench.sandbox.create_volume(replace(spec, size_bytes=1))


def test_a_volume_that_is_gone_is_not_replaced_by_one_on_the_disk(bench: Bench) -> None:
    """The engine would make one, without a limit, and without the label by which it could be found again."""
    spec = builders.holder(bench.config, ContainerNames(bench.home, "3"), 10.0)
    with pytest.raises(InfrastructureError, match="is gone"):
        bench.sandbox.start(spec)
    there = docker.APIClient()
    assert [v for v in there.volumes()["Volumes"] or [] if v["Name"].startswith(spec.name[:20])] == []
    assert not bench.sandbox.alive(spec.name) and bench.sandbox.leftovers() == ([], [])


def test_an_image_that_is_replaced_under_us_is_noticed(bench: Bench) -> None:
    client = docker.APIClient()
    tag = f"glovebox-test-{os.getpid()}"
    try:
        client.tag(bench.config.image, tag, "latest")
        config = bench.config.model_copy(update={"image": f"{tag}:latest"})
        sandbox = DockerSandbox(config, bench.home, SystemClock())
        sandbox.describe()
        client.import_image_from_data(_empty_tar(), repository=tag, tag="latest")
        with pytest.raises(NotReady, match="replaced"):
            sandbox.start(replace(command(bench, "true"), image=config.image))
        sandbox.close()
    finally:
        client.remove_image(f"{tag}:latest", force=True)
        client.close()


def test_a_container_that_is_made_differently_is_not_started(bench: Bench) -> None:
    """Here because of its image, which declares a volume that nobody asked for."""
    client, tag = docker.APIClient(), f"glovebox-volume-{os.getpid()}"
    made = client.create_container(bench.config.image, ["true"])
    try:
        client.commit(made, repository=tag, changes="VOLUME /more")
        spec = replace(command(bench, "true"), image=f"{tag}:latest")
        with pytest.raises(InfrastructureError, match="differently: mounts"):
            bench.sandbox.start(spec)
        assert bench.sandbox.leftovers() == ([], [])
    finally:
        client.remove_container(made)
        client.remove_image(f"{tag}:latest", force=True)
        client.close()


def _empty_tar() -> bytes:
    return bytes(10240)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"image": "glovebox-nothing:latest"}, "make image"),
        ({"runtime": "nothing-like-it"}, "sandbox.runtime"),
    ],
)
def test_what_is_missing_is_named_before_anything_runs(
    bench: Bench, change: dict[str, str], sentence: str
) -> None:
    sandbox = DockerSandbox(bench.config.model_copy(update=change), bench.home, SystemClock())
    with pytest.raises(NotReady, match=sentence):
        sandbox.describe()
    sandbox.close()


def test_the_runtime_of_nvidia_is_asked_for_a_gpu(make_bench: Callable[..., Bench]) -> None:
    """Where a runtime has that name, be it an alias of runc: which containers get it, and what it is told."""
    client = docker.APIClient()
    runtimes = client.info()["Runtimes"]
    client.close()
    if "nvidia" not in runtimes:
        pytest.skip("the engine knows no runtime called nvidia")
    bench = make_bench(gpu=("0",), gpu_access="runtime")
    bench.run("import os\nprint(os.environ['NVIDIA_VISIBLE_DEVICES'])")
    assert bench.log_text == "0\n"
    assert bench.sandbox.describe()["runtime"] == "nvidia"


CONNECT = """
import os, pathlib
from controller.system.clock import SystemClock
from controller.core.containers.config import SandboxConfig
from controller.core.errors import NotReady
from controller.sandbox.engine.docker_sandbox import DockerSandbox
from controller.sandbox.inputs import sealed
if os.environ.get("BECOME"):
    os.setgroups([]); os.setgid(int(os.environ["BECOME"])); os.setuid(int(os.environ["BECOME"]))
try:
    DockerSandbox(sealed(SandboxConfig()), pathlib.Path("/"), SystemClock())
except NotReady as error:
    print(error)
"""


def connect(**environment: str) -> str:
    """What a user is told who cannot connect; in another process, since the SDK leaks a socket then."""
    done = subprocess.run(
        [sys.executable, "-c", CONNECT],
        cwd=PROJECT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return done.stdout


def test_no_engine(tmp_path: Path) -> None:
    assert "does not answer; start it" in connect(DOCKER_HOST=f"unix://{tmp_path}/no.sock")
    assert "does not answer; start it" in connect(DOCKER_HOST="tcp://127.0.0.1:9")


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become somebody else")
def test_no_permission_for_the_engine(bench: Bench) -> None:
    assert "group `docker`" in connect(BECOME="65534")


class FlakyEngine:
    """A socket in front of the real engine whose connections can be cut, as by an engine that restarts."""

    def __init__(self, path: Path) -> None:
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        self._pairs: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def cut(self) -> None:
        for side in self._pairs:
            _shut(side)
        self._pairs.clear()

    def close(self) -> None:
        _shut(self._listener)
        self.cut()
        for thread in self._threads:
            thread.join(10)

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                self._listener.close()
                return
            engine = socket.socket(socket.AF_UNIX)
            engine.connect("/var/run/docker.sock")
            self._pairs += [client, engine]
            for source, target in ((client, engine), (engine, client)):
                thread = threading.Thread(target=_copy, args=(source, target), daemon=True)
                self._threads.append(thread)
                thread.start()


def _copy(source: socket.socket, target: socket.socket) -> None:
    try:
        while block := source.recv(65536):
            target.sendall(block)
    except OSError:
        pass
    finally:
        _shut(target)
        source.close()


def _shut(side: socket.socket) -> None:
    with suppress(OSError):
        side.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def flaky(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FlakyEngine]:
    path = tmp_path / "engine.sock"
    engine = FlakyEngine(path)
    monkeypatch.setenv("DOCKER_HOST", f"unix://{path}")
    yield engine
    engine.close()


def test_a_run_survives_a_lost_connection_to_the_engine(
    flaky: FlakyEngine, make_bench: Callable[..., Bench]
) -> None:
    bench = make_bench()
    program = """
        import time
        for number in range(40):
            print("line", number, flush=True)
            time.sleep(0.1)
    """
    cuts: list[float] = []

    def cut_once(elapsed: float) -> None:
        if not cuts:
            cuts.append(elapsed)
            flaky.cut()

    attempt, trainer = bench.attempt(program, budget=30.0), bench.trainer()
    outcome = trainer.train(attempt, bench.stop, cut_once)
    trainer.discard(attempt)
    assert cuts
    assert outcome.exit_code == 0
    numbers = [int(line.split()[1]) for line in attempt.log_path.read_text().splitlines()]
    assert sorted(set(numbers)) == list(range(40))
    assert len(numbers) <= 42  # around the break a line may come twice, and none may be lost


def test_a_deadline_holds_across_a_lost_connection(
    flaky: FlakyEngine, make_bench: Callable[..., Bench]
) -> None:
    bench = make_bench()
    attempt, trainer = bench.attempt("while True: pass", budget=3.0), bench.trainer()
    outcome = trainer.train(attempt, bench.stop, lambda elapsed: flaky.cut())
    trainer.discard(attempt)
    assert outcome.killed_at_limit
    assert 3.0 <= outcome.seconds < 3.5
