"""What the loop does about workers that use too much, and about programs that are under suspicion."""

from __future__ import annotations

import io
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console

from controller.agents.replay import Replay
from controller.core.events import ProposalRefused
from controller.core.program.suspicion import Suspicion
from controller.core.state import fold
from controller.core.values import Cause, Draw, Refusal, Score, Verdict, Work
from controller.ports import Attempt
from controller.store.journal import read_records
from controller.store.verify import verify
from controller.views import facts as views_json
from controller.views import tables as views
from controller.views.facts import Exhibit
from tests.loop.effort import Effort, start, verdicts
from tests.loop.test_noise import QUICK
from tests.support.fakes import LOAD, WORK, FakeJudge, FakeMonitor, FakeTrainer, train_py


def effort_of(efforts: list[Effort], folder: Path, *texts: str) -> Effort:
    proposals = folder / "proposals"
    proposals.mkdir()
    for number, text in enumerate(texts):
        (proposals / f"{number:02d}.py").write_text(text, encoding="utf-8")
    return start(efforts, folder / "home", Replay(proposals))


def test_the_baselines_work_is_what_others_are_measured_by(tmp_path: Path, efforts: list[Effort]) -> None:
    effort = effort_of(efforts, tmp_path, train_py(2.5, "heavy"), train_py(2.4))
    loop = effort.loop()
    loop.run()
    assert loop.state.reference == (WORK, WORK)
    assert verdicts(loop.state) == [
        (Verdict.KEEP, None),
        (Verdict.REJECT, Cause.OVER_BUDGET),
        (Verdict.KEEP, None),
    ]
    assert fold(read_records(effort.home)) == loop.state
    assert verify(effort.home) == []
    kept = views_json.show(Exhibit(loop.state, 2))["score"]["work"]
    assert [work["cpu_seconds"] for work in kept] == [9.3, 9.3]
    heavy = views_json.show(Exhibit(loop.state, 1))["refusal"]
    assert heavy["work"][0]["cpu_seconds"] > heavy["work"][0]["allowed_cpu_seconds"]
    assert "CPU time and may use" in heavy["detail"]
    console = Console(file=io.StringIO(), width=200)
    console.print(views.show(Exhibit(loop.state, 2)))
    assert isinstance(console.file, io.StringIO)
    said = console.file.getvalue()
    assert said.count("8.1 s (allowed") == 2 and said.count("CPU time 9.3 s (allowed") == 2


def test_what_was_rejected_is_not_run_again_from_any_frontier(tmp_path: Path, efforts: list[Effort]) -> None:
    deserter = train_py(2.5, "deserts")
    again = deserter.replace("understand", "know")  # another docstring is no other program
    effort = effort_of(efforts, tmp_path, deserter, train_py(2.4), again, train_py(2.3))
    loop = effort.loop()
    loop.run()
    assert verdicts(loop.state) == [
        (Verdict.KEEP, None),
        (Verdict.REJECT, Cause.UNCONFIRMED),
        (Verdict.KEEP, None),
        (Verdict.KEEP, None),
    ]
    [refused] = [r.data for r in read_records(effort.home) if isinstance(r.data, ProposalRefused)]
    assert refused.cause == "suspect" and "in experiment 1 (unconfirmed)" in refused.detail
    assert [*loop.state.suspects.values()] == [Suspicion(1, Verdict.REJECT, Cause.UNCONFIRMED)]
    assert fold(read_records(effort.home)) == loop.state


class Refusing(FakeJudge):
    """Refuses the first attempt at experiment 1."""

    def __init__(self, trainer: FakeTrainer, refusal: Refusal) -> None:
        super().__init__(trainer)
        self._refusal = refusal

    def score(
        self,
        attempt: Attempt,
        seed: int,
        contends: Callable[[Score], bool],
        stop: threading.Event,
        draw: Draw | None = None,
        reference: Sequence[Work] = (),
    ) -> Score | Refusal:
        if (attempt.experiment, attempt.number) == ("1", 1):
            return self._refusal
        return super().score(attempt, seed, contends, stop, draw, reference)


def test_a_busy_machine_excuses_what_a_worker_did_not_do_in_time(
    tmp_path: Path, efforts: list[Effort]
) -> None:
    """Whatever the verdict would have called it; and it excuses no use of CPU time, nor an end of its own."""
    found = []
    for cause, symptom in (
        (Cause.OVER_BUDGET, Cause.WORKER_TIMEOUT),
        (Cause.OVER_BUDGET, None),
        (Cause.UNCONFIRMED, Cause.WORKER_TIMEOUT),
        (Cause.UNCONFIRMED, Cause.FORWARD),
        (Cause.NON_CAUSAL, None),
    ):
        (folder := tmp_path / f"{cause}-{symptom}").mkdir()
        effort = effort_of(efforts, folder, train_py(2.5))
        effort.watch(FakeMonitor([LOAD, LOAD]))
        effort.rule(noise=QUICK)
        effort.slot.judge = Refusing(effort.trainer, Refusal(cause=cause, symptom=symptom))
        (loop := effort.loop()).run()
        found.append(loop.state.experiments[1].attempt == 2)
    assert found == [True, False, True, False, False]
