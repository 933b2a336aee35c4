"""Whatever is in a file that a person hands to a verb, the verb works or says one sentence about it."""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from controller.app.run import read_train
from controller.cli import app
from controller.core.errors import GloveboxError, UserError
from controller.core.program.source import plain_text
from tests.support.glovebox import NO_ENGINE, begin
from tests.support.train_texts import FAILS, MARK, RUNS


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The current folder, with a home in it and no engine anywhere."""
    folder = tmp_path_factory.mktemp("files")
    begin(folder / "home")
    (folder / "home" / "glovebox.toml").touch()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("DOCKER_HOST", NO_ENGINE)
        for name in [name for name in os.environ if name.startswith("GLOVEBOX_")]:
            patch.delenv(name)
        yield folder


def say(*arguments: str) -> str | None:
    """The sentence a verb ends with; None if it did what it is for. Any other exception is our mistake."""
    with contextlib.redirect_stdout(io.StringIO()):
        try:
            app(list(arguments), standalone_mode=False)
        except GloveboxError as error:
            assert error.exit_status in (2, 3)
            return str(error)
    return None


NOISE = st.one_of(
    st.sampled_from(
        [b"\r", b"\r\n", b"\x00", b"\xff", b"\xef\xbb\xbf", b"\xed\xa0\x80", b"\x0c", b"'", b'"', b"="]
    ),
    st.sampled_from(
        [b"#", b"$HOME", b"~", b"[", b"]", b"[[", b"\\", b" ", b"\xc3\xbc", b"\xc2\xa0", b"7", b"{}"]
    ),
    st.binary(max_size=3),
)
FEW = settings(max_examples=25, deadline=None)
NAMES = [
    "TAG",
    "HOME",
    "LIMITS__EXPERIMENTS",
    "NOTIFY__ON",
    "BUDGET",
    "AGENT",
    "SEED",
    "TRAIN",
    "LIMTS",
    "SANDBOX__GPU",
]
DOTENV_LINE = st.tuples(
    st.sampled_from(NAMES).map(lambda name: f"GLOVEBOX_{name}=".encode()), st.lists(NOISE, max_size=3)
).map(lambda parts: parts[0] + b"".join(parts[1]))
TOML_LINE = st.tuples(
    st.sampled_from(
        [b"", b"tag = ", b"[limits]\nhours = ", b"agent=", b"seed = ", b"budget.", b"[sandbox]\n", b"home="]
    ),
    st.lists(NOISE, max_size=3),
).map(lambda parts: parts[0] + b"".join(parts[1]))


def texts(line: st.SearchStrategy[bytes]) -> st.SearchStrategy[bytes]:
    return st.tuples(st.sampled_from([b"", MARK, b"\xff\xfe"]), st.lists(line | NOISE, max_size=3)).map(
        lambda parts: parts[0] + b"\n".join(parts[1])
    )


@FEW
@given(content=texts(DOTENV_LINE))
@example(content=b"GLOVEBOX_HOME=~nobody-here/x")
@example(content=b"GLOVEBOX_HOME='\xed\xa0\x80'")
def test_a_dotenv(folder: Path, content: bytes) -> None:
    (folder / ".env").write_bytes(content)
    try:
        said = say("status", "--home", "home")
        assert said is None or ".env" in said or "setting" in said or "home" in said, said
        say("log")
    finally:
        (folder / ".env").unlink()


@FEW
@given(content=texts(TOML_LINE))
@example(content=b"home = '/tmp/\\u0000'")
@example(content=b'tag = "\\u0000"')
def test_a_settings_file(folder: Path, content: bytes) -> None:
    path = folder / "home" / "glovebox.toml"
    path.write_bytes(content)
    try:
        said = say("status", "--home", "home")
        assert said is None or "glovebox.toml" in said or "setting" in said, said
    finally:
        path.write_bytes(b"")


TRAIN = st.tuples(st.sampled_from([*RUNS.values(), *FAILS.values(), b""]), NOISE, st.integers(0, 120)).map(
    lambda parts: parts[0][: parts[2]] + parts[1] + parts[0][parts[2] :]
)


@settings(deadline=None)
@given(content=TRAIN | st.binary(max_size=20))
@example(content=RUNS["latin-1"])
@example(content=FAILS["two marks"])
def test_a_train_py(folder: Path, content: bytes) -> None:
    """What `run` and `try` read it with, without the engine that they would ask for next."""
    (folder / "mine.py").write_bytes(content)
    try:
        text = read_train(Path("mine.py"))
    except UserError as error:
        assert str(error).startswith("mine.py cannot be run: ") and str(error).count("\n") == 0
    else:
        assert plain_text(text) == text and "\r" not in text
