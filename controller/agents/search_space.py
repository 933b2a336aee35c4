"""The tunable constants of a train.py: found by parsing, changed without touching anything else.

They are assigned literals at module level, between two marker comments; a comment at the end of the line may
give a hint:

    # --- tunable constants ---
    MATRIX_LR = 0.04    # Muon. range: 1e-2..1e-1 log
    DEPTH = 4           # transformer blocks. choices: 2, 4, 6
    # --- end of tunable constants ---

The source is never executed.
"""

from __future__ import annotations

import ast
import io
import itertools
import math
import re
import tokenize
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from controller.core.errors import AgentError
from controller.core.program.seeds import is_seed
from controller.core.program.source import parse

Literal = bool | int | float | str

_BEGIN = re.compile(r"#\s*-+\s*tunable constants\b", re.IGNORECASE)
_END = re.compile(r"#\s*-+\s*end of tunable constants\b", re.IGNORECASE)
_NUMBER = r"[-+]?(?:\d[\d_]*(?:\.(?!\.)\d*)?|\.\d+)(?:[eE][-+]?\d+)?"
_RANGE = re.compile(rf"\brange:\s*({_NUMBER})\s*\.\.\s*({_NUMBER})(\s+log\b)?")
_ITEM = rf"\"[^\"]*\"|'[^']*'|{_NUMBER}|[A-Za-z_]\w*"
_CHOICES = re.compile(rf"\bchoices:\s*((?:{_ITEM})(?:\s*,\s*(?:{_ITEM}))*)")
_MAX_EXPONENT = 64
_MAX_INT = 2**63
_DIGITS = 3
_INT_STEPS_WORTH_A_LOG = 16


@dataclass(frozen=True)
class Range:
    """Every number from `low` to `high`, inclusive; `log` if ratios matter rather than differences."""

    low: float
    high: float
    log: bool = False


@dataclass(frozen=True)
class Choices:
    """A few values; numbers in ascending order."""

    values: tuple[Literal, ...]


Domain = Range | Choices


@dataclass(frozen=True)
class Constant:
    """One assignment of a literal inside the marked section."""

    name: str
    value: Literal
    start: tuple[int, int]
    """Line (from 1) and column (UTF-8 bytes, from 0) at which the literal begins."""
    end: tuple[int, int]
    """Line and column just after the literal."""
    domain: Domain | None
    """The values it may take, the present one included; None if they are unknown."""
    hinted: bool
    """True if the domain comes from a comment, False if it was guessed from the value."""


def find(source: str) -> list[Constant]:
    """All constants of the marked section, in source order.

    Raises AgentError if the source does not parse or has no marked section.
    """
    try:
        tree = parse(source)
        comments = _comments(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError, tokenize.TokenError) as error:
        raise AgentError("train.py does not parse, so its tunable constants cannot be read") from error
    first, last = _section(comments)
    found: dict[str, Constant] = {}
    for statement in tree.body:
        if first < statement.lineno and (statement.end_lineno or statement.lineno) < last:
            constant = _constant(statement, comments)
            if constant is not None:
                found[constant.name] = constant
    return list(found.values())


def tunable(constants: Iterable[Constant], scale: str) -> list[Constant]:
    """Those to search at one scale (`cpu` or `gpu`): with a domain, not for the other scale, not a seed."""
    other = "_GPU" if scale == "cpu" else "_CPU"
    return [
        constant
        for constant in constants
        if constant.domain is not None and not constant.name.endswith(other) and not is_seed(constant.name)
    ]


def replace(source: str, values: Mapping[str, Literal]) -> str:
    """The same source with these values; a literal that already has its value keeps its spelling.

    Raises AgentError for a name that is not a constant of the marked section.
    """
    constants = {constant.name: constant for constant in find(source)}
    unknown = sorted(set(values) - set(constants))
    if unknown:
        raise AgentError(f"train.py has no tunable constant {unknown[0]}")
    lines = [line.encode() for line in re.split(r"(?<=\n)|(?<=\r)(?!\n)", source)]
    # From the end, so that the positions of the remaining constants stay valid.
    for constant in sorted(constants.values(), key=lambda constant: constant.start, reverse=True):
        value = values.get(constant.name, constant.value)
        if not same(value, constant.value):
            _splice(lines, constant, render(value).encode())
    return b"".join(lines).decode()


def same(a: Literal, b: Literal) -> bool:
    """Equal in value and in type: 1, 1.0 and True are three different literals."""
    return type(a) is type(b) and a == b


def render(value: Literal) -> str:
    """A Python literal of exactly this value as a person would write it: `0.04`, `3e-4`, `"SL"`."""
    if isinstance(value, str):
        plain = value.isprintable() and '"' not in value and "\\" not in value
        return f'"{value}"' if plain else repr(value)
    if not isinstance(value, float):
        return repr(value)
    mantissa, exponent = f"{value:.16e}".split("e")
    power = int(exponent)
    if value == 0 or -2 <= power <= 3:
        return repr(value)
    short = f"{float(mantissa):.15g}e{power}"
    return short if float(short) == value and len(short) < len(repr(value)) else repr(value)


def tidy(number: float, domain: Range) -> float:
    """Rounded to three significant digits, but within the range."""
    return min(max(float(f"{number:.{_DIGITS}g}"), domain.low), domain.high)


def _comments(source: str) -> dict[int, str]:
    """The comments, by line number."""
    tokens = tokenize.generate_tokens(io.StringIO(source, newline=None).readline)
    return {token.start[0]: token.string for token in tokens if token.type == tokenize.COMMENT}


def _section(comments: Mapping[int, str]) -> tuple[int, int]:
    """Line numbers of the two markers."""
    lines = sorted(comments)
    first = next((line for line in lines if _BEGIN.match(comments[line])), None)
    last = next((line for line in lines if first and line > first and _END.match(comments[line])), None)
    if first is None or last is None:
        raise AgentError(
            "train.py has no section between '# --- tunable constants' and '# --- end of tunable constants'"
        )
    return first, last


def _constant(statement: ast.stmt, comments: Mapping[int, str]) -> Constant | None:
    match statement:
        case ast.Assign(targets=[ast.Name(id=name)], value=node):
            pass
        case ast.AnnAssign(target=ast.Name(id=name), value=ast.expr() as node):
            pass
        case _:
            return None
    value = _literal(node)
    if value is None or node.end_lineno is None or node.end_col_offset is None:
        return None
    comment = comments.get(statement.end_lineno or statement.lineno, "")
    start, end = (node.lineno, node.col_offset), (node.end_lineno, node.end_col_offset)
    hinted = bool(_CHOICES.search(comment) or _RANGE.search(comment))
    return Constant(name, value, start, end, _domain(value, comment), hinted)


def _literal(node: ast.expr) -> Literal | None:
    """Value of a literal, or of a product or power of integers such as 2**16; None for anything else."""
    if isinstance(node, ast.BinOp):
        return _integer(node)
    try:
        value = ast.literal_eval(node)
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
        return None
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if isinstance(value, (bool, int, float, str)) else None


def _integer(node: ast.expr) -> int | None:
    """Evaluate with bounds, so that 9**9**9 costs nothing."""
    match node:
        case ast.Constant(value=int(value)) if not isinstance(value, bool):
            result = value
        case ast.BinOp(left=left, op=ast.Mult() | ast.Pow() as op, right=right):
            a, b = _integer(left), _integer(right)
            if a is None or b is None:
                return None
            result = a * b if isinstance(op, ast.Mult) else _power(a, b)
        case _:
            return None
    return result if abs(result) < _MAX_INT else None


def _power(base: int, exponent: int) -> int:
    return int(base**exponent) if 0 <= exponent <= _MAX_EXPONENT else _MAX_INT


def _domain(value: Literal, comment: str) -> Domain | None:
    if isinstance(value, bool):
        return Choices((False, True))
    if hint := _CHOICES.search(comment):
        return _choices(value, hint[1])
    if isinstance(value, str):
        return None
    if (hint := _RANGE.search(comment)) and (hinted := _range(value, hint)):
        return hinted
    return _around(value)


def _choices(value: Literal, text: str) -> Choices | None:
    """The hinted values that have the type of the constant, and its present value."""
    values: list[Literal] = [value]
    for item in re.findall(_ITEM, text):
        choice = _as_type_of(value, item)
        if choice is not None and choice not in values:
            values.append(choice)
    if not isinstance(value, str):
        values.sort(key=float)
    return Choices(tuple(values)) if len(values) > 1 else None


def _as_type_of(value: Literal, item: str) -> Literal | None:
    if isinstance(value, str):
        return item[1:-1] if item[0] in "\"'" else item
    kind: Callable[[str], Literal] = int if isinstance(value, int) else float
    try:
        return kind(item)
    except ValueError:
        return None


def _range(value: float, hint: re.Match[str]) -> Range | None:
    """The hinted range, widened to include the present value; None if it is empty or infinite."""
    low, high = float(hint[1]), float(hint[2])
    if not math.isfinite(low) or not math.isfinite(high):
        return None
    if isinstance(value, int):
        low, high = math.ceil(low), math.floor(high)
    low, high = min(low, value), max(high, value)
    return Range(low, high, log=bool(hint[3]) and low > 0) if low < high else None


def _around(value: float) -> Domain | None:
    """A guess where there is no hint; None for zero, which says nothing about its scale."""
    if value == 0:
        return None
    if isinstance(value, int):
        return _around_integer(value)
    if value < 0:
        return Range(4 * value, value / 4)
    if 0.5 < value < 1:  # a decay or a momentum: what matters is the distance from 1
        return Range(max(1 - 4 * (1 - value), value / 4), 1 - (1 - value) / 4)
    return Range(value / 4, 4 * value, log=True)


def _around_integer(value: int) -> Domain | None:
    if value > 1 and value & (value - 1) == 0:
        return Choices((value // 2, value, value * 2))
    low, high = sorted((math.trunc(value / 2), value * 2))
    low = max(low, 1) if value > 0 else low
    return Range(low, high, log=low > 0 and high - low >= _INT_STEPS_WORTH_A_LOG)


def _splice(lines: list[bytes], constant: Constant, text: bytes) -> None:
    (first, begin), (last, end) = constant.start, constant.end
    joined = lines[first - 1][:begin] + text + lines[last - 1][end:]
    lines[first - 1 : last] = [joined, *itertools.repeat(b"", last - first)]
