"""A runner makes of an order what its caller expects, if and only if both have the same settings."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from controller.core.containers import builders, volumes
from controller.core.containers.builders import Files
from controller.core.containers.config import SealedConfig
from controller.core.containers.names import ContainerNames
from controller.core.containers.orders import VOLUMES, Item, Order
from controller.core.containers.spec import ContainerSpec
from controller.core.containers.templates import Templates
from controller.core.containers.volumes import EXCHANGES, VolumeSpec
from controller.core.scoring.config import JudgeConfig
from tests.support.efforts import draw

HOME = Path("/srv/home")
ATTEMPT = ContainerNames(HOME, "42", 3)
CONFIG = SealedConfig(seccomp="{}")
FILES = Files(HOME / "runner" / "harness" / "abc", HOME / "data", HOME / "runner" / "train")
TRAIN = HOME / "runs" / "000042" / "train.py"
JUDGING = JudgeConfig()
TEMPLATES = Templates((CONFIG,), HOME, FILES, JUDGING, budget_seconds=300.0, rehearsal_seconds=120.0)


def expected() -> list[ContainerSpec]:
    """What the adapters describe when they have a runner."""
    return [
        builders.holder(CONFIG, ATTEMPT, 300.0),
        builders.trainer(CONFIG, ATTEMPT, FILES, train=TRAIN, budget_seconds=300.0, seed=42),
        *(builders.worker(CONFIG, ATTEMPT, FILES, JUDGING, each, train=TRAIN, seed=42) for each in EXCHANGES),
        builders.judge(CONFIG, ATTEMPT, FILES, JUDGING, draw=None, seed=7, row_tokens=256),
        builders.rehearsal(
            CONFIG, ContainerNames(HOME, "rehearsal"), FILES, train=TRAIN, limit_seconds=120.0
        ),
        builders.telemetry(CONFIG, ContainerNames.of_slot(HOME, 0), 300.0),
    ]


def expected_volumes() -> list[VolumeSpec]:
    seconds = builders.scoring_seconds(CONFIG, JUDGING)
    pairs = [volumes.exchange_volumes(CONFIG, ATTEMPT, each, seconds) for each in EXCHANGES]
    return [volumes.workspace(CONFIG, ATTEMPT, 300.0), *(volume for pair in pairs for volume in pair)]


def order_of(spec: ContainerSpec | VolumeSpec) -> Order:
    assert spec.order is not None
    return spec.order


@pytest.mark.parametrize("spec", expected(), ids=lambda spec: spec.order.item)
def test_a_runner_makes_the_container_its_caller_expects(spec: ContainerSpec) -> None:
    made = TEMPLATES.container(order_of(spec), lambda: 256)
    assert made.digest() == spec.digest()
    assert (made.name, made.order) == (spec.name, spec.order)


@pytest.mark.parametrize("spec", expected_volumes(), ids=lambda spec: spec.order.item)
def test_a_runner_makes_the_volume_its_caller_expects(spec: VolumeSpec) -> None:
    assert TEMPLATES.volume(order_of(spec)) == spec


def test_there_is_an_order_for_everything() -> None:
    containers, volumes = map(order_of, expected()), map(order_of, expected_volumes())
    assert {order.item for order in (*containers, *volumes)} == set(Item)


CHANGES: list[tuple[dict[str, Any], set[Item]]] = [
    ({"budget_seconds": 301.0}, {Item.TRAINER, Item.HOLDER, Item.TELEMETRY}),
    ({"rehearsal_seconds": 121.0}, {Item.REHEARSAL}),
    ({"judging": JudgeConfig(total_seconds=901.0)}, {Item.WORKER, Item.WORKER_2, Item.JUDGE}),
    ({"judging": JudgeConfig(leak_fraction=0.5)}, {Item.JUDGE}),
    ({"slots": (SealedConfig(seccomp="{ }"),)}, set(Item) - VOLUMES),
    ({"slots": (SealedConfig(seccomp="{}", image="other"),)}, set(Item) - VOLUMES),
    ({"files": replace(FILES, harness=Path("/other"))}, set(Item) - VOLUMES - {Item.HOLDER, Item.TELEMETRY}),
]


@pytest.mark.parametrize(("change", "differ"), CHANGES)
def test_other_settings_make_another_digest(change: dict[str, Any], differ: set[Item]) -> None:
    other = replace(TEMPLATES, **change)
    found = {
        order_of(spec).item
        for spec in expected()
        if other.container(order_of(spec), lambda: 256).digest() != spec.digest()
    }
    assert found == differ


def test_each_slot_has_its_gpu_its_cpus_and_its_telemetry() -> None:
    second = CONFIG.model_copy(update={"gpu": ("1",), "cpus": "4-7"})
    both = replace(TEMPLATES, slots=(CONFIG, second))
    attempt = replace(ATTEMPT, slot=1)
    ours = [
        builders.trainer(second, attempt, FILES, train=TRAIN, budget_seconds=300.0, seed=42),
        builders.telemetry(second, ContainerNames.of_slot(HOME, 1), 300.0),
    ]
    for spec in ours:
        made = both.container(order_of(spec), lambda: 256)
        assert (made.name, made.digest()) == (spec.name, spec.digest())
        assert made.to_engine()["HostConfig"]["CpusetCpus"] == "4-7"
    assert "OMP_NUM_THREADS=4" in ours[0].to_engine()["Env"]
    first = builders.telemetry(CONFIG, ContainerNames.of_slot(HOME, 0), 300.0)
    assert first.name != ours[1].name
    with pytest.raises(ValueError, match="there is no slot 1"):
        TEMPLATES.container(order_of(ours[0]), lambda: 256)
    crossed = order_of(ours[1]).model_copy(update={"attempt": 1})
    with pytest.raises(ValueError, match="telemetry of its own"):
        both.container(crossed, lambda: 256)


def test_what_serves_all_slots_runs_on_any_cpu() -> None:
    config = CONFIG.model_copy(update={"cpus": "4-7"})
    rehearsal = builders.rehearsal(
        config, ContainerNames(HOME, "rehearsal"), FILES, train=TRAIN, limit_seconds=120.0
    )
    assert rehearsal.to_engine()["HostConfig"]["CpusetCpus"] == ""


def test_no_path_of_the_caller_is_mounted() -> None:
    for spec in expected():
        sources = [mount.source for mount in spec.mounts if not mount.volume]
        assert all(Path(source).is_relative_to(HOME / "runner") or "data" in source for source in sources)
        assert str(TRAIN) not in str(spec.to_engine())


def test_validation_text_reaches_the_judge_alone() -> None:
    hidden = FILES.data / "judge"
    for spec in expected():
        sources = [Path(mount.source) for mount in spec.mounts if not mount.volume]
        exposed = any(hidden.is_relative_to(source) or source.is_relative_to(hidden) for source in sources)
        assert exposed == (order_of(spec).item is Item.JUDGE), spec.name


@pytest.mark.parametrize(
    ("make", "order"),
    [
        (TEMPLATES.volume, Order(experiment="1", attempt=1, item=Item.TRAINER)),
        (TEMPLATES.volume, Order(experiment="1", attempt=1, item=Item.WORKSPACE, draw=None, seed=1)),
        (TEMPLATES.volume, Order(experiment="rehearsal", attempt=1, item=Item.WORKSPACE)),
        (TEMPLATES.container, Order(experiment="1", attempt=1, item=Item.WORKSPACE)),
        (TEMPLATES.container, Order(experiment="1", attempt=1, item=Item.JUDGE)),
        (TEMPLATES.container, Order(experiment="1", attempt=1, item=Item.TRAINER)),
        (TEMPLATES.container, Order(experiment="1", attempt=1, item=Item.WORKER)),
        (TEMPLATES.container, Order(experiment="1", attempt=1, item=Item.TRAINER, seed=1, draw=draw(0))),
        (TEMPLATES.container, Order(experiment="1", attempt=1, item=Item.HOLDER, seed=1)),
        (TEMPLATES.container, Order(experiment="1", attempt=1, item=Item.REHEARSAL)),
        (TEMPLATES.container, Order(experiment="rehearsal", attempt=1, item=Item.TRAINER)),
        (TEMPLATES.container, Order(experiment="slot", attempt=1, item=Item.TRAINER)),
        (TEMPLATES.container, Order(experiment="rehearsal", attempt=1, item=Item.TELEMETRY)),
        (TEMPLATES.container, Order(experiment="1", attempt=1, item=Item.TELEMETRY)),
    ],
)
def test_orders_that_make_no_sense_are_refused(make: Callable[..., object], order: Order) -> None:
    arguments = [] if make == TEMPLATES.volume else [lambda: 256]
    with pytest.raises(ValueError):
        make(order, *arguments)
