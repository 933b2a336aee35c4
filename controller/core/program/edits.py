"""Exact-match edits of a text, with errors that tell their author what to do instead."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from controller.core.untrusted import clip
from controller.core.values import Edit

#: The least similarity, 0 to 1, at which the closest lines are worth showing.
_ALIKE = 0.5
#: Comparing long texts is slow, and nobody would spot a slip in more lines.
_COMPARED_LINES = 40
_SHOWN_CHARACTERS = 1500
_SHOWN_PLACES = 10


class BadEdit(ValueError):
    """The edit does not apply; the message tells its author why, in a sentence or two."""


def apply(text: str, edit: Edit) -> str:
    """`text` with the one occurrence of `edit.old` replaced. Raises BadEdit if there is not exactly one."""
    if not edit.old:
        raise BadEdit("The text to replace is empty; quote the lines to change.")
    if edit.old == edit.new:
        raise BadEdit("The old and the new text are the same; nothing would change.")
    places = _places(text, edit.old)
    if not places:
        raise BadEdit(f"The text to replace is not in train.py. {_hint(text, edit.old)}")
    if len(places) > 1:
        lines = ", ".join(str(text.count("\n", 0, place) + 1) for place in places[:_SHOWN_PLACES])
        more = " and more" if len(places) > _SHOWN_PLACES else ""
        raise BadEdit(
            f"The text to replace is in train.py {len(places)} times, at lines {lines}{more}; quote more of "
            "the surrounding lines to make it unique."
        )
    return text[: places[0]] + edit.new + text[places[0] + len(edit.old) :]


def rebase(text: str, edits: Iterable[Edit]) -> str:
    """`text` after all edits, in order. Raises BadEdit at the first that does not apply."""
    for edit in edits:
        text = apply(text, edit)
    return text


def _places(text: str, old: str) -> list[int]:
    """Where `old` occurs, overlapping occurrences included: any of them might be meant."""
    places, start = [], text.find(old)
    while start >= 0:
        places.append(start)
        start = text.find(old, start + 1)
    return places


def _hint(text: str, old: str) -> str:
    lines, wanted = text.split("\n"), old.strip("\n").split("\n")
    if (start := _same_but_for_white_space(lines, wanted)) is not None:
        reason = "Only white space differs from the"
    elif (start := _nearest(lines, wanted)) is not None:
        reason = "Most similar are the"
    else:
        return "Nothing in it is similar; the whole text is above."
    shown = "\n".join(lines[start : start + len(wanted)])
    return f"{reason} lines from {start + 1} on:\n{clip(shown, _SHOWN_CHARACTERS)}"


def _same_but_for_white_space(lines: list[str], wanted: list[str]) -> int | None:
    squeezed, goal = ["".join(line.split()) for line in lines], ["".join(line.split()) for line in wanted]
    for start in range(len(lines) - len(goal) + 1):
        if squeezed[start : start + len(goal)] == goal:
            return start
    return None


def _nearest(lines: list[str], wanted: list[str]) -> int | None:
    """Where the lines most similar to `wanted` begin; None if none are similar enough."""
    if len(wanted) > _COMPARED_LINES:
        return None
    matcher = difflib.SequenceMatcher(autojunk=False)
    matcher.set_seq2("\n".join(wanted)[:4000])
    best, where = _ALIKE, None
    for start in range(len(lines) - len(wanted) + 1):
        matcher.set_seq1("\n".join(lines[start : start + len(wanted)])[:4000])
        if matcher.real_quick_ratio() > best and matcher.quick_ratio() > best and matcher.ratio() > best:
            best, where = matcher.ratio(), start
    return where
