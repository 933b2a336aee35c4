"""A .env means the same to the command and to the make targets: one reader, controller/system/dotenv.py."""

from __future__ import annotations

import io
import logging
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from dotenv import dotenv_values
from hypothesis import example, given
from hypothesis import strategies as st

from controller import settings
from controller.system import dotenv, variables
from controller.system.text_files import Unreadable
from tests.support.glovebox import PROJECT, Glovebox

SAME = {
    "plain": b"GLOVEBOX_TAG=value",
    "exported": b"export  GLOVEBOX_TAG=value",
    "spaces": b"  GLOVEBOX_TAG  =  value \t",
    "return and newline": b"A=1\r\nGLOVEBOX_TAG=value\r\n",
    "lone return": b"A=1\rGLOVEBOX_TAG=value\r",
    "comment behind": b"GLOVEBOX_TAG=value # big disk",
    "comment behind a tab": b"GLOVEBOX_TAG=value\t# 'big' disk",
    "single quotes": b"GLOVEBOX_TAG='value' # comment",
    "double quotes": b'GLOVEBOX_TAG="value"# comment',
    "mark": b"\xef\xbb\xbfGLOVEBOX_TAG=value",
    "the last one counts": b"GLOVEBOX_TAG=other\nGLOVEBOX_TAG=value",
    "small letters": b"glovebox_tag=value",
    "others' lines": b"KEY='a\nGLOVEBOX_TAG=b\nc'\nX.Y-Z=${HOME}\nURL=\"$a\\n\"\nGLOVEBOX_TAG=value",
}
WRONG = {
    "GLOVEBOX_TAG='7": "line 1: the value begins with '",
    '\nGLOVEBOX_TAG="7': 'line 2: the value begins with "',
    "GLOVEBOX_TAG='a'b": "line 1: there is text after the closing quote",
    "GLOVEBOX_TAG='a\nb'": "line 1: the value begins with '",
    "A='\n\n": "line 1: the value begins with ', which is never closed",
    "GLOVEBOX_TAG": "line 1: this is neither NAME=value nor a comment",
    "A=1\r\n\r\nexport GLOVEBOX_TAG\r\n": "line 3: this is neither",
    "GLOVEBOX_TAG: value": "line 1: this is neither",
    "'GLOVEBOX_TAG'=value": "line 1: this is neither",
    "=value": "line 1: this is neither",
    "GLOVEBOX_TAG=$HOME/x": "line 1: variables are not expanded",
    'GLOVEBOX_TAG="${HOME}/x"': "line 1: variables are not expanded",
    "GLOVEBOX_TAG=$(date)": "line 1: variables are not expanded",
    'GLOVEBOX_TAG="a\\nb"': 'line 1: in double quotes only \\" and \\\\ are allowed, not \\n',
    "GLOVEBOX_TAG='a\\\\b'": "line 1: a backslash before",
    "GLOVEBOX_TAG=value\u00a0": "line 1: the value contains the invisible character U+00A0",
    "GLOVEBOX_TAG=\u200bvalue": "line 1: the value contains the invisible character U+200B",
    "GLOVEBOX_TAG=a\x00b": "line 1: the value contains the invisible character U+0000",
}


def by_scripts(folder: Path, *names: str, **environment: str) -> dict[str, str]:
    """What the set-up scripts are told, by the machine's own Python with nothing installed."""
    told = subprocess.run(
        [sys.executable, "-S", "-B", "-X", "utf8", "-m", "controller.system.dotenv", *names],
        cwd=folder,
        env={"PYTHONPATH": str(PROJECT), "HOME": "/home/me", **environment},
        capture_output=True,
        check=True,
    )
    words = shlex.split(told.stdout.decode())
    return dict(word.split("=", 1) for word in words)


@pytest.mark.parametrize("content", SAME.values(), ids=SAME.keys())
def test_one_file_means_one_thing(content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".env").write_bytes(content)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("GLOVEBOX_TAG", raising=False)
    assert dotenv.read() == {"GLOVEBOX_TAG": "value"}
    assert settings.load().tag == "value"
    assert by_scripts(tmp_path, "GLOVEBOX_TAG", "GLOVEBOX_HOME") == {"GLOVEBOX_TAG": "value"}


@pytest.mark.parametrize(("text", "sentence"), WRONG.items(), ids=WRONG.keys())
def test_a_line_that_can_be_taken_in_two_ways_is_an_error(text: str, sentence: str, tmp_path: Path) -> None:
    (tmp_path / ".env").write_bytes(text.encode())
    with pytest.raises(Unreadable, match=re.escape(f"{tmp_path}/.env, {sentence}")):
        dotenv.read(tmp_path / ".env")


def test_command_and_scripts_refuse_with_the_same_sentence(glovebox: Glovebox) -> None:
    (glovebox.folder / ".env").write_text("\nGLOVEBOX_LIMITS__EXPERIMENTS='7\n", encoding="utf-8")
    with pytest.raises(subprocess.CalledProcessError) as refused:
        by_scripts(glovebox.folder, "GLOVEBOX_HOME")
    said = glovebox("status")
    said.refused(2, ".env, line 2: the value begins with '")
    assert (refused.value.returncode, refused.value.stderr.decode()) == (2, said.err)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (os.mkfifo, "a named pipe"),
        (os.mkdir, "a folder"),
        (lambda path: os.symlink("/dev/zero", path), "a device"),
        (lambda path: os.symlink("nowhere", path), "a broken link"),
        (lambda path: Path(path).write_bytes(b"A=1\nB=\xff\n"), "line 2: the byte 0xff is not UTF-8; save"),
        (lambda path: Path(path).write_bytes("A=1\n".encode("utf-16")), "UTF-16; save it as UTF-8"),
    ],
)
def test_what_is_no_text_file_is_refused_and_not_waited_for(
    glovebox: Glovebox, make: Callable[[Path], object], words: str
) -> None:
    make(glovebox.folder / ".env")
    glovebox("status", timeout=30).refused(2, ".env", words)


def test_a_path_is_the_same_for_both(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.delenv("GLOVEBOX_HOME", raising=False)
    for written, home in (("~/gb", "/home/me/gb"), ("' gb # x'", f"{tmp_path}/ gb # x"), ("/a/b ", "/a/b")):
        (tmp_path / ".env").write_text(f"GLOVEBOX_HOME={written}\r\n", encoding="utf-8", newline="")
        assert str(settings.load().home) == home
        assert by_scripts(tmp_path, "GLOVEBOX_HOME") == {"GLOVEBOX_HOME": home}
    assert by_scripts(tmp_path, "GLOVEBOX_HOME", GLOVEBOX_HOME="") == {"GLOVEBOX_HOME": "/a/b"}
    assert by_scripts(tmp_path, "GLOVEBOX_HOME", GLOVEBOX_HOME="~/x") == {"GLOVEBOX_HOME": "/home/me/x"}
    assert str(settings.load(home=Path("~/x")).home) == "/home/me/x"


def test_a_user_that_does_not_exist_has_no_home(glovebox: Glovebox) -> None:
    glovebox("status", GLOVEBOX_HOME="~no-such-user/x").refused(2, "home", "~no-such-user")


def test_variables_of_the_make_targets_do_not_disturb(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    lines = [
        "GLOVEBOX_WHEELS=/wheels",
        "OTHER=1",
        "GLOVEBOX_BUDGET__WALL_SECONDS=7",
        "ANTHROPIC_API_KEY=secret",
    ]
    (tmp_path / ".env").write_text("\n".join(lines), encoding="utf-8")
    config = settings.load()
    assert config.budget.wall_seconds == 7
    assert config.anthropic_api_key is not None
    assert config.anthropic_api_key.get_secret_value() == "secret"
    assert "secret" not in repr(config)
    assert by_scripts(tmp_path, "GLOVEBOX_WHEELS", "ANTHROPIC_API_KEY") == {
        "GLOVEBOX_WHEELS": "/wheels",
        "ANTHROPIC_API_KEY": "secret",
    }


def test_no_variable_of_the_make_targets_is_taken_for_a_setting() -> None:
    scripts = [PROJECT / "Makefile", PROJECT / "compose.yaml", *(PROJECT / "sandbox_image").rglob("*.*")]
    named = {
        name
        for path in scripts
        if path.suffix != ".pyc"
        for name in re.findall(r"GLOVEBOX_[A-Z_]+\b", path.read_text(encoding="utf-8"))
    }
    assert len(named) > 15
    assert variables.objection(sorted(named), settings.Settings.model_fields) is None


def read(folder: Path, text: str) -> dict[str, str] | None:
    (folder / ".env").write_bytes(text.encode("utf-8", "surrogatepass"))
    try:
        return dotenv.read(folder / ".env")
    except Unreadable:
        return None


PARTS = st.sampled_from(
    ["GLOVEBOX_A", "=", " ", "'", '"', "\\", "#", "\n", "\r\n", "$", "{", "}", "export ", "x", "ü", "~", "\t"]
)
LINES = st.tuples(
    st.sampled_from(["GLOVEBOX_A=", "export GLOVEBOX_A = ", "B=", "# ", "GLOVEBOX_A"]),
    st.lists(PARTS, max_size=8),
).map(lambda parts: parts[0] + "".join(parts[1]))
TEXTS = st.lists(LINES, max_size=3).map("\n".join) | st.text()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("dotenv")


@given(text=TEXTS)
@example(text="GLOVEBOX_A= # nothing")
@example(text="GLOVEBOX_Aexport =")
def test_what_is_accepted_others_read_the_same(folder: Path, text: str) -> None:
    """And a line that it does not accept says nothing to nobody: it is refused."""
    logging.getLogger("dotenv.main").setLevel(logging.ERROR)
    found = read(folder, text)
    if found is None:
        return
    others = dotenv_values(stream=io.StringIO(text.removeprefix("\ufeff")), interpolate=False)
    ours = {name.upper(): value for name, value in others.items() if name.upper().startswith("GLOVEBOX_")}
    empty = {name for name, value in found.items() if not value}
    assert {**ours, **dict.fromkeys(empty, "")} == found


@given(value=st.text(st.characters(exclude_categories=["C", "Z"]) | st.sampled_from(" '\"\\$#"), max_size=12))
def test_what_the_service_is_told_is_what_was_written(folder: Path, value: str) -> None:
    for written in (f"'{value}'", f'"{value}"', value):
        found = read(folder, f"GLOVEBOX_A={written}\n")
        if found:
            again = "".join(dotenv.line(name, value) for name, value in found.items())
            assert read(folder, again) == found
