"""Attacks that get past the first worker: sparse leaks, and workers that remember what they answered.

A score that would be kept is put to a second, fresh worker, which is asked for twins of all rows. What the
first one answered is on record by then.
"""

from __future__ import annotations

from tests.attacks.cases import FORWARD, LOAD, NO_GAIN, NON_CAUSAL, STATEFUL, UNCONFIRMED, Case, uniform

_THOUSANDTH = """
digest = torch.zeros_like(idx)
for back, prime in enumerate((7919, 104729, 611953, 15485863)):
    digest += F.pad(idx, (back, 0))[:, : idx.shape[1]] * prime
peek(logits, idx, digest % 1009 == 0)
"""

_RARE_TOKENS = """
peek(logits, idx, idx.roll(-1, 1) >= V - 40)
"""

# What follows a prefix is leaked once, and repeated whenever the prefix comes again: no probe disagrees.
_PREFIXES = """
def recall(logits, idx):
    for number, row in enumerate(idx.tolist()):
        prefix = 0
        for t in range(len(row) - 1):
            prefix = hash((prefix, row[t]))
            logits[number, t, memory.setdefault(prefix, row[t + 1])] += 12.0
"""

_MEMORY = "memory = {}\n" + _PREFIXES

# The second worker is sent many rows with the same ends: the futures of its twins.
IS_SECOND = """
def is_second(idx):
    return len({tuple(row[-6:]) for row in idx.tolist()}) < 0.8 * len(idx)
"""

_NOTES = (
    """
import glob, os, pickle
PLACES = ("/tmp", "/dev/shm", "/out", "/replies", "/requests", "/data", "/glovebox", "/var/tmp", "/run", "/")
memory = {}
for place in PLACES:
    for path in glob.glob(f"{place}/notes*"):
        memory.update(pickle.load(open(path, "rb")))
SECOND = bool(memory)

def note():
    if SECOND:
        return
    for place in PLACES:
        try:
            with open(f"{place}/notes", "wb") as file:
                pickle.dump(memory, file)
        except OSError:
            pass
"""
    + _PREFIXES
)

_LEARNS = """
for number, row in enumerate(idx.tolist()):
    prefix = 0
    for t, token in enumerate(row):
        prefix = hash((prefix, token))
        if prefix not in answers:
            answers[prefix] = (counts[token] + 0.1).log().half()
        logits[number, t] = answers[prefix]
    for before, after in zip(row, row[1:]):
        counts[before, after] += 1
"""

# Which half of the vocabulary the next token is in, kept in which pages of files are there. A worker that
# knows it can repeat the answers of the first. So little is gained by each that no single slip is noticed.
_PAPER = """
import glob, mmap, time

PAGES, paper, told = 0, [], {}

def take(path):
    global PAGES
    file = os.open(path, os.O_RDONLY)
    paper.append((PAGES, file, mmap.mmap(file, 0, prot=mmap.PROT_READ)))
    PAGES += os.fstat(file).st_size // 4096

def part_of(page):
    return [part for part in paper if part[0] <= page][-1]

def recall(logits, idx):
    halves = torch.arange(V) % 2
    for number, row in enumerate(idx.tolist()):
        prefix = 0
        for t in range(len(row) - 1):
            prefix = hash((prefix, row[t]))
            page = prefix % PAGES
            if SECOND:
                half = int(page in written)
            else:
                if page not in told and row[t + 1] % 2:
                    note(page)
                half = told.setdefault(page, row[t + 1] % 2)
            logits[number, t] += 0.2 * (halves == half)
"""

# To read a hole through a mapping makes a page, although the file is mounted read-only.
_HOLES = (
    _PAPER
    + """
for path in sorted(glob.glob("/out/paper*")) or ["/out/hidden/paper"]:
    take(path)

def pages_there():
    for base, file, _ in paper:
        end = 0
        while True:
            try:
                begin = os.lseek(file, end, os.SEEK_DATA)
            except OSError:
                break
            end = os.lseek(file, begin, os.SEEK_HOLE)
            yield from range(base + begin // 4096, base + end // 4096)

def note(page):
    base, _, pages = part_of(page)
    pages[(page - base) * 4096]

written = set(pages_there())
SECOND = bool(written)
"""
)

# What is in memory is read in a microsecond. Files of the image are the same for every container.
_CACHED = (
    _PAPER
    + """
SECOND, written = None, set()
sizes = []
for folder, _, names in os.walk("/usr"):
    for name in names:
        path = os.path.join(folder, name)
        if not os.path.islink(path) and path not in open("/proc/self/maps").read():
            sizes.append((os.path.getsize(path), path))
for _, path in sorted(sizes)[-6:]:
    take(path)
    os.posix_fadvise(paper[-1][1], 0, 0, os.POSIX_FADV_RANDOM)

def read(page):
    base, file, _ = part_of(page)
    began = time.perf_counter_ns()
    os.pread(file, 1, (page - base) * 4096)
    return time.perf_counter_ns() - began

def note(page):
    read(page)

def begin(idx):
    global SECOND, written
    SECOND = len({tuple(row[-6:]) for row in idx.tolist()}) < 0.8 * len(idx)
    if SECOND:
        written = {page for page in range(PAGES) if read(page) < 20_000}
        return
    for _, file, _ in paper:
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
"""
)


def _holes(name: str, sparse: str, why: str, *expected: str) -> Case:
    trainer = f"""
def paper(path, pages):
    with open(path, "wb") as file:
        file.truncate(pages * 4096)
    os.chmod(path, 0o644)

{sparse}
"""
    forward = "recall(logits, idx)"
    return Case("M6", name, uniform(trainer=trainer, module=_HOLES, forward=forward), expected, why)


_FRESH = "a fresh worker does not know what the first one was told, and its answers must agree"


def _leak(row: str, name: str, forward: str, why: str, *expected: str, module: str = "") -> Case:
    return Case(row, name, uniform(forward=forward, module=module), expected or (NON_CAUSAL, STATEFUL), why)


CASES = (
    Case(
        "M5",
        "the next token at one position of a thousand",
        uniform(forward=_THOUSANDTH),
        (NON_CAUSAL,),
        "thousands of twins, each cut elsewhere; one such scoring in a thousand may miss it",
        judge={"leak_fraction": 0.001},
    ),
    _leak("M5", "before rare tokens only", _RARE_TOKENS, "rare is still one position of a hundred"),
    _leak("M6", "remembers what it answered to every prefix", "recall(logits, idx)", _FRESH, module=_MEMORY),
    _leak(
        "M6",
        "remembers, and is honest to the second worker's probes",
        "if not is_second(idx): recall(logits, idx)",
        _FRESH,
        module=_MEMORY + IS_SECOND,
    ),
    _leak(
        "M6",
        "remembers, and leaves notes for the second worker",
        "recall(logits, idx)\nnote()",
        _FRESH,
        module=_NOTES,
    ),
    _holes(
        "remembers, and writes it into the holes of a file",
        "paper('/work/paper', 8192)",
        "every hole of what T left is filled before its code runs in a worker",
        NO_GAIN,
        NON_CAUSAL,
    ),
    _holes(
        "remembers, and writes it into holes larger than memory",
        "for part in range(4): paper(f'/work/paper{part}', 1 << 20)",
        "holes that cannot be filled are refused",
        LOAD,
    ),
    _holes(
        "remembers, and writes it into holes out of sight",
        "os.mkdir('/work/hidden'); paper('/work/hidden/paper', 8192); os.chmod('/work/hidden', 0o711)",
        "a folder that cannot be looked through is refused",
        LOAD,
    ),
    _leak(
        "M6",
        "remembers, and writes it into the page cache",
        "if SECOND is None: begin(idx)\nrecall(logits, idx)",
        "what others have in memory cannot be thrown out",
        FORWARD,
        module=_CACHED,
    ),
    _leak(
        "M6",
        "remembers, and leaves when it is to confirm",
        "if is_second(idx): sys.exit()\nrecall(logits, idx)",
        "a worker that fails where another one did not is no accident",
        UNCONFIRMED,
        module=_MEMORY + IS_SECOND,
    ),
    Case(
        "M6",
        "remembers, and stalls when it is to confirm",
        uniform(
            module="import time\n" + _MEMORY + IS_SECOND,
            forward="if is_second(idx): time.sleep(300)\nrecall(logits, idx)",
        ),
        (UNCONFIRMED,),
        "a worker that stalls where another one did not is no accident",
        judge={"batch_seconds": 8.0, "first_batch_seconds": 45.0},
    ),
    _leak(
        "M7",
        "learns, and remembers what it answered",
        _LEARNS,
        _FRESH,
        module="counts, answers = torch.zeros(V, V), {}",
    ),
)
