"""Every string from an agent or a container passes here before a person, a file or an LLM reads it.

A log line can move the cursor, fill the clipboard (OSC 52), turn the reading direction round or carry text
nobody can see. None of that is worth keeping: what cannot be seen is removed, what cannot be encoded is
replaced, and length is always bounded. Cleaning twice gives the same text as cleaning once.

What this does not do: it does not tell whether visible text is true, polite or free of instructions.
"""

from __future__ import annotations

import re
import unicodedata

ELLIPSIS = "…"
REPLACEMENT = "\N{REPLACEMENT CHARACTER}"

#: ECMA-48 control sequences, 7-bit and 8-bit. No body holds a control character, so every search is linear.
_ESCAPES = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]"  # CSI: colours, cursor, erase
    # OSC, DCS, SOS, PM and APC, up to their terminator
    r"|(?:\x1b[\]PX^_]|[\x90\x98\x9d-\x9f])[^\x00-\x1f\x7f-\x9f]*(?:\x07|\x9c|\x1b\\)"
    r"|\x1b[ -/]*[0-~]"  # everything else that begins with ESC
)

#: Letters and marks that show nothing, besides the categories in `_neutral`; text can be smuggled in them.
_INVISIBLE = frozenset(
    {
        *(0x034F, 0x115F, 0x1160, 0x17B4, 0x17B5, 0x2800, 0x3164, 0xFFA0),
        *range(0x180B, 0x1810),
        *range(0xFE00, 0xFE10),
        *range(0xE0000, 0xE1000),
    }
)

_FORMULA_STARTS = tuple("=+-@＝＋－＠")


def clip(text: str, limit: int) -> str:
    """At most `limit` characters; an ellipsis at the end says that there was more."""
    if len(text) <= limit:
        return text
    return text[: max(limit - 1, 0)] + ELLIPSIS[:limit]


def clean_line(text: str, limit: int = 200) -> str:
    """One safe line: runs of white space become one space, and nothing invisible is left."""
    return clip(" ".join(_neutral(text).split()), limit)


def clean_text(text: str, limit: int) -> str:
    """Several safe lines for people. When too long, both ends are kept and the middle is counted."""
    lines = _neutral(text).split("\n")
    return _clip_middle("\n".join(line.rstrip() for line in lines).strip("\n"), limit)


def fence(text: str) -> str:
    """Quote `text` for an LLM: whatever it holds, it cannot end the quotation."""
    return _fenced(_neutral(text), "text")


def fence_code(text: str) -> str:
    """Quote a program for an LLM that is to edit it: tabs stay, for an edit must match them."""
    return _fenced("\t".join(_neutral(part) for part in text.split("\t")), "python")


def _fenced(safe: str, language: str) -> str:
    longest = max((len(run) for run in re.findall("`+", safe)), default=0)
    marks = "`" * max(3, longest + 1)
    return f"{marks}{language}\n{safe}\n{marks}"


def tsv_cell(text: str, limit: int = 200) -> str:
    """One cell of the ledger.

    A spreadsheet takes a cell that begins with `=`, `+`, `-` or `@` for a formula, and a CSV reader takes a
    double quote for the start of a cell that may span lines.
    """
    cell = clean_line(text, limit).replace('"', "'")
    return clip("'" + cell, limit) if cell.startswith(_FORMULA_STARTS) else cell


def _neutral(text: str) -> str:
    """`text` with newlines as its only control characters and nothing in it that cannot be seen."""
    text = _ESCAPES.sub("", text)
    return text.replace("\r\n", "\n").translate(_TABLE)


def _neutral_character(code: int) -> str | None:
    """What stands for a character; None means itself."""
    character = chr(code)
    category = unicodedata.category(character)
    if character in "\n\r\v\f\x85\u2028\u2029":
        return "\n"
    if character == "\t":
        return "    "
    if category == "Zs":
        return " "
    if category in ("Cc", "Cf") or code in _INVISIBLE:
        return ""
    if category in ("Cs", "Co") or code & 0xFFFE == 0xFFFE:
        return REPLACEMENT
    return None


class _Table(dict[int, str]):
    """Filled as characters turn up; most texts use a few hundred of the million there are."""

    def __missing__(self, code: int) -> str:
        neutral = _neutral_character(code)
        self[code] = chr(code) if neutral is None else neutral
        return self[code]


_TABLE = _Table()


def _clip_middle(text: str, limit: int) -> str:
    if len(text) <= limit:
        return text
    note = f"\n{ELLIPSIS} {len(text) - limit} characters and more left out {ELLIPSIS}\n"
    room = limit - len(note)
    if room < 2:
        return clip(text, limit)
    tail = room * 2 // 3  # the end of a log says how it ended
    return text[: room - tail].rstrip() + note + text[len(text) - tail :]
