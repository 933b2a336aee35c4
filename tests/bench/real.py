"""(c) of `make aa`, in containers: what a seed does to the baseline, and one effort with certificates."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from controller.core.experiment import Experiment
from controller.core.state import ResearchState
from controller.core.statistics.hopeless import BEHIND, Yardstick, hopeless
from controller.core.values import Cause, Verdict
from controller.store.journal import read_records
from controller.store.snapshot import standing
from controller.store.verify import verify
from controller.views.stairs import climb
from tests.bench.measures import PROJECT

EQUAL_TIME = 1.0


def seeds(home: Path, runs: int, budget: float) -> tuple[str, bool]:
    """The same program under so many seeds: its spread with an interval, and whether all runs were scored."""
    # With an idea after them: at its limit of experiments an effort ends without replicates.
    _run(home, {"GLOVEBOX_REPLICATES": json.dumps({"baseline": runs, "every": 0})}, 2, budget)
    state, _ = standing(home)
    spread, made = state.pool.spread, state.runs.get(0, [])
    if spread is None:
        raise RuntimeError(f"the baseline was not scored twice: {state.experiments[0].outcome}")
    low, high = spread.interval()
    scores = [run.val_bpb for run in made]
    told = f"σ {spread.sigma:.6f} (95 % interval {low:.6f} to {high:.6f}) from {len(made)} seeds"
    print(
        f"real: baseline, {budget:g} s: {told}; lowest {min(scores):.6f}, highest {max(scores):.6f}",
        flush=True,
    )
    if (fresh := state.fresh_pool.spread) is not None:
        print(f"real: the same on fresh rows, other ones each time: σ {fresh.sigma:.6f}", flush=True)
    return told, len(made) == runs and not verify(home)


def effort(home: Path, runs: int, budget: float) -> tuple[str, bool]:
    """An effort of the tuner of about so many runs: what it certified, and whether `verify` agrees."""
    # Four runs of the baseline, one in nine for replicates, one in ten for certificates. None is ended early:
    # so it is known what would have come of those that the rule ends.
    _run(home, {"GLOVEBOX_BUDGET__EARLY_END": "false"}, max(2, round((runs - 3) * 0.8)), budget)
    state, _ = standing(home)
    outcomes = Counter(decided.outcome for decided in state.certificates)
    told = (
        f"{len(state.order)} runs: {state.count(Verdict.KEEP) - 1} keeps, {state.replicates} replicates, "
        f"{state.certificate_runs} of them for certificates, which ended {dict(outcomes)}"
    )
    print(f"real: effort, {budget:g} s: {told}", flush=True)
    _, stairs = climb([*read_records(home)])
    for name, steps in (("frontier", stairs.frontier), ("certified", stairs.certified)):
        if steps:
            print(f"real: {name} from {steps[0][1]:.6f} to {steps[-1][1]:.6f}", flush=True)
    for line in map(str, early_ends(state)):
        print(f"real: {line}", flush=True)
    problems = verify(home)
    for problem in problems:
        print(f"real: verify: {problem}", flush=True)
    return told, not problems


@dataclass(frozen=True)
class EarlyEnds:
    """What a rule for ending runs early would have done in an effort without one."""

    behind: float
    """The share of a run's time at which incumbents are compared with it."""
    ended: int
    """Runs that are hopeless by it."""
    better: int
    """Those of them that had a score, better than what they had to beat."""

    def __str__(self) -> str:
        return (
            f"early end, compared with incumbents at {self.behind:.0%} of the time: {self.ended} runs, "
            f"{self.better} of which came out better than the frontier"
        )


def early_ends(state: ResearchState) -> Iterator[EarlyEnds]:
    """The rule as it is, and with incumbents at equal time, over the same runs."""
    for behind in (BEHIND, EQUAL_TIME):
        ended = [*_ended(state.finished, behind)]
        better = sum(
            run.score is not None and run.frontier_bpb is not None and run.score.val_bpb < run.frontier_bpb
            for run in ended
        )
        yield EarlyEnds(behind, len(ended), better)


def _ended(runs: Iterable[Experiment], behind: float) -> Iterator[Experiment]:
    yardstick = Yardstick()
    for run in runs:
        if run.outcome is None:
            continue
        is_incumbent = run.verdict is Verdict.KEEP or run.cause is Cause.REPLICATE
        if run.repeats is None and hopeless(run.outcome.curve, yardstick.limits(behind)) is not None:
            yield run
        if is_incumbent:
            program = run.number if run.repeats is None else run.repeats
            yardstick = yardstick.adding(program, run.outcome.curve)


def _run(home: Path, settings: Mapping[str, str], experiments: int, budget: float) -> None:
    _glovebox({}, "prepare", "--home", home, "--scale", "cpu")
    limits = ("--experiments", experiments, "--budget", budget)
    _glovebox(settings, "run", "--home", home, "--agent", "tuner", "--device", "cpu", "--tag", "aa", *limits)


def _glovebox(settings: Mapping[str, str], *arguments: object) -> None:
    command = [sys.executable, "-m", "controller", *map(str, arguments)]
    subprocess.run(
        command, cwd=PROJECT, check=True, stdout=subprocess.DEVNULL, env={**os.environ, **settings}
    )
