"""`make bench`: kill accuracy, overhead, sandbox, rehearsal, waiting for an agent, long past, slots, scoring.

`make bench ONLY=gpu` measures a real effort on the machine's GPU instead, or anywhere with `--device cpu`.

Other work on the machine shows in every figure; for figures to compare, let it be idle.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path

from controller.core.containers.config import SandboxConfig
from controller.sandbox.inputs import sealed
from controller.system import logs
from tests.bench.beside import beside
from tests.bench.gpu import Measure
from tests.bench.idle import BUDGET, LEAST, MOST, race
from tests.bench.measures import kill_errors, overheads, quantile, sandbox_tax
from tests.bench.scoring import BEFORE, Stage, harness_of, measure
from tests.bench.slots import side_by_side
from tests.bench.steps import Long
from tests.bench.timeline import EARNEST_SECONDS
from tests.loop.sixteen import share_in_use


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench")
    usual = [name for name in MEASURES if name not in ASKED_FOR]
    parser.add_argument("measures", nargs="*", default=usual, metavar="|".join(MEASURES))
    parser.add_argument("--runs", type=int, default=20, help="runs killed at their limit")
    parser.add_argument("--rounds", type=int, default=8, help="rounds inside and outside the sandbox")
    parser.add_argument("--experiments", type=int, default=6, help="experiments of the effort")
    parser.add_argument("--past", type=int, default=100_000, help="experiments of the long journal")
    parser.add_argument("--tokens", type=int, default=2_621_440, help="tokens to score at the GPU scale")
    parser.add_argument("--before", default=BEFORE, help="commit whose scoring is measured for comparison")
    parser.add_argument("--budget", type=float, help="seconds of each experiment; 20, and 300 on a GPU")
    of_gpu = parser.add_argument_group("gpu")
    of_gpu.add_argument("--device", default="gpu", help="gpu or cpu")
    of_gpu.add_argument("--data", type=Path, help="a home whose prepared data and settings are taken")
    of_gpu.add_argument("--keep", type=Path, help="where the effort's home is made, to stay")
    of_gpu.add_argument("--upstream", type=Path, help="a train.py that is tried at the same budget")
    of_gpu.add_argument("--replay", type=Path, help="folder of train.py files to run after the baseline")
    options = parser.parse_args()
    print(f"load average {os.getloadavg()[0]:.2f} on {os.cpu_count()} CPUs")
    for name in options.measures:
        MEASURES[name](options)


def kill(options: argparse.Namespace) -> None:
    errors = kill_errors(sealed(SandboxConfig()), options.runs, limit=2.0)
    _line("kill: life minus limit", errors, "aim: p99 ≤ 0.25 s")


def tax(options: argparse.Namespace) -> None:
    inside, outside = sandbox_tax(sealed(SandboxConfig()), options.rounds, seconds=10.0)
    print(
        f"tax: {inside:.1f} steps/s inside, {outside:.1f} outside, ratio {inside / outside:.3f} (aim: ≥ 0.98)"
    )


def overhead(options: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory() as home:
        of_limit, of_life = overheads(Path(home), options.experiments, options.budget or BUDGET_SECONDS)
    _line("overhead: start to start minus limit", of_limit, "aim: ≤ 5 s, scoring included")
    _line("overhead: start to start minus life", of_life, "for runs that end before their limit")


def scoring(options: argparse.Namespace) -> None:
    config = sealed(SandboxConfig())
    now: dict[str, Stage] = {}
    for what, commit in ((f"at {options.before}", options.before), ("now", None)):
        with tempfile.TemporaryDirectory() as folder:
            harness = harness_of(commit, Path(folder))
            if harness is None:
                print(f"scoring: this clone has no commit {commit} to compare with", flush=True)
                continue
            for stage in measure(config, harness, options.tokens):
                print(f"scoring: {stage.name} {what}: {stage.details()}", flush=True)
                earlier, now[stage.name] = now.get(stage.name), stage
                if earlier is not None:
                    faster = earlier.seconds / stage.seconds
                    print(f"scoring: {stage.name} is {faster:.1f} times faster (aim: 4)", flush=True)
    print(f"scoring pipeline: {now['scoring']}", flush=True)


def waiting(options: argparse.Namespace) -> None:
    budget = options.budget or BUDGET_SECONDS
    with tempfile.TemporaryDirectory() as folder:
        ahead, sequential = race(Path(folder), options.experiments, budget)
    scale = f"answers take {LEAST * budget:g} to {MOST * budget:g} s, "
    print(f"waiting: {scale}the scale of 60 to 120 s for 300 s (aim: ≤ 2 % plus scoring)")
    print(f"waiting, asked ahead: {ahead}")
    print(f"waiting, one after the other: {sequential}")
    shares = [f"{idle.share_in_earnest(budget):.2%}" for idle in (ahead, sequential)]
    print(
        f"waiting, at {BUDGET:g} s and 60 to 120 s: {shares[0]}, one after the other {shares[1]}", flush=True
    )


def slots(options: argparse.Namespace) -> None:
    budget, rounds = options.budget or SLOT_SECONDS, max(options.experiments // 2, 1)
    with tempfile.TemporaryDirectory() as folder, open(os.devnull, "w", encoding="utf-8") as nowhere:
        logs.configure(nowhere)
        one, every = side_by_side(Path(folder), rounds, budget)
        share = share_in_use(Path(folder) / "home", 16, 3, PRETENDED_SECONDS)
    times = every.an_hour / one.an_hour
    number = every.experiments // one.experiments
    print(f"slots: one slot of one CPU: {one}", flush=True)
    print(f"slots: {number} slots of one CPU each: {every}; {times:.3f} times (aim: ≥ {0.95 * number:g})")
    print(
        f"slots: 16 with pretended containers: {16 * share:.2f} times one (aim: ≥ {0.98 * 16:.2f})",
        flush=True,
    )


def rehearsal(options: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory() as folder:
        found = beside(Path(folder), sealed(SandboxConfig()), max(options.rounds // 2, 1))
    print(f"rehearsal: {found}", flush=True)


def journal(options: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory() as folder:
        young, old = Long(Path(folder) / "young", 100), Long(Path(folder) / "old", options.past)
        for what, effort in (("100", young), (f"{options.past}", old)):
            _line(
                f"journal: start at {what} experiments",
                [effort.start() for _ in range(5)],
                "CPU time; aim: ≤ 2 s",
            )
        for what, effort in (("100", young), (f"{options.past}", old)):
            _line(
                f"journal: claude's first words at {what} experiments",
                [effort.telling()],
                "CPU time; aim: ≤ 1 s",
            )
        both = [(young.experiment(), old.experiment()) for _ in range(30)]
        _line(
            "journal: an experiment after 100",
            [early for early, _ in both],
            "CPU time; containers pretended",
        )
        _line(
            f"journal: an experiment after {options.past}",
            [late for _, late in both],
            "CPU time; aim: the same",
        )
        young.close()
        old.close()


def gpu(options: argparse.Namespace) -> None:
    measure = Measure(
        device=options.device,
        experiments=options.experiments,
        budget=options.budget or EARNEST_SECONDS,
        data=options.data,
        keep=options.keep,
        upstream=options.upstream,
        replay=options.replay,
    )
    for line in measure.lines():
        print(line, flush=True)


MEASURES = {
    "kill": kill,
    "tax": tax,
    "overhead": overhead,
    "rehearsal": rehearsal,
    "waiting": waiting,
    "journal": journal,
    "slots": slots,
    "scoring": scoring,
    "gpu": gpu,
}
ASKED_FOR = ("gpu",)
"""What is measured only when it is asked for by name."""
BUDGET_SECONDS = 20.0
SLOT_SECONDS = PRETENDED_SECONDS = 60.0
"""Of each training on a real slot, and on a pretended one. Shorter ones would measure how scoring and
containers share two CPUs with everything else."""


def _line(what: str, values: Sequence[float], aim: str) -> None:
    middle, worst = statistics.median(values), max(values)
    print(
        f"{what}: p50 {middle:.3f} s, p99 {quantile(values, 0.99):.3f} s, max {worst:.3f} s, "
        f"n = {len(values)} ({aim})",
        flush=True,
    )


if __name__ == "__main__":
    main()
