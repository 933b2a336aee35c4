"""The controller's seed in place of the seeds that a program sets itself. Pure.

So that no program is kept for the luck of its seed. A program that takes `prepare.SEED` needs none of this.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator

from controller.core.program.normal_form import SeedLiterals
from controller.core.program.policy import digest
from controller.core.program.source import parse, plain_text

SEED_BITS = 16
"""A program may multiply its seed, by a thousand for instance, and NumPy's legacy generator takes 32 bits."""


def seeded(train_py: str, seed: int) -> str:
    """The same program with every literal that is a seed moved by `seed`; unchanged if there is none.

    Moved and not replaced: what its author kept apart, the streams of weights and of data perhaps, stays
    apart. Literals are what `core/program/seeds.py` takes for seeds, integers that stand alone or are added
    to something; anything else is left as it is.
    """
    text = plain_text(train_py)
    try:
        literals = [*_literals(text)]
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return train_py
    if not literals:
        return train_py
    lines = [line.encode("utf-8") for line in text.split("\n")]
    for node in sorted(literals, key=lambda node: (node.lineno, node.col_offset), reverse=True):
        line, end = lines[node.lineno - 1], node.end_col_offset or 0
        if not _stands_there(line[node.col_offset : end], node.value):
            continue  # within an f-string Python 3.11 says another place
        moved = int(str(node.value)) + seed
        lines[node.lineno - 1] = line[: node.col_offset] + str(moved).encode() + line[end:]
    moved_text = "\n".join(line.decode("utf-8") for line in lines)
    return moved_text if digest(moved_text) == digest(text) else train_py


def _literals(text: str) -> Iterator[ast.Constant]:
    """Each integer that is a seed, once, whichever ways lead to it."""
    places = set()
    for node in SeedLiterals.of(parse(text)):
        if (place := (node.lineno, node.col_offset)) not in places:
            places.add(place)
            yield node


def _stands_there(source: bytes, value: object) -> bool:
    try:
        return bool(ast.literal_eval(source.decode("utf-8")) == value)
    except (SyntaxError, ValueError):
        return False
