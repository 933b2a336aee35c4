"""M14: what a worker leaves in the kernel for the next run or for the second worker; C3: what it fills there.

Each attack is tried with the caches as they are, too: what tells nothing then either is no attack.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from controller.core.containers.config import MIB
from controller.core.containers.spec import MASKED
from tests.attacks.channel_programs import CHANNELS
from tests.attacks.ground import Assault, Ending, Gained, Ground
from tests.attacks.relay import Relay, Relayed

GONE, HIDDEN, BACK = "gone", "hidden", "back"
_EMPTIED = "the kernel's caches are emptied between the two"
_MASKS = "masked in every container"
BITS = 512
SURE = ("names that are not there, image", "pages of the image's files, mapped", "pages of mounted files")
"""These must tell something where nothing is emptied, or the machine was too busy to show anything."""
SLAB_BYTES = 150 * MIB
"""Names that take less than this in the kernel have not shown that anything is freed."""

_FILL = """
import os, time
child, until, count = os.fork(), time.monotonic() + 6, 0
while time.monotonic() < until:
    for _ in range(1000):
        os.access(b"/usr/share/%d-%d-a-name-long-enough-to-have-room-of-its-own" % (child, count), os.F_OK)
        count += 1
if child:
    os.waitpid(child, 0)
print(count)
"""

_READ = f"""
import os
for path in {MASKED}:
    try:
        if os.listdir(path) if os.path.isdir(path) else open(path, "rb").read(1): print(path)
    except OSError: pass
print("looked")
"""


def _relayed(ground: Ground) -> Mapping[str, Mapping[str, Relayed]]:
    """By reader, `before` for a trainer that finds the caches as they are; then by channel."""
    relay = Relay.of(ground.bench)
    return {
        "before": relay.relay(BITS, empty=False),
        "next run": relay.relay(BITS, empty=True),
        "2nd worker": relay.relay(BITS, empty=True, second=True),
    }


def _tells(reader: str, channel: str) -> Assault:
    def attack(ground: Ground) -> Ending:
        found = ground.once("relayed", lambda: _relayed(ground))
        if dumb := [sure for sure in SURE if not found["before"][sure].told]:
            return Ending("not shown", f"{dumb[0]} told nothing with the caches as they were")
        before, after = found["before"][channel], found[reader][channel]
        figures = f"{after.errors:.0%} of the bits wrong, {before.errors:.0%} with the caches as they were"
        if after.told:
            raise Gained(figures)
        return Ending(GONE, figures)

    return Assault("M14", f"{reader}: {channel}", GONE, _EMPTIED, attack)


def _counts(ground: Ground) -> Ending:
    said = ground.run(_READ, 20.0).log.split()
    if said[-1:] != ["looked"]:
        return Ending("not looked", " ".join(said)[-200:])
    if len(said) > 1:
        raise Gained(f"it reads {said[:-1]}")
    return Ending(HIDDEN, f"{len(MASKED)} files and folders")


def _fills(ground: Ground) -> Ending:
    """Names that were looked for and not found take memory of the host's, after the container's end too."""

    def filled() -> tuple[int, int, int, int]:
        relay = Relay.of(ground.bench)
        with relay.sandbox(empty=True) as sandbox:
            relay.train(sandbox, "print(0)")
            before = reclaimable()
            names = sum(map(int, relay.train(sandbox, _FILL).split()))
            full = reclaimable()
            relay.train(sandbox, "print(0)")
            return before, full, reclaimable(), names

    before, full, after, names = ground.once("filled", filled)
    figures = f"{(full - before) / MIB:.0f} MiB, {(after - before) / MIB:.0f} MiB after the next start"
    if full - before < SLAB_BYTES:
        return Ending("not shown", figures)
    if after - before > (full - before) / 4:
        raise Gained(figures)
    return Ending(BACK, f"{names} names: {figures}")


def reclaimable() -> int:
    """Bytes that the kernel keeps of names and inodes, and could free."""
    lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("SReclaimable:"))


CASES = (
    *(_tells(reader, channel) for reader in ("next run", "2nd worker") for channel in CHANNELS),
    Assault("M14", "reads the counters of the whole machine", HIDDEN, _MASKS, _counts),
    Assault("C3", "fills the kernel with names that are not there", BACK, _EMPTIED, _fills),
)
