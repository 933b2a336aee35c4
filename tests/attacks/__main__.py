"""`make attacks`: every attack and every honest model on real containers, as a table."""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from typing import TypeVar

from controller.core.errors import GloveboxError, NotReady
from tests.attacks.arena import Arena, Comparison, Ending
from tests.attacks.cases import Case
from tests.attacks.ground import Assault, Gained, Ground, grounds
from tests.attacks.honest import HONEST, Honest
from tests.attacks.suite import ASSAULTS, ATTACKS

PARALLEL = 2
"""Cases under way at a time, each in a home of its own: most of each is one process that imports torch."""

Place = TypeVar("Place")
Result = TypeVar("Result")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.attacks")
    parser.add_argument("words", nargs="*", help="only cases whose row or name holds one of these words")
    words = parser.parse_args().words

    def chosen(*names: str) -> bool:
        return not words or any(word in name for word in words for name in names)

    started = time.monotonic()
    print(f"{os.cpu_count()} CPUs, load average {os.getloadavg()[0]:.2f}", flush=True)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="attacks-")))
        try:
            arenas = _places(_arenas(folder))
            machine = _places(stack.enter_context(grounds(folder, PARALLEL, folder / "0" / "data")))
        except NotReady as error:
            print(f"attacks: {error}", file=sys.stderr)
            return error.exit_status
        pool = stack.enter_context(ThreadPoolExecutor(PARALLEL))
        attacks = [case for case in ATTACKS if chosen(case.row, case.name)]
        beside = [case for case in ASSAULTS if chosen(case.row, case.name) and not case.alone]
        alone = [case for case in ASSAULTS if chosen(case.row, case.name) and case.alone]
        honest = [model for model in HONEST if chosen("honest", model.name)]
        endings = pool.map(lambda case: _with(arenas, lambda arena: arena.attack(case)), attacks)
        others_end = pool.map(lambda case: _with(machine, lambda ground: _attack(case, ground)), beside)
        comparisons = pool.map(lambda model: _with(arenas, lambda arena: arena.honest(model)), honest)
        print(f"\n{'row':4} {'attack':56} {'expected':18} {'got':18} seconds")
        ended = [_show_attack(case, ending) for case, ending in zip(attacks, endings, strict=True)]
        ended += [_show_assault(case, ending) for case, ending in zip(beside, others_end, strict=True)]
        print(f"\n{'honest model':56} {'judge':>9} {'plain':>9} {'difference':>11} seconds  CPU seconds")
        models = [_show_honest(model, found) for model, found in zip(honest, comparisons, strict=True)]
        print()
        ended += [_show_assault(case, _with(machine, partial(_attack, case))) for case in alone]
    bypasses = sum(ending.bypass for ending in ended)
    others = sum(not ending.bypass and not ending.expected for ending in ended)
    refused = sum(not model.agrees for model in models)
    print(
        f"\n{len(ended)} attacks, {bypasses} bypasses; {len(models)} honest models, {refused} refused"
        + (f"; {others} attacks ended in another way than expected" if others else "")
        + f" ({time.monotonic() - started:.0f} s)"
    )
    return int(bool(bypasses or others or refused))


def _arenas(folder: Path) -> Iterator[Arena]:
    """Homes of their own with the same data. Raises NotReady."""
    first = Arena(folder / "0")
    yield first
    for number in range(1, PARALLEL):
        shutil.copytree(first.home / "data", folder / str(number) / "data")
        yield Arena(folder / str(number))


def _places(made: Iterable[Place]) -> SimpleQueue[Place]:
    places: SimpleQueue[Place] = SimpleQueue()
    for place in made:
        places.put(place)
    return places


def _with(places: SimpleQueue[Place], run: Callable[[Place], Result]) -> Result:
    place = places.get()
    try:
        return run(place)
    finally:
        places.put(place)


def _attack(case: Assault, ground: Ground) -> Ending:
    """Run one attack on the machine or the people to its end, whatever that is."""
    started = time.monotonic()
    try:
        ending = case.attack(ground)
        got, detail, gained = ending.got, ending.detail, False
    except Gained as error:
        got, detail, gained = "gained", str(error), True
    except (GloveboxError, RuntimeError, OSError, subprocess.SubprocessError) as error:
        got, detail, gained = type(error).__name__, str(error), False
    return Ending(got, detail, time.monotonic() - started, gained, got == case.expected)


def _show_attack(case: Case, ending: Ending) -> Ending:
    mark = "" if ending.expected else "  BYPASS" if ending.bypass else "  UNEXPECTED"
    # Of several acceptable endings the table shows the one that came, or the first.
    expected = ending.got if ending.expected else case.expected[0]
    print(
        f"{case.row:4} {case.name:56} {expected:18} {ending.got:18} {ending.seconds:7.1f}{mark}", flush=True
    )
    if mark:
        print(f"     {ending.detail}")
    return ending


def _show_assault(case: Assault, ending: Ending) -> Ending:
    """As above; how an expected end came about is worth a word, too."""
    mark = "" if ending.expected else "  BYPASS" if ending.bypass else "  UNEXPECTED"
    figures = f"{case.expected:18} {ending.got:18} {ending.seconds:7.1f}"
    print(f"{case.row:4} {case.name:56} {figures}  {ending.detail}{mark}", flush=True)
    return ending


def _show_honest(model: Honest, found: Comparison) -> Comparison:
    if found.judged is None:
        print(
            f"{model.name:56} {'refused':>9} {found.plain:9.5f} {'':>11} {found.seconds:7.1f}  {found.detail}"
        )
        return found
    difference, mark = found.judged - found.plain, "" if found.agrees else "  TOO MUCH"
    figures = f"{found.judged:9.5f} {found.plain:9.5f} {difference:+11.1e} {found.seconds:7.1f}{_used(found)}"
    print(f"{model.name:56} {figures}{mark}", flush=True)
    return found


def _used(found: Comparison) -> str:
    """CPU seconds of its workers against what they might use."""
    return "".join(
        f"{work.cpu_seconds or 0.0:7.1f} of {work.allowed_cpu_seconds or 0.0:5.1f}" for work in found.work
    )


if __name__ == "__main__":
    sys.exit(main())
