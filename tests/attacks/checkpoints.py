"""M11: checkpoints that are none, or too much of one."""

from __future__ import annotations

from tests.attacks.cases import LOAD, NO_GAIN, NOT_FINITE, Case, uniform

_WRITE = """
import json, pickle, struct

def write(header, data=b"", size=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    with open(CHECKPOINT, "wb") as file:
        file.write(struct.pack("<Q", len(text) if size is None else size) + text + data)

def tensor(start=0, end=4 * V, shape=(V,), dtype="F32"):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}

def place(make):
    os.unlink(CHECKPOINT)
    make(CHECKPOINT)

zeros = bytes(4 * V)
"""

# W dies of what its unpickling would do, should it ever unpickle.
_PICKLE = """
class Bomb:
    def __reduce__(self):
        return os._exit, (0,)
with open(CHECKPOINT, "wb") as file:
    pickle.dump({"bias": Bomb()}, file)
"""

_ZIPPED = """
import io, zipfile
with zipfile.ZipFile(CHECKPOINT, "w") as archive:
    archive.writestr("archive/data.pkl", pickle.dumps({"bias": list(range(V))}))
"""

_SPARSE = """
import signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
with open(CHECKPOINT, "r+b") as file:
    for size in (1 << 40, (1 << 33) - 1, 1 << 32):
        try:
            file.truncate(size)
            break
        except OSError as error:
            print(size, error)
print(os.stat(CHECKPOINT))
"""

_SWAPPING = """
if os.fork() == 0:
    os.setsid()
    if os.fork():
        os._exit(0)
    while True:
        with open("/work/other", "wb") as file:
            file.write(open(CHECKPOINT, "rb").read())
        os.replace("/work/other", CHECKPOINT)
os.wait()
import time
time.sleep(1)
"""

_STILL = """
import os, time
def facts():
    status = os.stat("/out/checkpoint.safetensors")
    return status.st_ino, status.st_mtime_ns
before = facts()
time.sleep(1)
if facts() != before:
    raise SystemExit("somebody still writes the checkpoint")
try:
    os.truncate("/out/checkpoint.safetensors", 0)
except OSError:
    pass
else:
    raise SystemExit("the worker can write the checkpoint")
"""

_CHECKED = "opened without following or blocking, sized, copied, then parsed with limits on the header"


def _made(name: str, text: str, *expected: str, why: str = _CHECKED, worker: str = "") -> Case:
    return Case("M11", name, uniform(trainer=_WRITE + text, worker=worker), expected or (LOAD,), why)


CASES = (
    _made("a pickle renamed", _PICKLE),
    _made("a zipped pickle renamed", _ZIPPED),
    _made("a header of 2^63 bytes", "write({'bias': tensor()}, zeros, size=1 << 63)"),
    _made("a header of 9 MiB", "write({'__metadata__': {'x': 'y' * (9 << 20)}, 'bias': tensor()}, zeros)"),
    _made("a header longer than the file", "write({'bias': tensor()}, zeros, size=1 << 20)"),
    _made(
        "a header nested 100,000 deep", "write(b'{\"bias\":' + b'[' * 100_000 + b']' * 100_000 + b'}', zeros)"
    ),
    _made("offsets beyond the end", "write({'bias': tensor(0, 1 << 40)}, zeros)"),
    _made("offsets that overlap", "write({'bias': tensor(), 'more': tensor()}, zeros)"),
    _made("a shape larger than its bytes", "write({'bias': tensor(shape=(1 << 62, 4))}, zeros)"),
    _made("wrong names", "write({'weight': tensor()}, zeros)"),
    _made("wrong shapes", "write({'bias': tensor(shape=(V // 2, 2))}, zeros)"),
    _made(
        "more tensors than the model has",
        "write({'bias': tensor(), 'more': tensor(4 * V, 8 * V)}, 2 * zeros)",
    ),
    _made(
        "weights that are NaN",
        "write({'bias': tensor()}, b'\\xff' * 4 * V)",
        NOT_FINITE,
        why="loads, and gives NaN logits",
    ),
    _made("a link to a file of the system", "place(lambda path: os.symlink('/etc/passwd', path))"),
    _made("a link to a device", "place(lambda path: os.symlink('/dev/zero', path))"),
    _made("a FIFO", "place(os.mkfifo)"),
    _made("a folder", "place(os.mkdir)"),
    _made(
        "a device",
        "place(lambda path: os.mknod(path, 0o20666, os.makedev(1, 5)))",
        "crash exit",
        why="cannot be made without the capability",
    ),
    _made("a sparse file as large as can be", _SPARSE),
    _made("an empty file", "open(CHECKPOINT, 'wb').close()"),
    _made("no file", "os.unlink(CHECKPOINT)", "crash no-checkpoint", why="nothing to score"),
    _made("a file nobody may read", "os.chmod(CHECKPOINT, 0)"),
    _made(
        "swapped again and again",
        _SWAPPING,
        NO_GAIN,
        why="the trainer is dead before the worker starts",
        worker=_STILL,
    ),
)
