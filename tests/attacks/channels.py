"""`python -m tests.attacks.channels`: what one container can tell the next one through the machine, measured.

A worker writes and a trainer or the second worker reads, with their real mounts and limits on system calls.
docs/decisions/channels.md has the figures and what they mean.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median

from controller.core.containers.config import MIB
from controller.core.errors import NotReady
from tests.attacks.channel_programs import CHANNELS
from tests.attacks.counters import WORKER_SECONDS, Counter, survey
from tests.attacks.ground import grounds
from tests.attacks.relay import Relay, Relayed

_IMPORT = "import time; began = time.monotonic(); import torch; print(time.monotonic() - began)"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.attacks.channels")
    parser.add_argument("--bits", type=int, default=512, help="to write into each cache")
    parser.add_argument("--rounds", type=int, default=5, help="of what is timed")
    parser.add_argument("part", nargs="?", choices=["caches", "counters", "cost"], help="all, if none")
    options = parser.parse_args()
    parts: Mapping[str, Callable[[Relay], None]] = {
        "caches": lambda relay: _show_caches(relay, options.bits),
        "counters": lambda relay: _show_counters(survey(relay)),
        "cost": lambda relay: _show_cost(relay, options.rounds),
    }
    with tempfile.TemporaryDirectory(prefix="channels-") as folder:
        try:
            with grounds(Path(folder), 1) as [ground]:
                relay = Relay.of(ground.bench, log_bytes=64 * MIB)
                for name in [options.part] if options.part else parts:
                    parts[name](relay)
        except NotReady as error:
            print(f"channels: {error}", file=sys.stderr)
            return error.exit_status
    return 0


def _show_caches(relay: Relay, bits: int) -> None:
    before = relay.relay(bits, empty=False)
    trainer, second = relay.relay(bits, empty=True), relay.relay(bits, empty=True, second=True)
    print(f"\n{'':42} {'bits a second':>16}   wrong of {bits}: as it was; emptied: trainer, second worker")
    print(f"{'cache':42} {'written':>8} {'read':>7}")
    for channel in CHANNELS:
        found: Relayed = before[channel]
        rates = f"{bits / found.written:8.0f} {bits / found.read:7.0f}"
        errors = "  ".join(f"{100 * of[channel].errors:5.1f} %" for of in (before, trainer, second))
        print(f"{channel:42} {rates}   {errors}", flush=True)


def _show_counters(counters: list[Counter]) -> None:
    print(f"\nbits that a worker of {WORKER_SECONDS:.0f} s can leave in what all containers can read")
    sources: dict[str, list[Counter]] = defaultdict(list)
    for counter in counters:
        sources[counter.source.split(" [")[0]].append(counter)
    for source, of in sorted(sources.items(), key=lambda item: -sum(c.bits for c in item[1])):
        print(f"{sum(c.bits for c in of):6.1f} bits in {len(of):3} numbers of {source}")
    total = sum(counter.bits for counter in counters)
    print(f"{total:6.1f} bits in {len(counters)} numbers, if each could be moved by itself", flush=True)


def _show_cost(relay: Relay, rounds: int) -> None:
    """Medians of seconds: emptying, warming, and what a trainer's import of torch takes afterwards."""
    taken: dict[str, list[float]] = defaultdict(list)

    def timed(name: str, work: Callable[[], object]) -> None:
        began = time.monotonic()
        work()
        taken[name].append(time.monotonic() - began)

    with relay.sandbox(empty=False) as plain, relay.sandbox(empty=True) as emptying:
        relay.train(plain, _IMPORT)
        for _ in range(rounds):
            taken["import of torch, warm"].append(float(relay.train(plain, _IMPORT)))
            timed("a trainer that does nothing, as it was", lambda: relay.train(plain, "print(0)"))
            timed("a trainer that does nothing, emptied before", lambda: relay.train(emptying, "print(0)"))
            taken["import of torch, emptied and warmed"].append(float(relay.train(emptying, _IMPORT)))
            timed("emptying", lambda: emptying._empty_caches(False))
            taken["import of torch, emptied"].append(float(relay.train(plain, _IMPORT)))
            timed("emptying and warming", lambda: emptying._empty_caches(True))
    print(f"\nseconds, median and range of {rounds}")
    for name, values in sorted(taken.items()):
        print(f"{name:45} {median(values):6.2f}  {min(values):.2f} to {max(values):.2f}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
