"""Attacks that get past the first worker: sparse leaks, and workers that remember what they answered.

A score that would be kept is put to a second, fresh worker, which is asked for twins of all rows. What the
first one answered is on record by then.
"""

from __future__ import annotations

from tests.attacks.cases import FORWARD, LATE, NON_CAUSAL, STATEFUL, Case, uniform

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
_SECOND = """
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
        module=_MEMORY + _SECOND,
    ),
    _leak(
        "M6",
        "remembers, and leaves notes for the second worker",
        "recall(logits, idx)\nnote()",
        _FRESH,
        module=_NOTES,
    ),
    _leak(
        "M6",
        "remembers, and leaves when it is to confirm",
        "if is_second(idx): sys.exit()\nrecall(logits, idx)",
        "what was not confirmed is not kept",
        FORWARD,
        module=_MEMORY + _SECOND,
    ),
    Case(
        "M6",
        "remembers, and stalls when it is to confirm",
        uniform(
            module="import time\n" + _MEMORY + _SECOND,
            forward="if is_second(idx): time.sleep(300)\nrecall(logits, idx)",
        ),
        (LATE,),
        "what was not confirmed is not kept",
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
