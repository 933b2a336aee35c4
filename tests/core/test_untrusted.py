"""Whatever comes in, what goes out is bounded, visible and harmless where it is shown."""

from __future__ import annotations

import csv
import io
import re
import time
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.core.untrusted import clean_line, clean_text, clip, fence, tsv_cell

# Surrogates included: text decoded with surrogateescape, or written by an LLM as \ud800, holds them.
ANY = st.text(st.characters(exclude_categories=()), max_size=300)
ESCAPES = ["\x1b[31m", "\x1b]52;c;aGk=\x07", "\x9b2J", "\x1b", "[", "]"]
PIECES = [*ESCAPES, "\r", "\n", "\t", "\u202e", "\u200b", "`", "```", "`````", "a"]
HOSTILE = st.lists(st.one_of(st.sampled_from(PIECES), ANY), max_size=30).map("".join)


def harmless(text: str, *, allowed: str = "") -> bool:
    return all(c in allowed or unicodedata.category(c) not in ("Cc", "Cf", "Cs", "Zl", "Zp") for c in text)


@given(HOSTILE, st.integers(0, 80))
def test_a_line_is_one_bounded_visible_line(text: str, limit: int) -> None:
    line = clean_line(text, limit)
    assert len(line) <= limit
    assert harmless(line)
    line.encode("utf-8")
    assert clean_line(line, limit) == line


@given(HOSTILE, st.integers(0, 400))
def test_a_text_is_bounded_and_visible(text: str, limit: int) -> None:
    cleaned = clean_text(text, limit)
    assert len(cleaned) <= limit
    assert harmless(cleaned, allowed="\n")
    cleaned.encode("utf-8")


@given(HOSTILE)
def test_nothing_ends_a_fence_but_its_own_last_line(text: str) -> None:
    first, *inside, last = fence(text).split("\n")
    assert first == last + "text"
    assert re.fullmatch("`{3,}", last)
    assert not any(last in line for line in inside)


@given(HOSTILE)
def test_a_cell_reads_back_as_one_cell_and_no_formula(text: str) -> None:
    cell = tsv_cell(text)
    assert not cell.startswith(("=", "+", "-", "@"))
    assert list(csv.reader(io.StringIO(f"a\t{cell}\tb\n"), delimiter="\t")) == [["a", cell, "b"]]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("\x1b[1;31mred\x1b[0m", "red"),
        ("\x1b]52;c;cm0gLXJmIC8=\x07copied", "copied"),
        ("\x1b]8;;http://x\x1b\\link\x1b]8;;\x1b\\", "link"),
        ("\x9b31mred", "red"),
        ("an unfinished \x1b]0;title", "an unfinished 0;title"),
        ("user\u202etxt.exe", "usertxt.exe"),
        ("pass\u200bword", "password"),
        ("smug\U000e0041gled", "smuggled"),
        ("fil\u3164\uffa0\u115f\u1160\u2800lers", "fillers"),
        ("mar\ufe0f\ufe00\u034f\u180b\u17b5ks", "marks"),
        ("a\tb\r\nc  d", "a b c d"),
        ("lone \ud800 surrogate", "lone � surrogate"),
        ("naïve ✓ 日本", "naïve ✓ 日本"),
    ],
)
def test_lines(text: str, expected: str) -> None:
    assert clean_line(text) == expected


@pytest.mark.parametrize("start", ["=cmd()", "+1", "-1", "@SUM(A1)", "＝1"])
def test_a_formula_is_quoted(start: str) -> None:
    assert tsv_cell(start) == "'" + start


def test_clip_says_that_there_was_more() -> None:
    assert clip("abcdef", 6) == "abcdef"
    assert clip("abcdef", 4) == "abc…"


def test_a_long_text_keeps_both_ends() -> None:
    cleaned = clean_text("first\n" + "x" * 5000 + "\nlast", 200)
    assert cleaned.startswith("first")
    assert cleaned.endswith("last")
    assert "characters and more left out" in cleaned


@pytest.mark.parametrize("piece", ["\x1b]", "\x9d", "\x1b[", "\x9b1;", "\x1bP" + "a", "\x90"])
def test_a_megabyte_of_unfinished_escapes_takes_no_time(piece: str) -> None:
    started = time.process_time()
    clean_line(piece * (1_000_000 // len(piece)))
    assert time.process_time() - started < 5
