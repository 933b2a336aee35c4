"""M12 and M13: a worker that speaks for the judge, or breaks the protocol between the two.

The attack's code runs inside the worker's own process, so it replaces what it likes there.
"""

from __future__ import annotations

from typing import Any

from controller.app.trial import Trial
from controller.store import worker_log
from tests.attacks.cases import (
    FORWARD,
    LATE,
    LOAD,
    NO_GAIN,
    NON_CAUSAL,
    PROTOCOL,
    STATEFUL,
    WRONG_DTYPE,
    WRONG_SHAPE,
    Case,
    uniform,
)

_RESULTS = """
import os
line = ('{"status": "scored", "val_bpb": 0.1, "holdout_bpb": 0.1, "bytes": 40000, "tokens": 16384, '
        '"holdout_bytes": 10000, "seconds": 1.0, "probes": {}}\\n')
confirmed = '{"status": "confirmed", "probes": {}}\\n'
os.write(1, (line + confirmed).encode())
os.write(2, (line + confirmed).encode())
"""

_RESULT_FILES = (
    _RESULTS
    + """
for name in ("result", "result.json", "stdout", "scored", "judge.json", "slot-4", "slot-0.json"):
    with open(f"/replies/{name}", "w") as file:
        file.write(line)
"""
)

_REQUESTS = """
import os
for name in ("slot-0", "slot-1", "closed", "new"):
    for flags in (os.O_WRONLY, os.O_WRONLY | os.O_CREAT, os.O_RDWR):
        try:
            os.open(f"/requests/{name}", flags)
        except OSError:
            continue
        raise SystemExit(f"could write {name}")
"""

_FIRST_PROCESS = """
import ctypes, os, signal
libc = ctypes.CDLL(None, use_errno=True)
os.kill(1, signal.SIGKILL)
os.kill(1, signal.SIGSTOP)
for request in (16, 0x4206):
    if libc.ptrace(request, 1, None, None) == 0:
        raise SystemExit("could trace PID 1")
try:
    open("/proc/1/mem", "r+b")
except OSError:
    pass
else:
    raise SystemExit("could write to PID 1")
"""

_TERMINATE = "import os, signal\nos.kill(1, signal.SIGTERM)\nimport time\ntime.sleep(60)"

# What an attack replaces: how an answer is published that lies in the slot already. `honestly` does it as it
# should be done. worker.log tells that it came to this: an attack that does nothing must not pass for one
# that failed.
_REPLACED = "an answer was replaced"
_WRITER = f"""
import itertools, math, os, sys, threading, time
from exchange import HEADER_BYTES, SLOTS, SlotWriter, payload_bytes
honestly = SlotWriter.publish

def publish(self, number, header):
    if number == 0:
        print("{_REPLACED}", file=sys.stderr, flush=True)
    size = payload_bytes(header.dtype, math.prod(header[1:3]), header.vocab)
@WRITE@

SlotWriter.publish = publish
"""


def _writer(text: str) -> str:
    return _WRITER.replace("@WRITE@", "\n".join(f"    {line}" for line in text.strip().splitlines()))


def _inert(trial: Trial) -> str:
    log = trial.folder / worker_log.NAME
    said = log.read_text(encoding="utf-8", errors="replace") if log.exists() else ""
    return "" if _REPLACED in said else "it replaced nothing"


def _answers(name: str, text: str, *expected: str, why: str, **judge: Any) -> Case:
    return Case("M13", name, uniform(worker=_writer(text)), expected, why, judge, complaint=_inert)


def _spoils(name: str, text: str, *expected: str, why: str, **judge: Any) -> Case:
    return Case("M13", name, uniform(worker="import os, time\n" + text), expected, why, judge)


_REWRITE = """
if number >= SLOTS:  # the judge has taken the one that was there
    file = self._open(number)
    mine = os.pread(file, size, HEADER_BYTES)
    os.pwrite(file, b"\\xff" * 65536, HEADER_BYTES)
    time.sleep(0.2)
    os.pwrite(file, mine, HEADER_BYTES)
honestly(self, number, header)
"""

_FLICKER = """
honestly(self, number, header)
file, other = self._open(number), os.urandom(1 << 20).replace(b"\\x7f", b"\\x00").replace(b"\\xff", b"\\x00")
def flicker():
    for turn in range(2000):
        os.pwrite(file, other if turn % 2 else bytes(1 << 20), HEADER_BYTES)
threading.Thread(target=flicker, daemon=True).start()
"""

_TOO_MUCH = """
os.pwrite(self._open(number), os.urandom(4096), HEADER_BYTES + size)
honestly(self, number, header)
"""

_TOO_LITTLE = """
os.ftruncate(self._open(number), HEADER_BYTES + size - 4)
honestly(self, number, header)
"""

_ANOTHER_DTYPE = """
os.pwrite(self._open(number), b"\\x3c" * 2 * size, HEADER_BYTES)
honestly(self, number, header._replace(dtype=3))
"""

_TRUNCATE = """
honestly(self, number, header)
os.ftruncate(self._open(number), HEADER_BYTES + 100)
"""

_AHEAD = """
honestly(self, number, header)
honestly(self, number + SLOTS, header)
"""

_WRONG_MARK = """
os.pwrite(self._open(number), bytes([99]), 0)
"""

_FORKS = """
try:
    while True:
        if os.fork() == 0:
            time.sleep(300)
except OSError:
    time.sleep(300)
"""

_FILL = """
with open("/replies/junk", "wb", buffering=0) as file:
    try:
        while True:
            file.write(bytes(1 << 20))
    except OSError:
        pass
"""

_OWN_OUTPUT = "a result is what the judge's container prints; nothing else is read"
_DEADLINES = "a time limit for the first batch, for each further one and for all of them"
_CHECKED = "mark, header and size are checked against what was asked"
_NOT_FOLLOWED = "a slot is opened without following or blocking, and must be a regular file"
_COPIED = "the judge copies an answer once and works on the copy"

CASES = (
    Case("M12", "prints the judge's lines in the worker", uniform(worker=_RESULTS), (NO_GAIN,), _OWN_OUTPUT),
    Case("M12", "leaves results in the exchange", uniform(worker=_RESULT_FILES), (NO_GAIN,), _OWN_OUTPUT),
    Case(
        "M12",
        "writes into the judge's folder",
        uniform(worker=_REQUESTS),
        (NO_GAIN,),
        "the worker mounts the judge's half of the exchange read-only",
    ),
    Case(
        "M12",
        "kills, stops or traces its first process",
        uniform(worker=_FIRST_PROCESS),
        (NO_GAIN,),
        "PID 1 is immune to its own children, and it is not the judge's",
    ),
    Case("M12", "ends its own container", uniform(worker=_TERMINATE), (FORWARD,), "then there is no score"),
    _spoils(
        "stalls before the first batch", "time.sleep(300)", LATE, why=_DEADLINES, first_batch_seconds=10.0
    ),
    _answers(
        "stalls midway",
        "if number == 3: time.sleep(300)\nhonestly(self, number, header)",
        LATE,
        why=_DEADLINES,
        batch_seconds=3.0,
    ),
    _answers(
        "answers each batch just in time",
        "time.sleep(4)\nhonestly(self, number, header)",
        LATE,
        why=_DEADLINES,
        batch_seconds=8.0,
        total_seconds=24.0,
    ),
    _answers(
        "answers too much",
        _TOO_MUCH,
        NO_GAIN,
        why="what follows a payload means nothing",
    ),
    _answers("answers too little", _TOO_LITTLE, PROTOCOL, why=_CHECKED),
    _answers(
        "another shape in the header",
        "honestly(self, number, header._replace(vocab=1))",
        WRONG_SHAPE,
        why=_CHECKED,
    ),
    _answers(
        "an unknown dtype in the header",
        "honestly(self, number, header._replace(dtype=77))",
        WRONG_DTYPE,
        why=_CHECKED,
    ),
    _answers(
        "another dtype in the header",
        _ANOTHER_DTYPE,
        PROTOCOL,
        why=_CHECKED,
    ),
    _answers("a wrong mark", _WRONG_MARK, PROTOCOL, why=_CHECKED),
    _answers(
        "answers before it is asked",
        _AHEAD,
        PROTOCOL,
        WRONG_SHAPE,
        FORWARD,
        why="out of turn: the judge sees that or a wrong shape, or goes on and the worker is lost",
    ),
    _answers("rewrites an answer that was taken", _REWRITE, NO_GAIN, why=_COPIED),
    _answers(
        "rewrites an answer while it is read", _FLICKER, NON_CAUSAL, STATEFUL, PROTOCOL, NO_GAIN, why=_COPIED
    ),
    _answers(
        "truncates an answer while it is read",
        _TRUNCATE,
        PROTOCOL,
        FORWARD,
        why="the judge sees a short answer; or it has its copy, and the worker's own memory is gone",
    ),
    _spoils(
        "a link in place of a slot",
        "os.symlink('/proc/self/mem', '/replies/slot-0')",
        PROTOCOL,
        why=_NOT_FOLLOWED,
    ),
    _spoils("a FIFO in place of a slot", "os.mkfifo('/replies/slot-0')", PROTOCOL, why=_NOT_FOLLOWED),
    _spoils("a folder in place of a slot", "os.mkdir('/replies/slot-0')", PROTOCOL, why=_NOT_FOLLOWED),
    _spoils(
        "a device in place of a slot",
        "os.mknod('/replies/slot-0', 0o20666, os.makedev(1, 8))",
        LOAD,
        why="cannot be made without the capability",
    ),
    _spoils("fills the exchange", _FILL, FORWARD, why="its own answer no longer fits"),
    _spoils(
        "says that it is closed",
        "open('/replies/closed', 'x').close()",
        FORWARD,
        why="then there is no score",
    ),
    _spoils("leaves with status 0", "os._exit(0)", FORWARD, why="then there is no score"),
    _spoils("forks instead of answering", _FORKS, LATE, why=_DEADLINES, first_batch_seconds=15.0),
)
