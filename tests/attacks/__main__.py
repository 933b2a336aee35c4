"""`make attacks`: every attack and every honest model on real containers, as a table."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

from controller.core.model import NotReady
from tests.attacks.arena import Arena, Comparison, Ending
from tests.attacks.cases import Case
from tests.attacks.honest import HONEST, Honest
from tests.attacks.suite import ATTACKS


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.attacks")
    parser.add_argument("words", nargs="*", help="only cases whose row or name holds one of these words")
    words = parser.parse_args().words

    def chosen(*names: str) -> bool:
        return not words or any(word in name for word in words for name in names)

    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="attacks-") as folder:
        try:
            arena = Arena(Path(folder) / "home")
        except NotReady as error:
            print(f"attacks: {error}", file=sys.stderr)
            return error.exit_status
        print(f"{os.cpu_count()} CPUs, load average {os.getloadavg()[0]:.2f}")
        print(f"{'row':4} {'attack':46} {'expected':34} {'got':24} seconds")
        endings = [_attack(arena, case) for case in ATTACKS if chosen(case.row, case.name)]
        print(f"\n{'honest model':46} {'judge':>9} {'plain':>9} {'difference':>11} seconds")
        models = [_honest(arena, model) for model in HONEST if chosen("honest", model.name)]
    bypasses = sum(ending.bypass for ending in endings)
    others = sum(not ending.bypass and not ending.expected for ending in endings)
    refused = sum(not model.agrees for model in models)
    print(
        f"\n{len(endings)} attacks, {bypasses} bypasses; {len(models)} honest models, {refused} refused"
        + (f"; {others} attacks ended in another way than expected" if others else "")
        + f" ({time.monotonic() - started:.0f} s)"
    )
    return int(bool(bypasses or others or refused))


def _attack(arena: Arena, case: Case) -> Ending:
    ending = arena.attack(case)
    mark = "" if ending.expected else "  BYPASS" if ending.bypass else "  UNEXPECTED"
    expected = " or ".join(case.expected)
    print(
        f"{case.row:4} {case.name:46} {expected:34} {ending.got:24} {ending.seconds:7.1f}{mark}", flush=True
    )
    if mark:
        print(f"     {ending.detail}")
    return ending


def _honest(arena: Arena, model: Honest) -> Comparison:
    found = arena.honest(model)
    if found.judged is None:
        print(
            f"{model.name:46} {'refused':>9} {found.plain:9.5f} {'':>11} {found.seconds:7.1f}  {found.detail}"
        )
        return found
    difference, mark = found.judged - found.plain, "" if found.agrees else "  TOO MUCH"
    figures = f"{found.judged:9.5f} {found.plain:9.5f} {difference:+11.1e} {found.seconds:7.1f}"
    print(f"{model.name:46} {figures}{mark}", flush=True)
    return found


if __name__ == "__main__":
    sys.exit(main())
