"""`make chaos N=300`: kill the controller N times on real containers and look for harm, as a table."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from controller.core.model import NotReady
from controller.failpoints import NAMES
from tests.chaos.effort import Effort, prepare
from tests.chaos.engine import require
from tests.chaos.faults import Record, of_engine, of_runner
from tests.chaos.plan import Deck
from tests.chaos.torment import Tally, torment

PARALLEL = 3
"""Efforts under way at a time, each in a home of its own: much of the time they wait."""
KILLS = 50
"""In one effort. Every new home is killed at its beginning, too."""
AGENTS = ("replay", "claude", "replay")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos")
    parser.add_argument("n", nargs="?", type=int, default=100, help="kills")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", default=(), metavar="WORD", help="places that hold a word")
    parser.add_argument("--agent", choices=("replay", "claude"), help="the only agent at work")
    parser.add_argument("--engine", action="store_true", help="instead, let an engine of our own fail")
    parser.add_argument("--runner", action="store_true", help="instead, let the runner fail")
    parser.add_argument("--list", action="store_true", help="print the places and do nothing")
    arguments = parser.parse_args()
    if arguments.list:
        print(*NAMES, sep="\n")
        return 0
    try:
        require()
    except NotReady as error:
        print(f"chaos: {error}", file=sys.stderr)
        return error.exit_status
    what = "faults" if arguments.engine or arguments.runner else f"{arguments.n} kills"
    load = f"{os.cpu_count()} CPUs, load average {os.getloadavg()[0]:.2f}"
    print(f"{what}, seed {arguments.seed}; {load}", flush=True)
    if arguments.engine or arguments.runner:
        return _faults(of_engine if arguments.engine else of_runner, arguments.seed)
    began, tally, stop = time.monotonic(), Tally(), threading.Event()
    deck, dealing = Deck(arguments.seed, arguments.only), threading.Lock()
    agents = [arguments.agent] if arguments.agent else AGENTS

    def one(folder: Path, number: int) -> None:
        agent, left = agents[number % len(agents)], min(KILLS, arguments.n - number * KILLS)
        with dealing:
            kills = deck.deal(agent, left)
        (folder / str(number)).mkdir()
        with Effort.open(folder / str(number), folder / "data", agent) as effort:
            torment(effort, kills, tally, f"{number:>3} {agent}", stop=stop)

    with tempfile.TemporaryDirectory(prefix="chaos-") as name, ThreadPoolExecutor(PARALLEL) as pool:
        folder = Path(name)
        prepare(folder / "data")
        try:
            for _ in pool.map(lambda number: one(folder, number), range(-(-arguments.n // KILLS))):
                pass
        except KeyboardInterrupt:
            stop.set()  # each effort comes to its end
    print(*tally.table(), sep="\n")
    print(f"{tally.summary()} ({time.monotonic() - began:.0f} s)")
    return int(bool(tally.violations))


def _faults(ordeal: Callable[[Path, Path, int], Record], seed: int) -> int:
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="chaos-") as name:
        (folder := Path(name) / "effort").mkdir()
        prepare(Path(name) / "data")
        record = ordeal(folder, Path(name) / "data", seed)
    print("\nattempts void, for these reasons:", *sorted(set(record.void)), sep="\n    ")
    print(*(f"VIOLATION: {one}" for one in record.violations), sep="\n")
    print(
        f"{len(record.faults)} faults; {record.experiments} experiments, {len(record.void)} attempts void; "
        f"{len(record.violations)} violations ({time.monotonic() - began:.0f} s)"
    )
    return int(bool(record.violations))


if __name__ == "__main__":
    sys.exit(main())
