"""Exact-match edits and what their author is told when they do not apply."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.core.program.edits import BadEdit, apply, rebase
from controller.core.values import Edit

TEXT = "a = 1\nb = 2\n\ndef f(x):\n    return x * a\n\ndef g(x):\n    return x * b\n"


@pytest.mark.parametrize(
    ("old", "new", "after"),
    [
        ("a = 1", "a = 3", TEXT.replace("a = 1", "a = 3")),
        ("b = 2\n", "", TEXT.replace("b = 2\n", "")),
        (TEXT, "x", "x"),
        (
            "return x * a",
            "return (\n        x * a\n    )",
            TEXT.replace("return x * a", "return (\n        x * a\n    )"),
        ),
    ],
)
def test_an_edit_replaces_the_one_place(old: str, new: str, after: str) -> None:
    assert apply(TEXT, Edit(old=old, new=new)) == after


@pytest.mark.parametrize(
    ("old", "complaint"),
    [
        ("", "is empty"),
        ("    return x *", "2 times, at lines 5, 8;"),
        (
            "def f(x):\n  return x * a",
            "Only white space differs from the lines from 4 on:\ndef f(x):\n    return",
        ),
        ("def f(y):\n    return y * a", "Most similar are the lines from 4 on:\ndef f(x):\n    return x * a"),
        ("class Transformer(nn.Module)", "Nothing in it is similar"),
        ("\n".join(f"line {i}" for i in range(100)), "Nothing in it is similar"),
    ],
)
def test_an_edit_that_does_not_apply_says_why(old: str, complaint: str) -> None:
    with pytest.raises(BadEdit) as raised:
        apply(TEXT, Edit(old=old, new="something else"))
    assert complaint in str(raised.value)


def test_an_edit_that_changes_nothing_is_an_error() -> None:
    with pytest.raises(BadEdit, match="are the same"):
        apply(TEXT, Edit(old="a = 1", new="a = 1"))


def test_places_that_overlap_are_two() -> None:
    with pytest.raises(BadEdit, match="2 times"):
        apply("xaax", Edit(old="a", new="b"))
    with pytest.raises(BadEdit, match="2 times"):
        apply("ababa", Edit(old="aba", new="b"))


def test_edits_are_carried_over_to_another_text() -> None:
    edits = [Edit(old="a = 1", new="a = 3"), Edit(old="a = 3\nb", new="a = 3\n\nb")]
    assert rebase(f"# moved on\n{TEXT}", edits) == f"# moved on\n{TEXT}".replace("a = 1\n", "a = 3\n\n")
    with pytest.raises(BadEdit):
        rebase(TEXT.replace("a = 1", "a = 2"), edits)


@given(st.text(max_size=60), st.text(min_size=1, max_size=5), st.text(max_size=5))
def test_any_edit_applies_or_says_why(text: str, old: str, new: str) -> None:
    try:
        after = apply(text, Edit(old=old, new=new))
    except BadEdit:
        assert text.count(old) != 1 or old == new or (old + old[:-1]) in text
    else:
        assert after == text.replace(old, new)
