"""Numbers that every container can read and that a container can move: how many bits one can leave in them.

A trainer writes down every number under /proc and /sys that it can read, and others that the kernel counts
for all. It does so several times with a worker in between that sleeps, and once with one that does all it can
to move them. What the latter moved a number by in a second, times the seconds that a worker has, is the range
it can choose from; how much that number differs from one quiet time to the next is the step it can choose in.
"""

from __future__ import annotations

import base64
import itertools
import json
import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from tests.attacks.relay import Relay

QUIET = 4
"""Looks with nothing but a sleeping worker in between."""
WORKER_SECONDS = 900.0
"""How long a worker may take at the most."""
SIGNIFICANT = 4.0
"""Steps by which a number must be moved to count as moved."""

Numbers = Mapping[str, Sequence[int]]

_LOOK = """
import base64, json, os, re, socket, time, zlib

def numbers(text):
    return [int(number) for number in re.findall(rb"[0-9]+", text)[:2000]]

found = {}
for root in ("/proc", "/sys"):
    for folder, folders, files in os.walk(root):
        if folder == "/proc":
            own = {"self", "thread-self"}
            folders[:] = [name for name in folders if not name.isdigit() and name not in own]
        for name in files:
            path = f"{folder}/{name}"
            try:
                file = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
            except OSError:
                continue
            try:
                found[path] = numbers(os.read(file, 1 << 16))
            except OSError:
                pass
            finally:
                os.close(file)

def described(file):
    status = os.fstat(file)
    return [status.st_ino, status.st_dev]

pair = socket.socketpair()
found["fstat(2) of a pipe"] = described(os.pipe()[0])
found["fstat(2) of a socket"] = described(pair[0].fileno())
found["fstat(2) of a memfd"] = described(os.memfd_create("x"))
found["fstat(2) of a pidfd"] = described(os.pidfd_open(os.getpid()))
try:
    found["SO_COOKIE of a socket"] = [int.from_bytes(pair[0].getsockopt(socket.SOL_SOCKET, 57, 8), "little")]
except OSError:
    pass
for name in os.listdir("/proc/self/ns"):
    found[f"/proc/self/ns/{name}"] = numbers(os.readlink(f"/proc/self/ns/{name}".encode()))
for number, line in enumerate(open("/proc/self/mountinfo")):
    mount = line.split()
    found[f"mount id of {mount[4]}"] = [int(mount[0])]
    found[f"device of {mount[4]}"] = [int(mount[2].split(":")[1])]
    space = os.statvfs(mount[4])
    found[f"statvfs(2) of {mount[4]}"] = [space.f_bfree, space.f_bavail, space.f_ffree, space.f_favail]
    found[f"stat(2) of {mount[4]}"] = [os.stat(mount[4]).st_ino]
print(base64.b64encode(zlib.compress(json.dumps(found).encode())).decode())
"""

_SLEEP = """
import time
time.sleep(@SECONDS@)
"""

_MOVE = """
import mmap, os, socket, threading, time

def forks():
    if (child := os.fork()) == 0: os._exit(0)
    os.waitpid(child, 0)
def pipes():
    for file in os.pipe(): os.close(file)
def sockets():
    made = socket.socket(socket.AF_UNIX)
    try: made.getsockopt(socket.SOL_SOCKET, 57, 8)
    except OSError: pass
    made.close()
def memfds(): os.close(os.memfd_create("x"))
def faults():
    with mmap.mmap(-1, 1 << 22) as area:
        for page in range(0, 1 << 22, 4096): area[page] = 1
image = os.open("@IMAGE@", os.O_RDONLY)
os.posix_fadvise(image, 0, 0, os.POSIX_FADV_RANDOM)
pages = iter(range(0, os.fstat(image).st_size, 4096))
def disk():
    if (page := next(pages, None)) is not None: os.pread(image, 1, page)
def switches():
    os.sched_yield(); time.sleep(0)
def naps(): time.sleep(1e-6)
def output(): os.write(2, b"x" * 1000)
def busy(): sum(range(1000))
mine, other = os.pipe(), os.pipe()
def echo():
    while os.read(mine[0], 1): os.write(other[1], b"x")
threading.Thread(target=echo, daemon=True).start()
def ping():
    os.write(mine[1], b"x"); os.read(other[0], 1)

for move in (forks, pipes, sockets, memfds, faults, disk, switches, naps, output, busy, ping):
    until = time.monotonic() + 1
    while time.monotonic() < until: move()
"""
MOVES = 11
"""Kinds of them, a second each."""


@dataclass(frozen=True)
class Counter:
    """A number that a worker can move."""

    source: str
    moved: float
    """In one second."""
    step: float
    """By so much it differs from one quiet time to the next."""

    @property
    def bits(self) -> float:
        """What one worker can leave in it."""
        return math.log2(1 + self.moved * WORKER_SECONDS / self.step)


def survey(relay: Relay) -> list[Counter]:
    """The numbers that a worker can move, those that hold most first."""
    move = _MOVE.replace("@IMAGE@", "/opt/venv/lib/python3.11/site-packages/pyarrow/libarrow.so.2600")
    with relay.sandbox(empty=True) as sandbox:
        looks = [_looked(relay.train(sandbox, _LOOK))]
        for program in (*[_SLEEP.replace("@SECONDS@", str(MOVES))] * QUIET, move):
            relay.work(sandbox, program)
            looks.append(_looked(relay.train(sandbox, _LOOK)))
    return sorted(_moved(looks), key=lambda counter: -counter.bits)


def _looked(said: str) -> Numbers:
    found: Numbers = json.loads(zlib.decompress(base64.b64decode(said)))
    return found


def _moved(looks: Sequence[Numbers]) -> list[Counter]:
    """`looks`: quiet ones, and a last one after which a worker has moved what it can."""
    found = []
    for path in set.intersection(*(set(look) for look in looks)):
        rows = [look[path] for look in looks]
        if len({len(row) for row in rows}) == 1:
            for index, values in enumerate(zip(*rows, strict=True)):
                changes = [b - a for a, b in itertools.pairwise(values)]
                *quiet, last = changes
                step = max(max(quiet) - min(quiet), 1)
                moved = abs(last - median(quiet))
                if moved > SIGNIFICANT * step:
                    found.append(Counter(f"{path} [{index}]", moved, step))
    return found
