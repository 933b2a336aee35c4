"""What is imported directly is declared, and what is declared is locked."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Iterable, Iterator
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
PYPROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
RUN: list[str] = PYPROJECT["project"]["dependencies"]
DEV: list[str] = PYPROJECT["dependency-groups"]["dev"]
SANDBOX = (ROOT / "sandbox_image" / "requirements.in").read_text(encoding="utf-8").splitlines()[1:]


def names(requirements: Iterable[str]) -> set[str]:
    """Distributions, their names normalised as PyPI does."""
    found = (re.match(r"[\w.-]*\w", line) for line in requirements)
    return {re.sub(r"[-_.]+", "-", match[0]).lower() for match in found if match}


def imported(source: str) -> Iterator[str]:
    """Top-level names of the modules that a source imports."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module is not None and not node.level:
            yield node.module.split(".")[0]


def undeclared(sources: Iterable[str], declared: set[str]) -> set[str]:
    """Third-party modules that the sources import and that no declared distribution holds."""
    distributions = packages_distributions()
    modules = {module for source in sources for module in imported(source)} - sys.stdlib_module_names
    return {module for module in modules if not names(distributions.get(module, ())) & declared}


def sources(folder: str) -> Iterator[str]:
    return (path.read_text(encoding="utf-8") for path in (ROOT / folder).rglob("*.py"))


def locked(name: str) -> set[str]:
    lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
    return names(line for line in lines if "==" in line and not line.startswith("#"))


def test_what_the_controller_imports_is_declared() -> None:
    assert undeclared(sources("controller"), names(RUN)) == {"controller"}


def test_what_the_tests_import_is_declared() -> None:
    known = undeclared(sources("tests"), names([*RUN, *DEV, *SANDBOX]))
    assert {module for module in known if module in packages_distributions()} == {"controller"}


@pytest.mark.parametrize(
    ("source", "modules"),
    [
        ("import requests.adapters", {"requests"}),
        ("def f():\n    from pydantic_core import CoreSchema", {"pydantic_core"}),
        ("import os, pydantic\nfrom . import requests\nfrom collections.abc import Sequence", set()),
        ("import no_such_module", {"no_such_module"}),
        ("import git", set()),
    ],
)
def test_an_undeclared_import_is_found(source: str, modules: set[str]) -> None:
    assert undeclared([source], {"pydantic", "gitpython"}) == modules


def test_what_is_declared_is_locked() -> None:
    assert names(RUN) <= locked("requirements.lock")
    assert names(DEV) <= locked("requirements-dev.lock")
