"""What a writer and a reader do with the kernel's caches, as the train.py of a worker and of a trainer.

One text for both: a bit is one if the writer touched something, and whoever touches it later is told by the
time that takes. The first bits are known to both, so that the reader can tell slow from quick. The writer's
text alone holds the seed of the message.
"""

from __future__ import annotations

import random

PILOT_BITS = 64
TORN = "/usr/lib/gcc/x86_64-linux-gnu/12/cc1plus"
MAPPED = "/usr/lib/gcc/x86_64-linux-gnu/12/lto1"
MOUNTED = "/data/tokenizer/tokenizer.json"

CHANNELS: tuple[str, ...] = (
    "names that are not there, image",
    "names that are not there, torch's folder",
    "names that are not there, mounted folder",
    "names that are not there, cgroups",
    "names that are not there, /proc",
    "names that are not there, /sys",
    "names that are there, image",
    "folders of the image that were listed",
    "pages of the image's files, read",
    "pages of the image's files, mapped",
    "pages of mounted files",
)
"""A bit each time; what is in the kernel's own file systems is expected to be each container's own."""

_PROGRAM = '''
import glob, json, mmap, os, random, sys, time

NONCE, BITS, SEED, CHANNELS = @NONCE@, @BITS@, @SEED@, @CHANNELS@
PILOT = [1, 0] * (@PILOT_BITS@ // 2)
COUNT = len(PILOT) + BITS
SITE = "/opt/venv/lib/python3.11/site-packages"
LOOKS = 8  # names for one bit: one lookup is as short as the noise of the clock

def message(channel):
    source = random.Random(f"{SEED} {channel}")
    return PILOT + [source.getrandbits(1) for _ in range(BITS)]

def absent(folder):
    names = [[f"{folder}/{NONCE}-{bit}-{look}".encode() for look in range(LOOKS)] for bit in range(COUNT)]
    def touch(bit):
        for name in names[bit]:
            os.access(name, os.F_OK)
    return touch

def installed():
    """Every file that pip installed, by their lists: to walk through the folders would be to touch them."""
    for record in glob.glob(SITE + "/*.dist-info/RECORD"):
        for line in open(record):
            name = line.split(",")[0]
            if not name.startswith(".."):
                yield f"{SITE}/{name}"

def present():
    names = sorted(name for name in installed() if name.startswith(SITE + "/torch/include"))
    return lambda bit: os.stat(names[bit])

def listed():
    folders = {os.path.dirname(name) for name in installed() if not name.startswith(SITE + "/torch/include")}
    parents = {os.path.dirname(folder) for folder in folders}
    leaves = sorted(folder for folder in folders - parents if not folder.endswith(".dist-info"))
    return lambda bit: os.listdir(leaves[bit])

def pages(path, mapped=False):
    file = os.open(path, os.O_RDONLY)
    step = os.fstat(file).st_size // mmap.PAGESIZE // COUNT
    os.posix_fadvise(file, 0, 0, os.POSIX_FADV_RANDOM)
    if not mapped:
        return lambda bit: os.pread(file, 1, bit * step * mmap.PAGESIZE)
    area = mmap.mmap(file, 0, prot=mmap.PROT_READ)
    area.madvise(mmap.MADV_RANDOM)
    return lambda bit: area[bit * step * mmap.PAGESIZE]

TOUCH = {
    "names that are not there, image": lambda: absent("/usr/share"),
    "names that are not there, torch's folder": lambda: absent(SITE + "/torch"),
    "names that are not there, mounted folder": lambda: absent("/data/tokenizer"),
    "names that are not there, cgroups": lambda: absent("/sys/fs/cgroup"),
    "names that are not there, /proc": lambda: absent("/proc"),
    "names that are not there, /sys": lambda: absent("/sys/kernel"),
    "names that are there, image": present,
    "folders of the image that were listed": listed,
    "pages of the image's files, read": lambda: pages("@TORN@"),
    "pages of the image's files, mapped": lambda: pages("@MAPPED@", mapped=True),
    "pages of mounted files": lambda: pages("@MOUNTED@"),
}

def write(channel):
    touch, bits = TOUCH[channel](), message(channel)
    began = time.perf_counter()
    for bit in range(COUNT):
        if bits[bit]:
            touch(bit)
    return {"seconds": time.perf_counter() - began}

def read(channel):
    touch, took, now = TOUCH[channel](), [], time.perf_counter_ns
    began = time.perf_counter()
    for bit in range(COUNT):
        start = now()
        touch(bit)
        took.append(now() - start)
    seconds = time.perf_counter() - began
    pilot = took[: len(PILOT)]
    ones, zeros = sorted(pilot[0::2]), sorted(pilot[1::2])
    middle = (ones[len(ones) // 2] + zeros[len(zeros) // 2]) / 2
    return {"seconds": seconds, "bits": "".join(str(int(t < middle)) for t in took[len(PILOT) :])}

print(json.dumps({channel: (read if SEED is None else write)(channel) for channel in CHANNELS}), flush=True)
'''


def program(nonce: str, bits: int, seed: int | None, channels: tuple[str, ...] = CHANNELS) -> str:
    """Of the writer if there is a `seed`, else of the reader. Prints JSON by channel."""
    marks = {
        "@NONCE@": repr(nonce),
        "@BITS@": str(bits),
        "@SEED@": repr(seed),
        "@CHANNELS@": repr(channels),
        "@PILOT_BITS@": str(PILOT_BITS),
        "@TORN@": TORN,
        "@MAPPED@": MAPPED,
        "@MOUNTED@": MOUNTED,
    }
    text = _PROGRAM
    for mark, part in marks.items():
        text = text.replace(mark, part)
    return text


def message(seed: int, channel: str, bits: int) -> str:
    """What the writer leaves, without the bits that are known."""
    source = random.Random(f"{seed} {channel}")
    return "".join(str(source.getrandbits(1)) for _ in range(bits))
