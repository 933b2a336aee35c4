"""What a proposed train.py must satisfy before it costs training time.

Nothing here makes an experiment safe or a score honest; containers and the judge do that. A proposal is
refused because running it could teach nothing (empty, unchanged, tried before, another seed) or because it
cannot be scored (not Python, no model to be found).
"""

from __future__ import annotations

import ast
import hashlib
import io
import tokenize
import warnings
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import lru_cache

from controller.core.untrusted import clean_line

#: Upstream's train.py has 26 KB. Room for ten times that, and none for a corpus or for weights.
MAX_BYTES = 256 * 1024

_SEED_CALLS = frozenset(
    {"manual_seed", "manual_seed_all", "seed", "set_seed", "seed_everything", "default_rng"}
)


@dataclass(frozen=True)
class Objection:
    """Why a proposal is refused. The agent gets to see both."""

    cause: str
    """`empty`, `too-large`, `syntax`, `form`, `identical`, `no-op` or `duplicate`; or `suspect`, see
    core/suspicion.py."""
    detail: str


def check(
    train_py: str, frontier_py: str | None, tried: Collection[str] = (), *, max_bytes: int = MAX_BYTES
) -> Objection | None:
    """The first objection to `train_py`, or None.

    `frontier_py` is the text it starts from; None for the baseline, which starts from nothing.
    `tried` are the digests of the texts already run from that same frontier.
    """
    return _check_text(train_py, max_bytes) or _check_novelty(train_py, frontier_py, tried)


def _check_text(train_py: str, max_bytes: int) -> Objection | None:
    if not train_py.strip():
        return Objection("empty", "train.py is empty")
    if len(train_py) > max_bytes or len(train_py.encode("utf-8", "surrogatepass")) > max_bytes:
        return Objection("too-large", f"train.py has more than {max_bytes} bytes")
    try:
        tree = _parse(train_py)
    except SyntaxError as error:
        line = f"line {error.lineno}: " if error.lineno else ""
        return Objection("syntax", clean_line(f"{line}{error.msg}"))
    except (UnicodeEncodeError, ValueError) as error:
        return Objection("syntax", clean_line(str(error)))
    except (RecursionError, MemoryError):
        return Objection("syntax", "train.py is nested too deeply to be read")
    if not {"build_model", "model"} & set(_module_names(tree)):
        return Objection("form", "train.py has neither a function build_model() nor a module-level `model`")
    return None


def _check_novelty(train_py: str, frontier_py: str | None, tried: Collection[str]) -> Objection | None:
    if train_py == frontier_py:
        return Objection("identical", "train.py is the frontier's, unchanged")
    program = digest(train_py)
    if frontier_py is not None and program == digest(frontier_py):
        return Objection("no-op", "only comments, docstrings, white space or a seed changed")
    if program in tried:
        return Objection("duplicate", "the same program was run from this frontier before")
    return None


def _parse(text: str) -> ast.Module:
    """Parse the bytes, as the interpreter in the container will."""
    source = text.encode("utf-8")
    encoding, _ = tokenize.detect_encoding(io.BytesIO(source).readline)
    if encoding not in ("utf-8", "utf-8-sig"):
        # Another encoding would make the file that runs differ from the text that is on record.
        raise SyntaxError(f"train.py declares the encoding {encoding}; it must be UTF-8")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # an invalid escape sequence is the author's business
        return ast.parse(source, "train.py")


def _module_names(tree: ast.Module) -> Iterator[str]:
    """Names bound at module level, inside `if`, `with`, `for` and `try` too."""
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
    """sha256 of what a text does, as far as can be told from its syntax: no comments, docstrings or seeds.

    A text that cannot be parsed stands for itself.
    """
    try:
        tree = _Normalise().visit(_parse(text))
        content = ast.dump(tree, annotate_fields=False)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        content = text
    return hashlib.sha256(content.encode("utf-8", "surrogatepass")).hexdigest()


class _Normalise(ast.NodeTransformer):
    """Drop docstrings and set every literal seed to 0."""

    def visit_Expr(self, node: ast.Expr) -> ast.AST | None:
        if isinstance(node.value, ast.Constant):
            return None  # a docstring, or a bare constant: neither does anything
        return self.generic_visit(node)

    def visit_Assign(self, node: ast.Assign) -> ast.AST:
        if any(isinstance(target, ast.Name) and _is_seed(target.id) for target in node.targets):
            node.value = _without_seed(node.value)
        return self.generic_visit(node)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST:
        if isinstance(node.target, ast.Name) and _is_seed(node.target.id) and node.value is not None:
            node.value = _without_seed(node.value)
        return self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> ast.AST:
        function = node.func
        name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
        if name in _SEED_CALLS:
            node.args = [_without_seed(argument) for argument in node.args]
        return self.generic_visit(node)

    def visit_keyword(self, node: ast.keyword) -> ast.AST:
        if node.arg is not None and _is_seed(node.arg):
            node.value = _without_seed(node.value)
        return self.generic_visit(node)


def _is_seed(name: str) -> bool:
    return "seed" in name.lower()


def _without_seed(value: ast.expr) -> ast.expr:
    return ast.Constant(value=0) if isinstance(value, ast.Constant) else value
