"""Who else uses the slot: the real machine's counters, and telemetry by a stand-in for nvidia-smi."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager

import pytest

from controller import failpoints
from controller.core.containers.domains import Domain
from controller.core.containers.names import ContainerNames
from controller.core.hardware.disturbance import NoiseConfig, cpu_conditions
from controller.core.values import Conditions, DisturbanceKind, RunOutcome
from controller.ports import Monitor
from controller.sandbox.monitor import CpuCounters, NoiseMonitor, SlotCpus
from tests.support.bench import Bench, image_with, require_runtime
from tests.support.fakes import FakeMonitor

SPINS = "while True: pass"
SLEEPS = "import time\ntime.sleep(1)"

NVIDIA_SMI = """#!/bin/sh
# Which GPU is asked for says what it is like.
case "$NVIDIA_VISIBLE_DEVICES" in
    shared) line="0, 40, 1980, 300.00, 97, 40000, 0x0000000000000000" ;;
    mute) echo "No devices were found"; exit 6 ;;
    slow) sleep 3; line="0, 40, 1980, 300.00, 0, 1, 0x0000000000000000" ;;
    *) line="0, 40, 1980, 300.00, 0, 1, 0x0000000000000004" ;;
esac
case "$*" in *event*) new=yes ;; *) new=no ;; esac
if [ "$NVIDIA_VISIBLE_DEVICES $new" = "old yes" ]; then
    echo 'Field "clocks_event_reasons.active" is not a valid field to query.'
    exit 2
fi
for n in 1 2 3 4; do
    echo "$line"
    sleep 0.2
done
if [ "$NVIDIA_VISIBLE_DEVICES" = lost ]; then
    echo "Unable to determine the device handle for GPU0000:07:00.0: GPU is lost.  Reboot the system"
    exit 15
fi
while true; do
    echo "$line"
    sleep 0.2
done
"""


@contextmanager
def slot_of(bench: Bench, config: NoiseConfig | None = None) -> Iterator[NoiseMonitor]:
    slot = NoiseMonitor(
        bench.sandbox,
        bench.clock,
        config=config or NoiseConfig(),
        containers=bench.config,
        home=bench.home,
        budget_seconds=30.0,
    )
    with closing(slot):
        yield slot


def train(bench: Bench, slot: NoiseMonitor, program: str, budget: float = 30.0) -> RunOutcome:
    """Train `program` on the slot, which somebody else got ready for it."""
    trainer, attempt = bench.trainer(monitor=slot), bench.attempt(program, budget)
    try:
        return trainer.train(attempt, bench.stop, lambda elapsed: None)
    finally:
        trainer.discard(attempt)


def run(bench: Bench, program: str, budget: float, config: NoiseConfig | None = None) -> RunOutcome:
    """Train `program` on a watched slot."""
    with slot_of(bench, config) as slot:
        slot.ready(bench.stop)
        return train(bench, slot, program, budget)


def seen(outcome: RunOutcome) -> Conditions:
    assert outcome.conditions is not None
    return outcome.conditions


@contextmanager
def burners() -> Iterator[None]:
    """A process on every CPU that is none of ours."""
    with ExitStack() as running:
        for _ in range(os.cpu_count() or 1):
            process = running.enter_context(subprocess.Popen([sys.executable, "-c", SPINS]))
            running.callback(process.kill)
        yield


@pytest.fixture(params=["fake", pytest.param("real", marks=pytest.mark.engine)])
def slot(request: pytest.FixtureRequest) -> Iterator[Monitor]:
    if request.param == "fake":
        yield FakeMonitor()
    else:
        with slot_of(request.getfixturevalue("bench")) as made:
            yield made


def test_nobody_waits_who_wants_to_stop(slot: Monitor) -> None:
    stop = threading.Event()
    stop.set()
    before = time.monotonic()
    slot.look(stop)
    assert time.monotonic() - before < 2.5


@pytest.mark.engine
def test_usage_is_that_of_the_running_containers_of_this_home(bench: Bench) -> None:
    attempt = bench.attempt(SPINS, 60.0)
    bench.start(attempt)
    name = ContainerNames(bench.home, "0").name(Domain.TRAINER)
    deadline = time.monotonic() + 60
    while (used := bench.sandbox.usage() or {}).get(name, 0.0) < 0.5:
        assert time.monotonic() < deadline
    assert set(used) == {name, ContainerNames(bench.home, "0").name(Domain.HOLDER)}
    counters = CpuCounters(bench.sandbox, bench.clock)
    cpus = SlotCpus(counters, ContainerNames.of_slot(bench.home, 0), frozenset())
    before, after = cpus.read(), None
    while after is None or before is None or after.own[name] - before.own[name] < 0.5:
        after = cpus.read()
        assert time.monotonic() < deadline
    found = cpu_conditions([before, after])
    assert found is not None and found.ours > 0 and found.ours + found.others <= 1.0001
    bench.sandbox.kill(name)
    bench.sandbox.wait(name, deadline=deadline, stop=bench.stop)
    assert name not in (bench.sandbox.usage() or {})


@pytest.mark.engine
def test_a_slot_with_cpus_of_its_own_does_not_count_those_of_others(bench: Bench) -> None:
    for experiment in ("3", "4"):
        bench.start(bench.attempt(SPINS, 60.0, experiment))
    slot = ContainerNames.of_slot(bench.home, 0)
    counters = CpuCounters(bench.sandbox, bench.clock)
    ours, every = (SlotCpus(counters, slot, cpus) for cpus in (frozenset({0}), frozenset()))
    ours.experiment = every.experiment = "3"
    names = {number: ContainerNames(bench.home, number).name(Domain.TRAINER) for number in ("3", "4")}
    one, all_ = ours.read(), every.read()
    assert one is not None and all_ is not None and one.at == all_.at
    assert names["3"] in one.own and names["4"] not in one.own and "controller" in one.own
    assert set(names.values()) < set(all_.own)
    assert one.busy + one.idle < all_.busy + all_.idle
    for name in names.values():
        bench.sandbox.kill(name)


@pytest.mark.engine
def test_others_on_the_cpus_are_noticed_beside_a_run_and_without_one(bench: Bench) -> None:
    strict = NoiseConfig(cpu_share=0.1, retry_seconds=1.0)
    with burners(), slot_of(bench, strict) as slot:
        found = [slot.look(bench.stop) for _ in range(2)]
        outcome = run(bench, SPINS, 7.0, strict)
    assert [one and one.kind for one in found] == [DisturbanceKind.CPU_LOAD] * 2, "it lasts"
    [disturbance] = seen(outcome).disturbances
    assert disturbance.kind is DisturbanceKind.CPU_LOAD
    cpu = seen(outcome).cpu
    assert cpu is not None and 0.1 < cpu.contended <= cpu.others < 1 and cpu.ours > 0


@pytest.mark.engine
def test_a_runtime_that_counts_nothing_makes_no_run_look_disturbed(make_bench: Callable[..., Bench]) -> None:
    """Where gVisor is told to leave cgroups alone, T's own load must not be taken for that of others."""
    require_runtime("runsc")
    bench = make_bench(runtime="runsc")
    outcome = run(bench, SPINS, 7.0, NoiseConfig(cpu_share=1.0))
    cpu = outcome.conditions.cpu if outcome.conditions else None
    assert cpu is None or cpu.ours > 0.1


@pytest.fixture(scope="module")
def image() -> Iterator[str]:
    with image_with(nvidia_smi=NVIDIA_SMI) as tag:
        yield tag


GpuBench = Callable[[str], Bench]


@pytest.fixture
def gpu_bench(image: str, make_bench: Callable[..., Bench]) -> GpuBench:
    """A bench on a slot with such a GPU."""
    return lambda gpu: make_bench(image=image, gpu=[gpu], gpu_access="runtime")


@pytest.mark.engine
@pytest.mark.parametrize("gpu", ["fine", "old"])
def test_what_the_driver_says_is_on_record(gpu: str, gpu_bench: GpuBench) -> None:
    bench = gpu_bench(gpu)
    with slot_of(bench) as slot:
        slot.ready(bench.stop)
        slot.look(bench.stop)  # time passes, so that there is something before the training
        found = seen(train(bench, slot, "import time\ntime.sleep(3)")).gpu
    assert found is not None and found.samples >= 1 and len(found.spec_sha256) == 64
    assert (found.temperature_max, found.sm_clock_mean, found.power_max) == (40.0, 1980.0, 300.0)
    assert (found.foreign_bytes, found.throttled) == (1024**2, {})
    assert bench.sandbox.leftovers() == ([], [])


@pytest.fixture
def reached() -> Iterator[dict[str, float]]:
    """When each place was last reached, Clock.monotonic."""
    times: dict[str, float] = {}
    failpoints.install(lambda place: times.update({place: time.monotonic()}))
    yield times
    failpoints.install(None)


@pytest.mark.engine
def test_no_training_waits_for_the_driver(gpu_bench: GpuBench, reached: dict[str, float]) -> None:
    """The stand-in takes 3 s for its first word, as the driver of an H200 does for its second."""
    bench = gpu_bench("slow")
    with slot_of(bench, NoiseConfig(cpu_share=1.0)) as slot:
        asked = time.monotonic()
        outcome = train(bench, slot, "import time\ntime.sleep(5)")  # adopted, say: nobody got the slot ready
        found = seen(outcome).gpu
        assert reached["container-due-holder"] - asked <= 0.3
        assert reached["container-due-trainer"] - asked <= 3.0
        assert found is not None and found.samples >= 1 and found.foreign_bytes is None

        assert slot.look(bench.stop) is None
        asked = time.monotonic()
        slot.ready(bench.stop)
        found = seen(train(bench, slot, SLEEPS)).gpu
        assert reached["container-due-holder"] - asked <= 0.3
        assert found is not None and (found.foreign_bytes, found.foreign_share) == (1024**2, 0.0)
    assert bench.sandbox.leftovers() == ([], [])


@pytest.mark.engine
def test_the_first_training_of_a_session_has_something_before_it(gpu_bench: GpuBench) -> None:
    bench = gpu_bench("slow")
    with slot_of(bench, NoiseConfig(cpu_share=1.0)) as slot:
        slot.ready(bench.stop)
        slot.look(bench.stop)  # time passes
        found = seen(train(bench, slot, SLEEPS)).gpu
    assert found is not None and found.foreign_bytes == 1024**2


@pytest.mark.engine
def test_a_run_whose_gpu_was_lost_is_not_to_blame(gpu_bench: GpuBench) -> None:
    bench = gpu_bench("lost")
    outcome = run(bench, f"{SLEEPS}\nraise RuntimeError('CUDA error')", 30.0)
    assert DisturbanceKind.GPU_LOST in [found.kind for found in seen(outcome).disturbances]
    assert outcome.cause is not None


@pytest.mark.engine
def test_a_gpu_that_somebody_else_uses_is_waited_for(gpu_bench: GpuBench) -> None:
    bench = gpu_bench("shared")
    with slot_of(bench, NoiseConfig(cpu_share=1.0)) as slot:
        found = slot.look(bench.stop)
    assert found is not None and found.kind is DisturbanceKind.GPU_SHARED
    assert "39.1 GiB" in found.detail
    assert bench.sandbox.leftovers() == ([], [])


@pytest.mark.engine
def test_a_driver_that_cannot_be_asked_makes_nothing_void(gpu_bench: GpuBench) -> None:
    outcome = run(gpu_bench("mute"), SLEEPS, 30.0, NoiseConfig(cpu_share=1.0))
    assert outcome.exit_code == 0
    assert outcome.conditions is None or (outcome.conditions.gpu, outcome.conditions.disturbances) == (
        None,
        (),
    )
