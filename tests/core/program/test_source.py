"""A train.py is read as the interpreter reads it: the same files, the same program."""

from __future__ import annotations

import ast
import subprocess
import sys
import tempfile
import warnings

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from controller.core.program.policy import check, digest
from controller.core.program.source import decode, parse, plain_text
from tests.support.train_texts import FAILS, MODEL, RUNS


def dump(source: bytes | str) -> str | None:
    """The program as the compiler sees it; None if it refuses."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return ast.dump(ast.parse(source))
        except (SyntaxError, ValueError):
            return None


def read(content: bytes) -> str | None:
    try:
        return dump(decode(content))
    except SyntaxError:
        return None


def run(content: bytes) -> bytes:
    """What the interpreter says when it runs such a file."""
    with tempfile.NamedTemporaryFile(suffix=".py") as file:
        file.write(content)
        file.flush()
        return subprocess.run([sys.executable, file.name], capture_output=True, check=False).stderr


@pytest.mark.parametrize("content", RUNS.values(), ids=RUNS.keys())
def test_what_the_interpreter_runs_is_accepted_as_the_same_program(content: bytes) -> None:
    assert run(content) == b""
    text = decode(content)
    assert dump(text) == dump(content) == dump(text.encode())
    assert "\r" not in text and "\ufeff" not in text
    assert check(text, None) is None


@pytest.mark.parametrize("content", FAILS.values(), ids=FAILS.keys())
def test_what_the_interpreter_refuses_is_refused(content: bytes) -> None:
    assert dump(content) is None
    try:
        text = decode(content)
    except SyntaxError as error:
        assert error.msg
    else:
        assert content == FAILS["two marks"] or check(text, None) is not None


@pytest.mark.parametrize("name", ["mark", "return and newline", "lone returns"])
def test_a_clean_twin_is_the_same_text(name: str) -> None:
    assert decode(RUNS[name]) == MODEL


def test_a_declaration_makes_no_other_program_but_keeps_its_line() -> None:
    text = decode(RUNS["latin-1"])
    assert text == "# -*- coding: utf-8 -*-\n" + MODEL
    assert digest(text) == digest(MODEL)


def test_the_line_of_a_bad_byte_is_named() -> None:
    with pytest.raises(SyntaxError, match="line 3: the byte 0xff is not utf-8; save the file as UTF-8"):
        decode(b"A = 1\rB = 2\r\nC = '\xff'\n")


DECLARATIONS = [
    "utf-8",
    "UTF8",
    "utf_8_sig",
    "latin-1",
    "cp1252",
    "utf-7",
    "no-such",
    "utf-16",
    "punycode",
    "",
]
LINES = st.one_of(
    st.sampled_from([b"", b"\x0c", b"# x", b"A = 1", b"'''", b"\\", b"#!python", b"B = 'coding: latin-1'"]),
    st.sampled_from(DECLARATIONS).map(lambda name: f"# -*- coding: {name} -*-".encode()),
    st.sampled_from(DECLARATIONS).map(lambda name: f" \t#coding={name}".encode()),
    st.text("aä= '→\t\x0c\x85", max_size=5).map(lambda text: f"C = '{text}'".encode()),
    st.binary(max_size=4).map(lambda some: b"# " + some),
)
CONTENTS = st.builds(
    lambda mark, parts: mark + b"".join(line + end for line, end in parts),
    st.sampled_from([b"", b"\xef\xbb\xbf", b"\xff\xfe"]),
    st.lists(st.tuples(LINES, st.sampled_from([b"\n", b"\r\n", b"\r", b""])), max_size=5),
)


@settings(deadline=None)  # some are run
@given(CONTENTS)
@example(b"# coding: latin-1 \xfc\n")
@example(b"# \x80\n")
def test_any_file_is_read_as_the_compiler_reads_it(content: bytes) -> None:
    expected, found = dump(content), read(content)
    if expected is None or found == expected:
        return
    assert found is None
    assert run(content) != b"", "the compiler is laxer with bytes than a run is"


@example("\ufeff\ufeff\n#coding=l")
@given(st.text("#coding:=-utfl1\ufeff\r\n \\'A", max_size=40))
def test_it_is_done_once_and_for_all(text: str) -> None:
    plain = plain_text(text)
    assert plain_text(plain) == plain
    if dump(plain) is not None:
        assert ast.dump(parse(text)) == dump(plain)
