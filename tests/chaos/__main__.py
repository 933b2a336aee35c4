"""`make chaos N=300`: kill the controller N times on real containers and look for harm, as a table."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Protocol

from controller.core.errors import NotReady
from controller.failpoints import NAMES
from tests.chaos.effort import Effort, prepare
from tests.chaos.engine import require
from tests.chaos.faults import Record, of_engine, of_runner
from tests.chaos.plan import Deck, Kill, RunnerDeck, chosen
from tests.chaos.rare import KILLS as RARE
from tests.chaos.rare import rare
from tests.chaos.runner_kills import SETTINGS, torment_runner
from tests.chaos.torment import Tally, torment

PARALLEL = 3
"""Efforts under way at a time, each in a home of its own: much of the time they wait."""
KILLS = 25
"""In one effort. Every new home is killed at its beginning, too."""
COURSES = (("replay", 1), ("replay", 2), ("claude", 1), ("replay", 2), ("replay", 1), ("claude", 2))
"""Agent and number of slots of one effort after another."""


def main() -> int:
    arguments = _arguments()
    if arguments.list:
        print(*NAMES, sep="\n")
        return 0
    try:
        require()
    except NotReady as error:
        print(f"chaos: {error}", file=sys.stderr)
        return error.exit_status
    what = "faults of the engine" if arguments.engine else f"{arguments.n} kills"
    load = f"{os.cpu_count()} CPUs, load average {os.getloadavg()[0]:.2f}"
    print(f"{what}, seed {arguments.seed}; {load}", flush=True)
    with tempfile.TemporaryDirectory(prefix="chaos-") as name:
        prepare(Path(name) / "data")
        violations = 0
        if arguments.engine or (arguments.runner and not arguments.only):
            ordeal = of_engine if arguments.engine else of_runner
            violations += _faults(ordeal, Path(name), arguments.seed)
        if not arguments.engine:
            violations += _kills(_efforts(arguments), Path(name))
    return int(violations > 0)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos")
    parser.add_argument("n", nargs="?", type=int, default=100, help="kills")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", default=(), metavar="WORD", help="places that hold a word")
    parser.add_argument("--agent", choices=("replay", "claude"), help="the only agent at work")
    parser.add_argument("--list", action="store_true", help="print the places and do nothing")
    parser.add_argument("--slots", type=int, choices=(1, 2), help="the same number in every effort")
    parser.add_argument("--through-runner", action="store_true", help="the controller works through a runner")
    instead = parser.add_mutually_exclusive_group()
    instead.add_argument("--engine", action="store_true", help="instead, let an engine of our own fail")
    instead.add_argument("--runner", action="store_true", help="instead, let the runner fail, and kill it")
    return parser.parse_args()


class Ordeal(Protocol):
    """One effort under way: what is done to it in its folder with the data, counted in the tally."""

    def __call__(self, folder: Path, data: Path, tally: Tally, stop: threading.Event) -> None: ...


def _efforts(arguments: argparse.Namespace) -> list[tuple[str, Ordeal]]:
    """By name, in the order in which they are begun; all kills are dealt."""
    courses = [
        (agent, slots)
        for agent, slots in COURSES
        if arguments.agent in (None, agent) and arguments.slots in (None, slots)
    ]
    sizes = [min(KILLS, arguments.n - begun) for begun in range(0, arguments.n, KILLS)]
    seed, only, through = arguments.seed, arguments.only, arguments.through_runner
    deck = RunnerDeck(seed, only) if arguments.runner else Deck(seed, only, through_runner=through)
    efforts: list[tuple[str, Ordeal]] = []
    for number, size in enumerate(sizes):
        agent, slots = courses[number % len(courses)]
        kills, name = deck.deal(agent, size), f"{number:>3} {agent}{' x2' if slots == 2 else ''}"
        ordeal = of_the_runner if arguments.runner else of_the_controller
        efforts.append((name, partial(ordeal, name, agent, slots, kills, through)))
    if not arguments.runner:
        for kind, places in RARE.items():
            if kills := [kill for kill in places if not only or kill.place in chosen(NAMES, only)]:
                efforts.append((kind, partial(of_something_rare, kind, kills, through)))
    return efforts


def of_the_controller(
    name: str,
    agent: str,
    slots: int,
    kills: Sequence[Kill],
    through: bool,
    folder: Path,
    data: Path,
    tally: Tally,
    stop: threading.Event,
) -> None:
    with Effort.open(folder, data, agent, slots=slots, through_runner=through) as effort:
        torment(effort, kills, tally, name, stop=stop)


def of_the_runner(
    name: str,
    agent: str,
    slots: int,
    kills: Sequence[Kill],
    _: bool,
    folder: Path,
    data: Path,
    tally: Tally,
    stop: threading.Event,
) -> None:
    with Effort.open(
        folder, data, agent, slots=slots, sound=True, through_runner=True, environment=SETTINGS
    ) as effort:
        torment_runner(effort, kills, tally, name, stop=stop)


def of_something_rare(
    kind: str,
    kills: Sequence[Kill],
    through: bool,
    folder: Path,
    data: Path,
    tally: Tally,
    stop: threading.Event,
) -> None:
    with rare(kind, folder, data, through_runner=through) as effort:
        torment(effort, kills, tally, kind, stop=stop)


def _kills(efforts: Sequence[tuple[str, Ordeal]], folder: Path) -> int:
    """Number of violations."""
    began, tally, stop = time.monotonic(), Tally(), threading.Event()

    def one(name: str, ordeal: Ordeal) -> None:
        place = folder / name.strip().replace(" ", "-")
        place.mkdir()
        ordeal(folder=place, data=folder / "data", tally=tally, stop=stop)

    with ThreadPoolExecutor(PARALLEL) as pool:
        try:
            for _ in pool.map(lambda effort: one(*effort), efforts):
                pass
        except KeyboardInterrupt:
            stop.set()  # each effort comes to its end
    print(*tally.table(), sep="\n")
    print(f"{tally.summary()} ({time.monotonic() - began:.0f} s)", flush=True)
    return len(tally.violations)


def _faults(ordeal: Callable[[Path, Path, int], Record], place: Path, seed: int) -> int:
    """Number of violations."""
    began, folder = time.monotonic(), place / "faults"
    folder.mkdir()
    record = ordeal(folder, place / "data", seed)
    print("\nattempts void, for these reasons:", *sorted(set(record.void)), sep="\n    ")
    print(*(f"VIOLATION: {one}" for one in record.violations), sep="\n")
    print(
        f"{len(record.faults)} faults, {record.restarts} restarts; {record.experiments} experiments, "
        f"{record.adopted} runs adopted, {len(record.void)} attempts void; "
        f"{len(record.violations)} violations ({time.monotonic() - began:.0f} s)",
        flush=True,
    )
    return len(record.violations)


if __name__ == "__main__":
    sys.exit(main())
