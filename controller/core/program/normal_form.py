"""Normalises a program: removes whatever affects nothing but luck. Pure; no part of it is run.

Two texts with the same normal form differ at most in comments, the spelling of constants, statements without
effect, seeds, or the position of a random stream. The reverse does not hold: it is easy to make equal
programs look different. docs/decisions/refused-proposals.md says what this is for.
"""

from __future__ import annotations

import ast
from collections.abc import Collection, Sequence
from typing import TypeGuard, cast

from controller.core.program import constant_folding as folding
from controller.core.program.names import PURE_MODULES, Names, last
from controller.core.program.seeds import is_seed

MAX_DEPTH = 200
"""Deepest tree that can be normalised within the interpreter's stack."""

_ROUNDS = 6
"""Most passes; each may leave more names unread. Programs with longer chains count as different."""
_ENDS = (ast.Return, ast.Raise, ast.Continue, ast.Break)
_SCOPES = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)


def depth(tree: ast.AST) -> int:
    """Levels of a syntax tree, counted without recursion."""
    level, levels = [tree], 0
    while level:
        levels += 1
        level = [child for node in level for child in ast.iter_child_nodes(node)]
    return levels


def normalised(tree: ast.Module) -> str:
    """The normal form, dumped; modifies `tree`. Raises RecursionError if much deeper than MAX_DEPTH."""
    before = after = ""
    for _ in range(_ROUNDS):
        for step in (_Fold, _Seeds, _Idle):
            tree = cast(ast.Module, step(Names.of(tree)).visit(tree))
        before, after = after, ast.dump(tree, annotate_fields=False)
        if before == after:
            break
    return after


class _Transformer(ast.NodeTransformer):
    def __init__(self, names: Names) -> None:
        self._names = names


class _Fold(_Transformer):
    """Folds constant expressions and removes branches that are never taken."""

    def visit(self, node: ast.AST) -> ast.AST:
        node = super().visit(node)
        if not isinstance(node, ast.expr) or isinstance(node, ast.Constant | ast.Name):
            return node
        match node:
            case ast.IfExp(test=ast.Constant(value=test), body=body, orelse=orelse):
                return body if test else orelse
            case ast.BoolOp(op=op, values=values):
                return _short(op, values)
            case ast.Call(func=ast.Name(id="getattr"), args=[owner, ast.Constant(value=str(name))]):
                return ast.Attribute(value=owner, attr=name, ctx=ast.Load())
        return folding.fold(node, self._names.bound)


def _short(op: ast.boolop, values: list[ast.expr]) -> ast.expr:
    """`True and x` is x."""
    while len(values) > 1 and isinstance(first := values[0], ast.Constant):
        if bool(first.value) != isinstance(op, ast.And):
            return first
        values = values[1:]
    return values[0] if len(values) == 1 else ast.BoolOp(op=op, values=values)


class _Seeds(_Transformer):
    """Replaces every seed by 0, wherever it comes from."""

    def visit_Assign(self, node: ast.Assign) -> ast.AST:
        if all(_names_seed(target) for target in node.targets):
            node.value = self._without(node.value)
        return self.generic_visit(node)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST:
        if node.value is not None and _names_seed(node.target):
            node.value = self._without(node.value)
        return self.generic_visit(node)

    def visit_AugAssign(self, node: ast.AugAssign) -> ast.AST:
        if _names_seed(node.target):
            node.value = self._without(node.value)
        return self.generic_visit(node)

    def visit_NamedExpr(self, node: ast.NamedExpr) -> ast.AST:
        if _names_seed(node.target):
            node.value = self._without(node.value)
        return self.generic_visit(node)

    def visit_For(self, node: ast.For) -> ast.AST:
        """`for s in [42]: manual_seed(s)`: by now s is unread."""
        unread = isinstance(node.target, ast.Name) and self._names.idle(node.target.id)
        if isinstance(node.iter, ast.Tuple | ast.List) and (unread or _names_seed(node.target)):
            node.iter.elts = [self._without(item) for item in node.iter.elts]
        return self.generic_visit(node)

    def visit_Dict(self, node: ast.Dict) -> ast.AST:
        for place, key in enumerate(node.keys):
            if isinstance(key, ast.Constant) and isinstance(key.value, str) and is_seed(key.value):
                node.values[place] = self._without(node.values[place])
        return self.generic_visit(node)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        self._default(node.args, self._dead(node.args, node.body))
        return self.generic_visit(node)

    def visit_Lambda(self, node: ast.Lambda) -> ast.AST:
        self._default(node.args, self._dead(node.args, [node.body]))
        return self.generic_visit(node)

    def _default(self, parameters: ast.arguments, dead: Collection[str]) -> None:
        given = _positional(parameters)
        first = len(given) - len(parameters.defaults)
        for place, value in enumerate(parameters.defaults):
            if given[first + place] in dead:
                parameters.defaults[place] = self._without(value)
        for place, default in enumerate(parameters.kw_defaults):
            if default is not None and parameters.kwonlyargs[place].arg in dead:
                parameters.kw_defaults[place] = self._without(default)

    @staticmethod
    def _dead(parameters: ast.arguments, body: Sequence[ast.AST]) -> set[str]:
        """Parameters that are a seed, or that the function never reads."""
        read = {node.id for part in body for node in ast.walk(part) if isinstance(node, ast.Name)}
        names = [*_positional(parameters), *(parameter.arg for parameter in parameters.kwonlyargs)]
        return {name for name in names if is_seed(name) or name not in read}

    def visit_Call(self, node: ast.Call) -> ast.AST:
        handed_on = any(self._names.sets_seed(part) for part in node.args)  # passed to partial() or map()
        if self._names.sets_seed(node.func) or handed_on:
            node.args = [arg if self._names.sets_seed(arg) else self._without(arg) for arg in node.args]
            for keyword in node.keywords:
                keyword.value = self._without(keyword.value)
        self._forget(node)
        return self.generic_visit(node)

    def _forget(self, node: ast.Call) -> None:
        """Zero arguments of the program's own functions that are a seed or never read."""
        match node.func:
            case ast.Lambda(args=parameters, body=value):
                dead = self._dead(parameters, [value])
            case ast.Name(id=name) if len(made := self._names.functions.get(name, [])) == 1:
                parameters = made[0].args
                dead = self._dead(parameters, made[0].body)
            case _:
                return
        for place, name in enumerate(_positional(parameters)[: len(node.args)]):
            if name in dead:
                node.args[place] = self._without(node.args[place])
        for keyword in node.keywords:
            if keyword.arg in dead:
                keyword.value = self._without(keyword.value)

    def visit_keyword(self, node: ast.keyword) -> ast.AST:
        if node.arg is not None and is_seed(node.arg):
            node.value = self._without(node.value)
        return self.generic_visit(node)

    def _without(self, value: ast.expr) -> ast.expr:
        """0 in place of a seed's expression, unless evaluating that has side effects."""
        return ast.Constant(value=0) if self._names.is_pure(value) else value


class SeedLiterals(_Seeds):
    """Finds the integers that are seeds, and changes nothing. In doubt an integer is none."""

    def __init__(self, names: Names, compared: Collection[str]) -> None:
        """`compared`: names whose value decides something, so that it has to stay."""
        super().__init__(names)
        self._compared = compared
        self._found: list[ast.Constant] = []

    @classmethod
    def of(cls, tree: ast.Module) -> list[ast.Constant]:
        """In the order in which they are visited; one may be there twice."""
        comparisons = [node for node in ast.walk(tree) if isinstance(node, ast.Compare)]
        finder = cls(Names.of(tree), {last(part) for node in comparisons for part in ast.walk(node)})
        finder.visit(tree)
        return finder._found

    def visit_Assign(self, node: ast.Assign) -> ast.AST:
        kept = any(last(target) in self._compared for target in node.targets)
        return self.generic_visit(node) if kept else super().visit_Assign(node)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST:
        kept = last(node.target) in self._compared
        return self.generic_visit(node) if kept else super().visit_AnnAssign(node)

    def visit_NamedExpr(self, node: ast.NamedExpr) -> ast.AST:
        kept = last(node.target) in self._compared
        return self.generic_visit(node) if kept else super().visit_NamedExpr(node)

    def visit_AugAssign(self, node: ast.AugAssign) -> ast.AST:
        """A step from one seed to the next."""
        return self.generic_visit(node)

    def visit_For(self, node: ast.For) -> ast.AST:
        return super().visit_For(node) if _names_seed(node.target) else self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> ast.AST:
        """Of a call that sets a seed, the seed; a function of the program's own may be called like one."""
        if self._names.sets_seed(node.func) and not self._names.is_own(node.func):
            words = [keyword.value for keyword in node.keywords if keyword.arg in _SEED_WORDS]
            for value in (*node.args[:1], *words):
                self._without(value)
        self._forget(node)
        return self.generic_visit(node)

    @staticmethod
    def _dead(parameters: ast.arguments, body: Sequence[ast.AST]) -> set[str]:
        names = [*_positional(parameters), *(parameter.arg for parameter in parameters.kwonlyargs)]
        return {name for name in names if is_seed(name)}

    def _without(self, value: ast.expr) -> ast.expr:
        parts = [value.left, value.right] if _is_sum(value) else [value]
        self._found += [part for part in parts if isinstance(part, ast.Constant) and type(part.value) is int]
        return value


_SEED_WORDS = frozenset({"seed", "a", "x", "entropy"})
"""What the parameter is called that takes the seed."""


def _is_sum(value: ast.expr) -> TypeGuard[ast.BinOp]:
    return isinstance(value, ast.BinOp) and isinstance(value.op, ast.Add)


def _positional(parameters: ast.arguments) -> list[str]:
    return [parameter.arg for parameter in (*parameters.posonlyargs, *parameters.args)]


def _names_seed(target: ast.expr) -> bool:
    match target:
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return is_seed(name)
        case ast.Subscript(slice=ast.Constant(value=str(name))):
            return is_seed(name)
    return False


class _Idle(_Transformer):
    """Removes statements without effect, and code that is never reached or read."""

    def __init__(self, names: Names) -> None:
        super().__init__(names)
        self._loops = 0
        self._fields = False
        """Whether the statements are a class body, whose names may be read elsewhere."""

    def generic_visit(self, node: ast.AST) -> ast.AST:
        within, self._loops = self._loops, self._within(node)
        super().generic_visit(node)
        for name in ("body", "orelse", "finalbody"):
            block = getattr(node, name, None)
            if isinstance(block, list):
                self._fields = isinstance(node, ast.ClassDef)
                must = name == "body" and not isinstance(node, ast.Module)
                setattr(node, name, self._block(block) or ([ast.Pass()] if must else []))
        self._loops = within
        return node

    def _within(self, node: ast.AST) -> int:
        if isinstance(node, _SCOPES):
            return 0
        return self._loops + isinstance(node, ast.For | ast.While | ast.AsyncFor)

    def _block(self, statements: list[ast.stmt]) -> list[ast.stmt]:
        kept: list[ast.stmt] = []
        for statement in statements:
            for left in self._left(statement):
                kept.append(left)
                if isinstance(left, _ENDS):
                    return kept
        return kept

    def _left(self, statement: ast.stmt) -> list[ast.stmt]:
        """What is left of a statement whose parts have been visited."""
        match statement:
            case ast.If(test=ast.Constant(value=test), body=body, orelse=orelse):
                return [*self._block(body if test else orelse)]
            case ast.While(test=ast.Constant(value=test), orelse=orelse) if not test:
                return orelse
            case ast.If(test=test, body=body, orelse=[]) if _is_empty(body) and self._names.is_idle(test):
                return []
            case ast.For(target=ast.Name(), iter=items, body=body, orelse=[]) if _is_empty(body):
                return [] if self._names.is_idle(items) else [statement]
            case ast.For(target=target, iter=ast.Tuple(elts=[item]) | ast.List(elts=[item]), orelse=[]):
                return [statement] if _leaves(statement) else [ast.Assign([target], item), *statement.body]
            case ast.Import(names=[ast.alias(name=name, asname=None)]) if name in PURE_MODULES:
                return [] if self._unread(name) else [statement]
            case ast.Assert(test=ast.Constant(value=test)) if test:
                return []
            case ast.FunctionDef(name=name, decorator_list=[]) if self._unread(name):
                return []
        return [] if isinstance(statement, ast.Pass) or self._is_idle(statement) else [statement]

    def _is_idle(self, statement: ast.stmt) -> bool:
        match statement:
            case ast.Expr(value=ast.Call() as call) if self._reseeds(call):
                return True
            case ast.Expr(value=value):
                return self._names.is_idle(value)
            case ast.Assign(targets=targets, value=value):
                unread = all(isinstance(name, ast.Name) and self._unread(name.id) for name in targets)
                return unread and self._names.is_idle(value)
            case ast.AnnAssign(target=ast.Name(id=name), value=None):
                return self._unread(name)
            case ast.AnnAssign(target=ast.Name(id=name), value=ast.expr() as value):
                return self._unread(name) and self._names.is_idle(value)
            case ast.AugAssign(target=ast.Name(id=name), value=ast.Constant()):
                return self._unread(name)
        return False

    def _unread(self, name: str) -> bool:
        return not self._fields and self._names.idle(name)

    def _reseeds(self, call: ast.Call) -> bool:
        """Setting a seed only changes luck; but in a loop it is a real change."""
        if self._loops or self._names.is_own(call.func) or not self._names.sets_seed(call.func):
            return False
        return all(
            self._names.is_idle(part) for part in (*call.args, *(word.value for word in call.keywords))
        )


def _leaves(loop: ast.stmt) -> bool:
    return any(isinstance(node, ast.Break | ast.Continue) for node in ast.walk(loop))


def _is_empty(body: Collection[ast.stmt]) -> bool:
    return all(isinstance(statement, ast.Pass) for statement in body)
