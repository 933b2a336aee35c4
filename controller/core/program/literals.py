"""How much data a program could carry, such as weights or text. Pure."""

from __future__ import annotations

import ast
import io
import tokenize
import zlib

from controller.core.program.source import parse

TEXT_LIMIT, WHOLE_LIMIT = 24 * 1024, 40 * 1024
"""Bytes. harness/train.py has 8,600 and 14,300; modded-nanogpt's train_gpt.py 15,800 and 29,600."""


def excess(source: str, frontier: str) -> str | None:
    """A sentence with both numbers if a program that parses could carry weights or text; else None.

    It may carry slightly more than the program it started from, however much that is.
    """
    for size, limit, what in (
        (text_bytes, TEXT_LIMIT, "the literals, names and comments of train.py come"),
        (_packed, WHOLE_LIMIT, "train.py comes"),
    ):
        if (found := size(source)) > limit and found > (allowed := max(limit, size(frontier) * 21 // 20)):
            return f"{what} to {found} bytes when compressed; {allowed} are allowed"
    return None


def text_bytes(source: str) -> int:
    """Size of all literals, all comments and every name once, compressed; 0 if it does not parse."""
    try:
        tree = parse(source)
        return _packed("\n".join([*_literals(tree), *_names(tree), *_comments(source)]))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return 0


def _packed(text: str) -> int:
    """Compressed size: no decoder can get more out of a text."""
    return len(zlib.compress(text.encode("utf-8", "surrogatepass"), 9))


def _literals(tree: ast.Module) -> list[str]:
    """All literals, docstrings included: a program can read those, and its own file."""
    return [_spelled(node.value) for node in ast.walk(tree) if isinstance(node, ast.Constant)]


def _spelled(value: object) -> str:
    """As hexadecimal: an integer may exceed Python's limit for decimal conversion."""
    if isinstance(value, int):
        return f"{value:x}"
    return value if isinstance(value, str) else repr(value)


def _names(tree: ast.Module) -> dict[str, None]:
    """Every name once."""
    fields = ("id", "attr", "arg", "name", "asname", "module")
    found = (getattr(node, field, None) for node in ast.walk(tree) for field in fields)
    return dict.fromkeys(name for name in found if isinstance(name, str))


def _comments(source: str) -> list[str]:
    tokens = tokenize.generate_tokens(io.StringIO(source, newline=None).readline)
    return [token.string for token in tokens if token.type == tokenize.COMMENT]
