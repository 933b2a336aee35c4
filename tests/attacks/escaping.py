"""C6 and C7: the network and the kernel, a row for each try of tests/sandbox/escapes.py from inside T."""

from __future__ import annotations

from tests.attacks.ground import Assault, Ending, Gained, Ground
from tests.sandbox.escapes import ATTEMPTS
from tests.sandbox.test_escapes import attempted

DENIED = "denied"
_WHY = "no network, no capability, a read-only root, and the seccomp profile"


def _tries(row: str, name: str) -> Assault:
    def attack(ground: Ground) -> Ending:
        line = ground.once("escapes", lambda: attempted(ground.bench)).get(name)
        if line is None:
            return Ending("not tried", ground.bench.log_text[-200:])
        if not line["denied"]:
            raise Gained(line["how"])
        return Ending(DENIED, line["how"])

    return Assault(row, name, DENIED, _WHY, attack)


CASES = tuple(_tries(row, name) for name, (row, _) in ATTEMPTS.items())
