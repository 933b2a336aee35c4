"""Sanitises every string from an agent or a container before a person, a file or an LLM reads it.

A log line can move the cursor, fill the clipboard (OSC 52), reverse the reading direction or carry invisible
text. None of that is kept: what cannot be seen is removed, what cannot be encoded is replaced, and length is
always bounded. Cleaning is idempotent.

Not done here: nothing checks whether visible text is true, polite or free of instructions.
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

#: Invisible letters and marks, besides the categories in `_neutral_character`; text can be smuggled in them.
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
    """At most `limit` characters; an ellipsis at the end shows that text was cut."""
    if len(text) <= limit:
        return text
    return text[: max(limit - 1, 0)] + ELLIPSIS[:limit]


def clean_line(text: str, limit: int = 200) -> str:
    """One safe line: white space collapsed, nothing invisible left."""
    return clip(" ".join(_neutral(text).split()), limit)


def clean_text(text: str, limit: int) -> str:
    """Several safe lines for people. If too long, both ends are kept and the cut is noted."""
    lines = _neutral(text).split("\n")
    return _clip_middle("\n".join(line.rstrip() for line in lines).strip("\n"), limit)


def fence(text: str) -> str:
    """Quote `text` for an LLM so that nothing in it can end the quotation."""
    return _fenced(_neutral(text), "text")


def fence_code(text: str) -> str:
    """Quote a program for an LLM to edit: tabs stay, since edits must match them."""
    return _fenced("\t".join(_neutral(part) for part in text.split("\t")), "python")


def _fenced(safe: str, language: str) -> str:
    longest = max((len(run) for run in re.findall("`+", safe)), default=0)
    marks = "`" * max(3, longest + 1)
    return f"{marks}{language}\n{safe}\n{marks}"


def tsv_cell(text: str, limit: int = 200) -> str:
    """One cell of the ledger.

    Spreadsheets treat a cell that begins with `=`, `+`, `-` or `@` as a formula, and CSV readers treat a
    double quote as the start of a cell that may span lines.
    """
    cell = clean_line(text, limit).replace('"', "'")
    return clip("'" + cell, limit) if cell.startswith(_FORMULA_STARTS) else cell


def _neutral(text: str) -> str:
    """`text` without invisible characters, and with newlines as its only control characters."""
    text = _ESCAPES.sub("", text)
    return text.replace("\r\n", "\n").translate(_TABLE)


def _neutral_character(code: int) -> str | None:
    """The replacement for a character; None: keep it."""
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
    """Filled on demand; most texts use a few hundred of a million characters."""

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
