"""Where a program's names are read and bound, and which of its expressions are pure. Pure."""

from __future__ import annotations

import ast
import builtins
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from controller.core.program import constant_folding as folding
from controller.core.program.seeds import DRAWS, SEED_CALLS

_PURE_NODES = (
    *(ast.Constant, ast.Name, ast.Tuple, ast.List, ast.Set, ast.Dict, ast.Starred, ast.Slice),
    *(ast.BinOp, ast.UnaryOp, ast.BoolOp, ast.Compare, ast.IfExp, ast.Subscript, ast.JoinedStr),
    *(ast.FormattedValue, ast.Attribute, ast.operator, ast.unaryop, ast.boolop, ast.cmpop, ast.Lambda),
    *(ast.arguments, ast.arg, ast.comprehension, ast.ListComp, ast.SetComp, ast.DictComp),
    *(ast.GeneratorExp, ast.expr_context),
)
PURE_MODULES = {"math", "zlib", "hashlib", "struct", "binascii", "base64", "string", "operator"}
"""Modules whose functions have no side effects."""
_PURE_METHODS = {
    *("hexdigest", "digest", "encode", "decode", "from_bytes", "to_bytes", "format", "bit_length", "tolist"),
    *("item", "upper", "lower", "strip", "replace", "join", "split", "count", "find", "index"),
}
_FRESH = {"empty", "zeros", "ones"}
_FILLS = {"normal_", "uniform_", "random_", "bernoulli_", "exponential_"}
"""Random draws into a tensor: harmless if it was only just created."""
_LAYERS = {"nn", "torch"}
"""Modules whose classes draw their initial weights."""
_READERS = {"globals", "locals", "vars", "eval", "exec", "dir", "getattr", "__dict__", "asdict", "fields"}
"""A program that uses one of these may read any name."""
_KEPT = {"model", "build_model"}
"""Names the worker looks up in the file."""


@dataclass
class Names:
    """The names of a whole file, regardless of scope."""

    read: Counter[str] = field(default_factory=Counter)
    bound: set[str] = field(default_factory=set)
    """Assigned, defined or a parameter anywhere."""
    imported: set[str] = field(default_factory=set)
    """Modules, what is imported from them, and random number generators."""
    seeders: set[str] = field(default_factory=set)
    """Other names for functions that set a seed."""
    functions: dict[str, list[ast.FunctionDef]] = field(default_factory=dict)
    """Methods included."""
    empty: set[str] = field(default_factory=set)
    """Functions that do nothing."""

    constants: set[str] = field(default_factory=set)
    """Assigned once, from literals and other constants only."""

    @classmethod
    def of(cls, tree: ast.Module) -> Names:
        names, assigned, values = cls(), Counter[str](), dict[str, ast.expr]()
        for node in ast.walk(tree):
            names._note(node)
            match node:
                case ast.Name(id=name, ctx=ast.Store()) | ast.arg(arg=name):
                    assigned[name] += 1
                case ast.Assign(targets=[ast.Name(id=name)], value=value):
                    values[name] = value
                    names._note_alias(name, value)
                case _:
                    pass
        for name, value in values.items():
            if assigned[name] == 1 and names.is_constant(value):
                names.constants.add(name)
        return names

    def _note(self, node: ast.AST) -> None:
        match node:
            case ast.Name(id=name, ctx=ast.Load()) | ast.Attribute(attr=name):
                self.read[name] += 1
            case ast.Constant(value=str(name)):
                self.read[name] += 1  # __all__
            case ast.Name(id=name) | ast.arg(arg=name) | ast.ClassDef(name=name):
                self.bound.add(name)
            case ast.FunctionDef(name=name):
                self.bound.add(name)
                self.functions.setdefault(name, []).append(node)
                if (
                    all(isinstance(statement, ast.Pass) for statement in node.body)
                    and not node.decorator_list
                ):
                    self.empty.add(name)
            case ast.Import(names=aliases) | ast.ImportFrom(names=aliases):
                for alias in aliases:
                    self.imported.add(alias.asname or alias.name.split(".")[0])
                    if alias.asname and alias.name in SEED_CALLS:
                        self.seeders.add(alias.asname)
            case _:
                pass

    def _note_alias(self, name: str, value: ast.expr) -> None:
        if isinstance(value, ast.Attribute) and value.attr in SEED_CALLS:
            self.seeders.add(name)
        if isinstance(value, ast.Call) and self.sets_seed(value.func):
            self.imported.add(name)

    def idle(self, name: str) -> bool:
        """True if a name's value cannot matter."""
        read = name in self.read or any(reader in self.read for reader in _READERS)
        return not (read or name in _KEPT or name.startswith("__"))

    def is_own(self, function: ast.expr) -> bool:
        """True if, by its name, a function is defined by the program itself."""
        return last(function) in self.functions and root(function) not in self.imported

    def sets_seed(self, function: ast.expr) -> bool:
        """True for a function that takes a seed."""
        name = last(function)
        if self.is_own(function) and name in SEED_CALLS:
            inner = (node for made in self.functions[name] for node in ast.walk(made))
            return any(isinstance(node, ast.Call) and last(node.func) in SEED_CALLS for node in inner)
        return name in SEED_CALLS or (isinstance(function, ast.Name) and name in self.seeders)

    def is_pure(self, value: ast.AST) -> bool:
        """True if an expression has no side effect other than advancing a random stream."""
        parts: Iterable[ast.AST]
        if isinstance(value, ast.Call):
            if not self._only_returns(value.func) and not self._draws(value):
                return False
            owner = [value.func.value] if isinstance(value.func, ast.Attribute) else []
            parts = (*owner, *value.args, *(keyword.value for keyword in value.keywords))
        elif isinstance(value, _PURE_NODES):
            parts = ast.iter_child_nodes(value)
        else:
            return False
        return all(self.is_pure(part) for part in parts)

    def is_constant(self, value: ast.AST) -> bool:
        """True if a pure expression depends only on literals and constants."""
        names = [node for node in ast.walk(value) if isinstance(node, ast.Name)]
        inner = {name.id for name in names if isinstance(name.ctx, ast.Store)}  # of a comprehension
        known = (self.constants, folding.PURE, PURE_MODULES, inner)
        return self.is_pure(value) and all(any(name.id in some for some in known) for name in names)

    def is_idle(self, value: ast.AST) -> bool:
        """True for a pure expression that, as far as can be told, does not raise either.

        Otherwise a failing program and its repair would look the same.
        """
        match value:
            case ast.Name(id=name):
                return name in self.bound or name in self.imported or hasattr(builtins, name)
            case ast.Attribute(attr=name) if name in SEED_CALLS:
                return root(value) in self.imported
            case ast.Tuple(elts=parts) | ast.List(elts=parts):
                return all(self.is_idle(part) for part in parts)
            case ast.Call(func=function, args=args, keywords=keywords) if self.is_pure(value):
                if self._draws(value) or (isinstance(function, ast.Name) and function.id in self.empty):
                    return all(self.is_idle(part) for part in (*args, *(word.value for word in keywords)))
        return self.is_constant(value)

    def _only_returns(self, function: ast.expr) -> bool:
        if isinstance(function, ast.Name):
            if function.id in self.bound:
                return function.id in self.empty and len(self.functions[function.id]) == 1
            return function.id in folding.PURE
        return root(function) in PURE_MODULES or last(function) in _PURE_METHODS

    def _draws(self, call: ast.Call) -> bool:
        name, owner = last(call.func), getattr(call.func, "value", None)
        if any(keyword.arg == "out" for keyword in call.keywords):
            return False
        if name in _FILLS:
            return isinstance(owner, ast.Call) and self._draws(owner)
        known = name in DRAWS or name in _FRESH or (name[:1].isupper() and root(call.func) in _LAYERS)
        return known and root(call.func) in self.imported


def last(function: ast.AST) -> str:
    """The last part of a dotted name; empty for anything else."""
    return function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")


def root(function: ast.AST) -> str:
    """The first part of a dotted name; empty for anything else."""
    while isinstance(function, ast.Attribute):
        function = function.value
    return getattr(function, "id", "")
