"""What the loop does with a disturbed run: void, wait for a quiet slot, repeat; and never for ever."""

from __future__ import annotations

import datetime as dt
import io
import threading
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import pytest
from rich.console import Console

from controller.agents.replay import Replay
from controller.core.errors import Interrupted
from controller.core.events import Record, SlotDisturbed, SlotReady, TrainingStarted, Voided
from controller.core.hardware.disturbance import NoiseConfig
from controller.core.state import ResearchState, fold
from controller.core.values import Cause, Disturbance, DisturbanceKind, Verdict
from controller.observers.notices import Context, follow
from controller.store.journal import read_records
from controller.store.verify import verify
from controller.views import facts as views_json
from controller.views import tables as views
from tests.loop.effort import Effort, start, verdicts
from tests.support.fakes import LOAD, LOST, SHARED, FakeMonitor, HandClock, Hasty, Silent, train_py

QUICK = NoiseConfig(retry_seconds=0.001, max_retry_seconds=0.004)
THROTTLED = LOAD.model_copy(update={"kind": DisturbanceKind.GPU_THROTTLED})


def effort_of(
    efforts: list[Effort], folder: Path, *texts: str, slot: FakeMonitor | None = None
) -> tuple[Effort, FakeMonitor]:
    proposals = folder / "proposals"
    proposals.mkdir()
    for number, text in enumerate(texts):
        (proposals / f"{number:02d}.py").write_text(text, encoding="utf-8")
    effort, slot = start(efforts, folder / "home", Replay(proposals)), slot or FakeMonitor()
    effort.watch(slot)
    effort.rule(noise=QUICK)
    return effort, slot


def told(home: Path) -> list[str]:
    """Of the noise alone."""
    events = (TrainingStarted, Voided, SlotDisturbed, SlotReady)
    return [record.data.event for record in read_records(home) if isinstance(record.data, events)]


def test_a_disturbed_run_is_void_and_repeated_once_the_slot_is_quiet(
    tmp_path: Path, efforts: list[Effort]
) -> None:
    effort, slot = effort_of(efforts, tmp_path, train_py(2.5, "disturbed 1"), slot=FakeMonitor([LOAD] * 4))
    loop = effort.loop()
    loop.run()
    assert verdicts(loop.state) == [(Verdict.KEEP, None), (Verdict.KEEP, None)]
    assert loop.state.experiments[1].attempt == 2 and slot.looks == 5
    once = [
        "training_started",
        "voided",
        "slot_disturbed",
        "slot_disturbed",
        "slot_ready",
        "training_started",
    ]
    assert told(effort.home) == ["training_started", *once]
    [void] = [record.data for record in read_records(effort.home) if isinstance(record.data, Voided)]
    assert (void.cause, void.evidence, void.attempt) == ("disturbed", LOAD, 1)
    assert fold(read_records(effort.home)) == loop.state
    assert loop.state.slot(0).noise is None
    assert verify(effort.home) == []


def test_noise_that_comes_and_goes_with_the_run_is_the_runs_own(
    tmp_path: Path, efforts: list[Effort]
) -> None:
    """Else a text that makes the engine work when its loss is bad could have itself drawn again."""
    effort, slot = effort_of(efforts, tmp_path, train_py(2.5, "disturbed 99"), train_py(2.25))
    loop = effort.loop()
    loop.run()
    assert [experiment.attempt for experiment in loop.state.experiments] == [1, 1, 1]
    assert [views_json.marks(experiment) for experiment in loop.state.experiments] == [[], ["disturbed"], []]
    assert loop.state.count(Verdict.KEEP) == 3 and slot.looks == 1


@pytest.mark.parametrize("seen", [[LOAD], [LOAD, SHARED], [THROTTLED, THROTTLED]])
def test_what_a_run_leaves_behind_for_a_moment_is_the_runs_own(
    tmp_path: Path, efforts: list[Effort], seen: list[Disturbance]
) -> None:
    effort, _ = effort_of(efforts, tmp_path, train_py(2.5, "disturbed 99"), slot=FakeMonitor(seen))
    loop = effort.loop()
    loop.run()
    assert loop.state.experiments[1].attempt == 1
    assert views_json.marks(loop.state.experiments[1]) == ["disturbed"]


def test_what_was_there_before_a_run_needs_no_other_proof(tmp_path: Path, efforts: list[Effort]) -> None:
    effort, slot = effort_of(efforts, tmp_path, train_py(2.5, "occupied 1"))
    loop = effort.loop()
    loop.run()
    assert loop.state.experiments[1].attempt == 2 and slot.looks == 1


def test_a_run_that_loses_its_gpu_again_and_again_counts(tmp_path: Path, efforts: list[Effort]) -> None:
    """A run may be able to bring a driver down, and that is seen without the run as well."""
    effort, _ = effort_of(
        efforts, tmp_path, train_py(2.5, "lost 99"), slot=FakeMonitor([LOST, LOST, None] * 9)
    )
    loop = effort.loop()
    loop.run()
    assert loop.state.experiments[1].attempt == 1 + QUICK.repeats
    assert views_json.marks(loop.state.experiments[1]) == ["disturbed"]


def test_noise_that_is_there_without_a_run_is_never_the_runs_own(
    tmp_path: Path, efforts: list[Effort]
) -> None:
    effort, slot = effort_of(efforts, tmp_path, train_py(2.5, "disturbed 6"))

    class Restless(FakeMonitor):
        """Disturbed at the two looks after a run, calm at the third."""

        def look(self, stop: threading.Event) -> Disturbance | None:
            self.looks += 1
            return LOAD if self.looks % 3 else None

    effort.watch(slot := Restless())
    loop = effort.loop()
    loop.run()
    assert loop.state.experiments[1].attempt == 7 and slot.looks == 18
    assert views_json.marks(loop.state.experiments[1]) == []


class StopsAtLook(Silent):
    """Asks to stop once a look has found the slot disturbed."""

    def __init__(self, stop: threading.Event) -> None:
        self._stop = stop

    def recorded(self, record: Record, state: ResearchState) -> None:
        if isinstance(record.data, SlotDisturbed):
            self._stop.set()


@dataclass
class Waiting:
    """An effort whose disturbed experiment still waited when a person stopped it."""

    effort: Effort
    state: ResearchState


@pytest.fixture
def waiting(tmp_path: Path, efforts: list[Effort]) -> Waiting:
    effort, _ = effort_of(efforts, tmp_path, train_py(2.5, "disturbed 1"), slot=FakeMonitor([LOAD] * 5))
    effort.components.observer = StopsAtLook(effort.stop)
    loop = effort.loop()
    with pytest.raises(Interrupted):
        loop.run()
    return Waiting(effort, loop.state)


def test_status_says_that_it_waits_and_why(waiting: Waiting) -> None:
    noise = views_json.status(waiting.state, "2026-03-01")["noise"]
    assert (noise["experiment"], noise["kind"], noise["looks"]) == (1, "cpu-load", 1)
    assert noise["until"] is not None
    console = Console(file=io.StringIO(), width=200)
    console.print(views.status(waiting.state, "2026-03-01"))
    assert "Others were busy" in console.file.getvalue()  # type: ignore[attr-defined]


def test_a_new_process_goes_on_waiting(waiting: Waiting) -> None:
    effort = waiting.effort
    effort.restart()
    effort.watch(FakeMonitor([LOAD]))
    effort.rule(noise=QUICK)
    loop = effort.loop()
    loop.run()
    assert loop.state.experiments[1].attempt == 2 and loop.state.experiments[1].verdict is Verdict.KEEP
    assert told(effort.home)[-4:] == ["slot_disturbed", "slot_disturbed", "slot_ready", "training_started"]


def test_a_new_process_that_does_not_watch_does_not_wait(waiting: Waiting) -> None:
    effort = waiting.effort
    effort.restart()
    loop = effort.loop()
    loop.run()
    assert loop.state.slot(0).noise is None and loop.state.count(Verdict.KEEP) == 2


def test_a_person_and_the_hours_end_the_wait(waiting: Waiting) -> None:
    effort = waiting.effort
    effort.restart()
    effort.watch(FakeMonitor([LOAD] * 1000))
    effort.rule(noise=QUICK)
    loop = effort.loop(hours=1e-5)
    assert "hours reached" in loop.run()
    assert loop.state.slot(0).noise is not None and loop.state.open
    effort.restart()
    effort.watch(FakeMonitor([LOAD] * 1000))
    effort.rule(noise=NoiseConfig(retry_seconds=60))
    effort.components.observer = StopsAtLook(effort.stop)
    with pytest.raises(Interrupted):
        effort.loop().run()


def test_the_pauses_double_up_to_their_limit(waiting: Waiting) -> None:
    effort, clock = waiting.effort, HandClock()
    clock.wall = dt.datetime.now(dt.UTC)  # later than what is on record
    effort.restart()
    effort.watch(FakeMonitor([LOAD] * 5))
    effort.rule(noise=NoiseConfig(retry_seconds=10, max_retry_seconds=40))
    effort.components.clock, effort.components.stop = clock, Hasty(clock)
    loop = effort.loop()
    loop.run()
    disturbed = [r.data for r in read_records(effort.home) if isinstance(r.data, SlotDisturbed)]
    assert [event.looks for event in disturbed] == [*range(1, 7)]
    times = [dt.datetime.fromisoformat(event.until) for event in disturbed[1:]]
    pauses = [(later - earlier).total_seconds() for earlier, later in pairwise(times)]
    assert pauses == pytest.approx([40, 40, 40, 40], abs=1.5), "each look takes a moment"
    assert loop.state.slot(0).noise is None


def test_a_wait_that_lasts_is_told_once(tmp_path: Path, efforts: list[Effort]) -> None:
    texts = train_py(2.5, "disturbed 1"), train_py(2.25)
    effort, _ = effort_of(efforts, tmp_path, *texts, slot=FakeMonitor([LOAD] * 8))
    effort.loop().run()
    context, told = Context(), []
    for record in read_records(effort.home):
        context, notice = follow(context, record)
        told += [notice] if notice and notice.kind == "stall" else []
    assert [notice.reason for notice in told] == [LOAD.detail]
    assert not context.stalled


@pytest.mark.parametrize(
    ("sees", "end"),
    [
        ([], (Verdict.CRASH, Cause.WORKER_TIMEOUT)),
        ([LOAD], (Verdict.CRASH, Cause.WORKER_TIMEOUT)),
        ([LOAD, LOAD], (Verdict.KEEP, None)),
        ([LOST, LOST], (Verdict.KEEP, None)),
    ],
)
def test_a_worker_too_slow_on_a_busy_slot_is_not_to_blame(
    tmp_path: Path, efforts: list[Effort], sees: list[Disturbance], end: tuple[Verdict, Cause | None]
) -> None:
    effort, _ = effort_of(efforts, tmp_path, train_py(2.5, "slow"), slot=FakeMonitor(sees))
    loop = effort.loop()
    loop.run()
    assert verdicts(loop.state)[1] == end
    assert loop.state.experiments[1].attempt == (2 if end[0] is Verdict.KEEP else 1)


def test_a_leak_is_a_leak_on_any_slot(tmp_path: Path, efforts: list[Effort]) -> None:
    effort, slot = effort_of(efforts, tmp_path, train_py(-1.0), slot=FakeMonitor([LOAD]))
    loop = effort.loop()
    loop.run()
    assert verdicts(loop.state)[1] == (Verdict.REJECT, Cause.NON_CAUSAL) and slot.looks == 0
