"""Constant folding with bounds. Pure; no part of a program is run.

Only cheap expressions are folded: 9**9**9 and "a" * 10**9 stay as written.
"""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import suppress
from typing import Any, Final

_BITS, _ITEMS = 4096, 4096
"""Largest integer, and largest string or sequence, that is folded."""
_METHOD_ITEMS = 256
"""Largest receiver or argument of a method that is folded: `replace` multiplies their lengths."""

NOTHING: Final = object()
"""The value of whatever is not folded."""

_BINARY: Mapping[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
    ast.LShift: operator.lshift,
    ast.RShift: operator.rshift,
    ast.BitAnd: operator.and_,
    ast.BitOr: operator.or_,
    ast.BitXor: operator.xor,
}
_UNARY: Mapping[type[ast.unaryop], Callable[[Any], Any]] = {
    ast.UAdd: operator.pos,
    ast.USub: operator.neg,
    ast.Invert: operator.invert,
    ast.Not: operator.not_,
}
_COMPARE: Mapping[type[ast.cmpop], Callable[[Any, Any], Any]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.In: lambda a, b: a in b,
    ast.NotIn: lambda a, b: a not in b,
}
_FUNCTIONS: Mapping[str, Callable[..., Any]] = {
    function.__name__: function
    for function in (abs, bin, bool, chr, divmod, float, hex, int, len, max, min, oct, ord, round, sorted)
} | {"str": str, "sum": sum, "tuple": tuple, "list": list, "pow": pow}
_MATH: Mapping[str, Callable[..., Any]] = {
    function.__name__: function
    for function in (math.floor, math.ceil, math.trunc, math.sqrt, math.exp, math.log, math.log2, math.gcd)
}
_METHODS = {
    str: {
        *("upper", "lower", "title", "strip", "lstrip", "rstrip", "replace", "count", "find", "index"),
        *("startswith", "endswith", "isdigit", "swapcase", "capitalize", "split", "join", "encode"),
    },
    bytes: {"decode", "hex", "count", "find", "index", "strip", "replace", "join"},
    int: {"bit_length", "bit_count", "conjugate"},
    float: {"is_integer", "conjugate", "hex"},
    tuple: {"count", "index"},
    list: {"count", "index"},
}
PURE = frozenset(_FUNCTIONS) | frozenset(
    {"all", "any", "complex", "dict", "enumerate", "frozenset", "hash", "range", "repr", "reversed", "set"}
)
"""Builtins that do nothing but return a value."""


def constant(node: ast.expr) -> Any:
    """The value of a literal or of a container of literals; NOTHING for anything else."""
    match node:
        case ast.Constant(value=value):
            return value
        case ast.Tuple(elts=elements):
            items = _all(elements)
            return NOTHING if items is None else tuple(items)
        case ast.List(elts=elements):
            items = _all(elements)
            return NOTHING if items is None else items
        case ast.Dict(keys=keys, values=values):
            named, told = _all([key for key in keys if key is not None]), _all(values)
            if named is not None and told is not None and len(named) == len(told):
                with suppress(TypeError):
                    return dict(zip(named, told, strict=True))
    return NOTHING


def _all(nodes: Iterable[ast.expr]) -> list[Any] | None:
    values = [constant(node) for node in nodes]
    return None if any(value is NOTHING for value in values) else values


def fold(node: ast.expr, shadowed: Collection[str]) -> ast.expr:
    """The literal that an expression of literals evaluates to; else the node itself.

    `shadowed` are the names that the program redefines.
    """
    try:
        value = _value(node, shadowed)
    except (ArithmeticError, ValueError, TypeError, LookupError, AttributeError):
        return node  # the program would raise
    literal = None if value is NOTHING else _literal(value)
    return node if literal is None else literal


def _value(node: ast.expr, shadowed: Collection[str]) -> Any:
    match node:
        case ast.BinOp(left=left, op=op, right=right):
            values = _all((left, right))
            return NOTHING if values is None else _binary(op, *values)
        case ast.UnaryOp(op=op, operand=operand):
            values = _all((operand,))
            return NOTHING if values is None else _unary(op, values[0])
        case ast.Compare(left=left, ops=[op], comparators=[right]) if type(op) in _COMPARE:
            values = _all((left, right))
            return NOTHING if values is None else _COMPARE[type(op)](*values)
        case ast.JoinedStr(values=parts):
            texts = [_text(part) for part in parts]
            return NOTHING if None in texts else "".join(filter(None, texts))
        case ast.Subscript(value=owner, slice=index):
            values = _all((owner, index))
            return NOTHING if values is None else values[0][values[1]]
        case ast.Call(func=function, args=args, keywords=[]):
            values = _all(args)
            return NOTHING if values is None else _call(function, values, shadowed)
    return NOTHING


def _unary(op: ast.unaryop, value: Any) -> Any:
    if isinstance(op, ast.Invert) and isinstance(value, bool):
        return NOTHING  # deprecated
    return _UNARY[type(op)](value)


def _binary(op: ast.operator, left: Any, right: Any) -> Any:
    """Raises what the operation raises."""
    if isinstance(left, str | bytes) and isinstance(op, ast.Mod):
        return NOTHING  # a format string, which may ask for any width
    numbers = isinstance(left, int | float) and isinstance(right, int | float)
    large = {ast.Pow: _bits(left) * _size(right), ast.LShift: _bits(left) + _size(right)}.get(type(op), 0)
    if numbers and large > _BITS:
        return NOTHING
    if isinstance(op, ast.Mult) and not numbers and _items(left) * _items(right) > _ITEMS:
        return NOTHING
    function = _BINARY.get(type(op))
    return NOTHING if function is None else function(left, right)


def _bits(value: Any) -> int:
    return value.bit_length() if isinstance(value, int) else 1


def _size(value: Any) -> int:
    """Size of an exponent; floats are bounded anyway."""
    return abs(value) if isinstance(value, int) else 1


def _items(value: Any) -> int:
    return abs(value) if isinstance(value, int) else len(value) if hasattr(value, "__len__") else 1


def _text(part: ast.expr) -> str | None:
    """The text of one part of an f-string; None if it is not folded."""
    match part:
        case ast.Constant(value=str(text)):
            return text
        case ast.FormattedValue(value=node, conversion=-1, format_spec=None):
            value = constant(node)
            return str(value) if isinstance(value, str | int | float) else None
    return None


def _call(function: ast.expr, values: list[Any], shadowed: Collection[str]) -> Any:
    """Raises what the function raises."""
    if any(_large(value) for value in values):
        return NOTHING
    match function:
        case ast.Name(id="pow") if len(values) != 2:
            return NOTHING
        case ast.Name(id="pow") if "pow" not in shadowed:
            return _binary(ast.Pow(), *values)
        case ast.Name(id=name) if name in _FUNCTIONS and name not in shadowed:
            return _FUNCTIONS[name](*values)
        case ast.Attribute(value=ast.Name(id="math"), attr=name) if name in _MATH:
            return _MATH[name](*values)
        case ast.Attribute(value=owner, attr=name):
            value = constant(owner)
            if value is not NOTHING and not _large(value) and name in _METHODS.get(type(value), ()):
                return getattr(value, name)(*values)
    return NOTHING


def _large(value: Any) -> bool:
    """True if a function or method could blow this value up."""
    if isinstance(value, str | bytes):
        return len(value) > _METHOD_ITEMS
    if isinstance(value, tuple | list):
        return len(value) > _METHOD_ITEMS or any(_large(item) for item in value)
    return not isinstance(value, bool | int | float | complex | None) or _bits(value) > _BITS


def _literal(value: Any) -> ast.expr | None:
    """None for a value that has no literal, or that is too large."""
    if value is None or isinstance(value, bool | int | float | complex | str | bytes):
        fits = _bits(value) <= _BITS and (not isinstance(value, str | bytes) or len(value) <= _ITEMS)
        return ast.Constant(value=value) if fits else None
    if isinstance(value, tuple | list) and len(value) <= _ITEMS:
        items = [_literal(item) for item in value]
        if None not in items:
            kind = ast.Tuple if isinstance(value, tuple) else ast.List
            return kind(elts=[item for item in items if item is not None], ctx=ast.Load())
    return None
