"""What is refused, under which name, and what is not."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.core.program.policy import MAX_BYTES, check, digest

FRONTIER = '''"""A model."""
import torch

SEED = 1
DEPTH = 4  # layers
torch.manual_seed(42)


def build_model():
    """Make one."""
    return torch.nn.Linear(DEPTH, DEPTH)
'''


def cause(train_py: str, frontier_py: str | None = FRONTIER, *earlier: str) -> str | None:
    objection = check(train_py, frontier_py, {digest(text) for text in earlier})
    return objection.cause if objection else None


@pytest.mark.parametrize(
    ("train_py", "expected"),
    [
        ("", "empty"),
        (" \n\t\n", "empty"),
        ("model = 1\n" + "#" * MAX_BYTES, "too-large"),
        ("model = 'é'\n#" + "é" * (MAX_BYTES // 2), "too-large"),
        ("model =\n", "syntax"),
        ("Here is the file:\n```python\nmodel = 1\n```\n", "syntax"),
        ("model = '\x00'", "syntax"),
        ("model = '\ud800'", "syntax"),
        ("model = " + "-" * 200_000 + "1", "syntax"),
        ("model = " + "(" * 5000 + ")" * 5000, "syntax"),
        ("print('no model')\n", "form"),
        ("def train():\n    model = 1\n", "form"),
        ("class C:\n    def build_model(self): ...\n", "form"),
        (FRONTIER, "identical"),
        (FRONTIER + "# a thought\n", "no-op"),
        (FRONTIER.replace("Make one.", "Make a good one."), "no-op"),
        (FRONTIER.replace("DEPTH = 4 ", "DEPTH   =   4"), "no-op"),
        (FRONTIER.replace("\n", "\r\n"), "no-op"),
        (FRONTIER.replace("SEED = 1", "SEED = 2"), "no-op"),
        (FRONTIER.replace("42", "43"), "no-op"),
        (FRONTIER.replace("DEPTH = 4", "DEPTH = 5"), None),
        (FRONTIER.replace("DEPTH = 4", "DEPTH = 4.0"), None),
        (FRONTIER + "'a\\d'\nx = '\\d'\nprint(x)\n", None),
    ],
)
def test_objections(train_py: str, expected: str | None) -> None:
    assert cause(train_py) == expected


@pytest.mark.parametrize(
    "source",
    [
        "model = 1\n",
        "with device():\n    model = 1\n",
        "if True:\n    for _ in x:\n        model: int = 1\n",
        "model, loss = f()\n",
        "if True:\n    def build_model(): ...\n",
        "build_model = make\n",
        "import functools\nbuild_model = functools.partial(Model, 4)\n",
        "\ufeffmodel = 1\n",
    ],
)
def test_both_forms_of_train_py_are_accepted(source: str) -> None:
    assert cause(source) is None


def test_a_syntax_objection_names_the_line() -> None:
    objection = check("model = 1\nx = = 2\n", FRONTIER)
    assert objection is not None
    assert objection.detail == "line 2: invalid syntax"


def test_what_ran_from_this_frontier_is_not_run_again() -> None:
    idea = FRONTIER.replace("DEPTH = 4", "DEPTH = 5")
    assert cause(idea, FRONTIER, "broken (", idea) == "duplicate"
    assert cause(idea + "# again\n", FRONTIER, idea) == "duplicate"
    assert cause(idea, FRONTIER, FRONTIER.replace("DEPTH = 4", "DEPTH = 6")) is None


def test_the_baseline_may_be_anything_that_can_be_scored() -> None:
    assert cause(FRONTIER, None) is None
    assert cause("print(1)", None) == "form"


def test_a_frontier_that_does_not_parse_is_no_obstacle() -> None:
    assert cause(FRONTIER, "not python at all (") is None


@given(st.text(st.characters(exclude_categories=()), max_size=200))
def test_no_text_breaks_the_check(text: str) -> None:
    objection = check(text, FRONTIER)
    if objection is not None:
        assert objection.cause and "\n" not in objection.detail
