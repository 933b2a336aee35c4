"""What every Sandbox has to do: on the engine itself, through a runner, and the one that has no engine."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from controller.core.containers import builders, volumes
from controller.core.containers.config import MIB, SandboxConfig
from controller.core.containers.names import ContainerNames
from controller.core.containers.orders import Item
from controller.core.containers.spec import ContainerSpec
from controller.core.containers.templates import Templates
from controller.core.errors import InfrastructureError, Interrupted
from controller.ports import Exit, Sandbox
from controller.sandbox.inputs import sealed
from tests.sandbox.runner.conftest import BUDGET, make_templates, serving
from tests.support.bench import SMALL, open_bench
from tests.support.fakes import EmptyEngine

FOREVER = float("inf")


@dataclass
class World:
    sandbox: Sandbox
    templates: Templates
    stop: threading.Event = field(default_factory=threading.Event)

    @property
    def place(self) -> ContainerNames:
        return ContainerNames(self.templates.home, "3")

    def trainer(self, program: str) -> ContainerSpec:
        """A trainer that runs `program`; its workspace and holder are there."""
        config, place, home = self.templates.slots[0], self.place, self.templates.home
        (home / "train.py").write_text(program)
        self.sandbox.create_volume(volumes.workspace(config, place, BUDGET))
        self.sandbox.start(builders.holder(config, place, BUDGET))
        train = home / "train.py"
        return builders.trainer(
            config, place, self.templates.files, train=train, budget_seconds=BUDGET, seed=42
        )

    def wait(self, spec: ContainerSpec, deadline: float = FOREVER) -> Exit:
        return self.sandbox.wait(spec.name, deadline=deadline, stop=self.stop)

    def clean_up(self) -> None:
        containers, volumes = self.sandbox.leftovers()
        self.sandbox.remove(containers=containers, volumes=volumes)
        assert self.sandbox.leftovers() == ([], [])


ENGINE = [pytest.param(name, marks=pytest.mark.engine) for name in ("engine", "runner")]


@pytest.fixture(params=["none", *ENGINE])
def world(request: pytest.FixtureRequest, tmp_path: Path, socket_path: Path) -> Iterator[World]:
    config = sealed(SandboxConfig(workspace_bytes=16 * MIB, empty_caches=False, trainer=SMALL))
    if request.param == "none":
        yield World(EmptyEngine(), make_templates(tmp_path, config, tmp_path))
        return
    with open_bench(tmp_path, config) as bench:
        made = make_templates(tmp_path, config, bench.harness.folder)
        if request.param == "engine":
            yield World(bench.sandbox, replace(made, files=bench.files))
            return
        with serving(bench.sandbox, made, socket_path) as client:
            yield World(client, made)


on_an_engine = pytest.mark.parametrize("world", ENGINE, indirect=True)


def test_of_what_is_not_there(world: World) -> None:
    sandbox, name = world.sandbox, world.place.name(Item.TRAINER)
    assert not sandbox.alive(name)
    assert sandbox.running_since(name) is None
    sandbox.kill(name)
    sandbox.remove(containers=[name], volumes=[world.place.name(Item.WORKSPACE)])
    assert sandbox.leftovers() == ([], [])
    with pytest.raises(InfrastructureError):
        sandbox.begin(name)
    with pytest.raises(InfrastructureError):
        sandbox.output(name, 10)
    with pytest.raises(InfrastructureError):
        sandbox.wait(name, deadline=FOREVER, stop=world.stop)
    received: list[bytes] = []
    sandbox.follow(name, received.append).join(20)
    assert not received
    assert sandbox.usage() == {}
    assert not sandbox.usage([name])
    described = {"confinement", "engine", "image", "isolation", "obstacle", "root", "runtime", "users"}
    assert set(sandbox.describe()) == described


@on_an_engine
def test_a_life_and_its_end(world: World) -> None:
    sandbox = world.sandbox
    spec = world.trainer("import time\ntime.sleep(60)")
    before = time.monotonic()
    started = sandbox.start(spec)
    assert before <= started <= time.monotonic()
    assert sandbox.alive(spec.name)
    assert sandbox.running_since(spec.name) == pytest.approx(started, abs=0.05)
    with pytest.raises(InfrastructureError, match="already in use"):
        sandbox.start(spec)
    holder, volume = world.place.name(Item.HOLDER), world.place.name(Item.WORKSPACE)
    containers, volumes = sandbox.leftovers()
    assert (sorted(containers), volumes) == (sorted([holder, spec.name]), [volume])
    assert sandbox.leftovers({"3", "4"}) == ([], [])
    assert {*(sandbox.usage() or {})} == {holder, spec.name}
    assert {*(sandbox.usage([spec.name]) or {})} == {spec.name}
    world.stop.set()
    with pytest.raises(Interrupted):
        world.wait(spec)
    assert sandbox.alive(spec.name)
    world.stop.clear()
    ticks: list[float] = []
    sandbox.wait(
        spec.name,
        deadline=time.monotonic() + 2.5,
        stop=world.stop,
        tick=lambda: ticks.append(time.monotonic()),
    )
    assert ticks
    end = world.wait(spec)
    assert (end.exit_code, end.oom_killed, end.killed) == (137, False, False)
    assert not sandbox.alive(spec.name)
    world.clean_up()


@on_an_engine
def test_the_deadline_is_the_containers_last_moment(world: World) -> None:
    spec = world.trainer("while True: pass")
    started = world.sandbox.start(spec)
    end = world.wait(spec, started + 2.0)
    assert end.killed and end.exit_code == 137
    assert 2.0 <= end.seconds < 4.0
    world.clean_up()


@on_an_engine
def test_all_it_prints_is_heard(world: World) -> None:
    spec = world.trainer(
        "import sys\nprint('out', flush=True)\nprint('err', file=sys.stderr, flush=True)\n"
        "print('x' * 300_000)\nraise SystemExit(7)"
    )
    received: list[bytes] = []
    started = world.sandbox.start(spec)
    thread = world.sandbox.follow(spec.name, received.append)
    assert world.wait(spec).exit_code == 7
    thread.join(20)
    assert not thread.is_alive()
    heard = b"".join(received)
    # The two streams may meet anywhere.
    assert sorted(heard) == sorted(b"out\nerr\n" + b"x" * 300_000 + b"\n")
    assert world.sandbox.output(spec.name, 1000).endswith(b"xxx\n")
    assert len(world.sandbox.output(spec.name, 1000)) == 1000
    world.stop.set()
    again = world.wait(spec, started)  # dead before the deadline and before the request to stop
    assert (again.exit_code, again.killed) == (7, False)
    world.clean_up()
