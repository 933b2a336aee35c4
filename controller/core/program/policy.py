"""The checks a proposed train.py must pass before it costs training time.

Nothing here makes an experiment safe or a score honest; containers and the judge do that. A proposal is
refused because running it would teach nothing (empty, unchanged, tried before, another seed), because it
cannot be scored (not Python, no model), or because it could carry weights or text.
"""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import lru_cache

from controller.core.program.literals import excess
from controller.core.program.normal_form import MAX_DEPTH, depth, normalised
from controller.core.program.source import parse
from controller.core.untrusted import clean_line

#: Ten times upstream's train.py of 26 KB; core/program/literals.py limits what it may carry.
MAX_BYTES = 256 * 1024
_DEEP = "train.py is nested too deeply to be read"


@dataclass(frozen=True)
class Objection:
    """Why a proposal is refused. The agent sees both fields."""

    cause: str
    """`empty`, `too-large`, `syntax`, `form`, `literals`, `identical`, `no-op` or `duplicate`; or `suspect`,
    see core/program/suspicion.py."""
    detail: str


def check(
    train_py: str, frontier_py: str | None, tried: Collection[str] = (), *, max_bytes: int = MAX_BYTES
) -> Objection | None:
    """The first objection to `train_py`, or None.

    `frontier_py` is the text it starts from; None for the baseline. `tried` are the digests of the texts
    already run from that frontier.
    """
    return (
        _check_text(train_py, max_bytes)
        or _check_contents(train_py, frontier_py)
        or _check_novelty(train_py, frontier_py, tried)
    )


def _check_text(train_py: str, max_bytes: int) -> Objection | None:
    if not train_py.strip():
        return Objection("empty", "train.py is empty")
    if len(train_py) > max_bytes or len(train_py.encode("utf-8", "surrogatepass")) > max_bytes:
        return Objection("too-large", f"train.py has more than {max_bytes} bytes")
    try:
        tree = parse(train_py)
    except SyntaxError as error:
        line = f"line {error.lineno}: " if error.lineno else ""
        return Objection("syntax", clean_line(f"{line}{error.msg}"))
    except (UnicodeEncodeError, ValueError) as error:
        return Objection("syntax", clean_line(str(error)))
    except (RecursionError, MemoryError):
        return Objection("syntax", _DEEP)
    if depth(tree) > MAX_DEPTH:
        return Objection("syntax", _DEEP)
    if not {"build_model", "model"} & set(_module_names(tree)):
        return Objection("form", "train.py has neither a function build_model() nor a module-level `model`")
    return None


def _check_contents(train_py: str, frontier_py: str | None) -> Objection | None:
    """The baseline is a person's choice: if it exceeds the limits, so may its successors."""
    detail = excess(train_py, frontier_py or "")
    return Objection("literals", detail) if detail is not None else None


def _check_novelty(train_py: str, frontier_py: str | None, tried: Collection[str]) -> Objection | None:
    if train_py == frontier_py:
        return Objection("identical", "train.py is the frontier's, unchanged")
    program = digest(train_py)
    if frontier_py is not None and program == digest(frontier_py):
        return Objection(
            "no-op",
            "nothing that matters changed: only comments, the spelling of constants, statements without "
            "effect, or a seed",
        )
    if program in tried:
        return Objection("duplicate", "the same program was run from this frontier before")
    return None


def _module_names(tree: ast.Module) -> Iterator[str]:
    """Names bound at module level, including inside `if`, `with`, `for` and `try`."""
    pending: list[ast.AST] = list(tree.body)
    while pending:
        node = pending.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name
            continue
        if isinstance(node, ast.Lambda):
            continue
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        pending.extend(ast.iter_child_nodes(node))


@lru_cache(maxsize=16)
def digest(text: str) -> str:
    """sha256 of a text's normal form (normal_form.py), or of the text itself if it does not parse."""
    try:
        content = normalised(parse(text))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        content = text
    return hashlib.sha256(content.encode("utf-8", "surrogatepass")).hexdigest()
