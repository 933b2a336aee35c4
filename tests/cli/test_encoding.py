"""Every text is shown and kept whatever the locale; why that is so: docs/decisions/encoding.md."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from controller.core.containers.names import ContainerNames
from tests.support.glovebox import PROJECT, Glovebox
from tests.support.story import BASELINE, tell
from tests.support.two_slots import HomeOfTwo

WORDS = "wider → wärmer 🧪 \udcfc\ud83d ﷺ"
ASCII = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
STREAMS = {
    "ascii": {"PYTHONIOENCODING": "ascii"},
    "strict latin-1, no UTF-8 mode": {**ASCII, "PYTHONIOENCODING": "latin-1:strict"},
    "UTF-16": {"PYTHONIOENCODING": "utf-16-le"},
    "a locale that may be there": {"LC_ALL": "de_DE.ISO-8859-1"},
}
VERBS = [["status"], ["log"], ["show", "5", "--audit"], ["report"], ["verify"], ["run", "--tag", "größer→"]]


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Glovebox:
    """A home with texts of every alphabet in it, in a folder whose name is no ASCII either."""
    folder = tmp_path_factory.mktemp("größe→🧪")
    tell(folder / "home")
    story = HomeOfTwo(folder / "home")
    story.experiment(BASELINE + f"A = 5  # {WORDS[:10]}\n", 1.25, WORDS)
    # An interpreter in an EUC-JP locale finds no module from a current folder whose name it cannot decode.
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    return Glovebox(folder / "home", elsewhere, {"DOCKER_HOST": "unix:///nowhere"})


def run(command: Glovebox, *arguments: str, **environment: str) -> tuple[int, bytes, bytes]:
    """In exactly this locale."""
    env = {name: value for name, value in command.env().items() if name != "LANG"} | environment
    done = subprocess.run(
        command.command(*arguments), env=env, cwd=command.folder, capture_output=True, check=False
    )
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("verb", VERBS, ids=lambda verb: verb[0])
def test_every_verb_says_what_it_has_to_say(told: Glovebox, verb: list[str]) -> None:
    status, out, err = run(told, *verb, **ASCII)
    assert b"Traceback" not in out + err
    assert (status, err == b"") == ((2, False) if verb[0] == "run" else (0, True)), err


@pytest.mark.parametrize("environment", STREAMS.values(), ids=STREAMS.keys())
def test_every_stream_takes_every_text(told: Glovebox, environment: dict[str, str]) -> None:
    status, out, err = run(told, "show", "5", "--audit", **environment)
    assert (status, err) == (0, b"")
    assert "wider" in out.decode(environment.get("PYTHONIOENCODING", "latin-1").split(":")[0])


ANY_LOCALE = st.fixed_dictionaries(
    {"PYTHONUTF8": st.sampled_from(["", "0", "1"])},
    optional={
        "LC_ALL": st.sampled_from(["C", "POSIX", "C.UTF-8", "de_DE.ISO-8859-1", "ja_JP.EUC-JP", "x", ""]),
        "LC_CTYPE": st.sampled_from(["C", "de_DE.ISO-8859-1", "UTF-8"]),
        "LANGUAGE": st.sampled_from(["de", "ja"]),
        "PYTHONCOERCECLOCALE": st.sampled_from(["0", "1", "warn"]),
        "PYTHONIOENCODING": st.sampled_from(
            ["ascii", "latin-1", "cp437:strict", "utf-8:ignore", ":strict", "utf-7"]
        ),
    },
)


@settings(max_examples=5, deadline=None)
@given(environment=ANY_LOCALE, verb=st.sampled_from([*VERBS, ["--help"], ["show", "5", "--json"]]))
@example(environment={"PYTHONUTF8": "", "LC_ALL": "ja_JP.EUC-JP"}, verb=["run", "--tag", "größer→🧪"])
def test_any_locale(told: Glovebox, environment: dict[str, str], verb: list[str]) -> None:
    status, out, err = run(told, *verb, **environment)
    assert status == (2 if verb[0] == "run" else 0), (environment, err)
    assert b"Traceback" not in out + err


@pytest.mark.parametrize(
    ("environment", "shown"),
    [
        ({"PYTHONIOENCODING": "ascii"}, b"wider \\u2192 w\\xe4rmer \\U0001f9ea"),
        ({**ASCII, "PYTHONIOENCODING": "latin-1"}, b"wider \\u2192 w\xe4rmer \\U0001f9ea"),
        (ASCII, "wider → wärmer 🧪".encode()),
        ({"LC_ALL": "C.UTF-8"}, "wider → wärmer 🧪".encode()),
    ],
)
def test_what_a_stream_has_no_letter_for_is_escaped(
    told: Glovebox, environment: dict[str, str], shown: bytes
) -> None:
    _, out, _ = run(told, "log", **environment)
    assert shown in out


def test_json_and_files_are_the_same_everywhere(told: Glovebox) -> None:
    seen = set()
    for environment in ({"LC_ALL": "C.UTF-8"}, ASCII):
        shown = run(told, "show", "5", "--json", **environment)
        run(told, "report", **environment)
        seen.add((*shown, (told.home / "report" / "report.md").read_bytes()))
    ((status, out, err, account),) = seen
    assert (status, err) == (0, b"")
    assert json.loads(out)["description"].startswith("wider → wärmer 🧪 ")
    assert "wider → wärmer".encode() in account


def test_a_home_is_the_same_home_in_every_locale(told: Glovebox) -> None:
    """Its containers are labelled with a hash of its name."""
    show = "from controller.__main__ import require_utf8; require_utf8()\n"
    show += "import sys, pathlib; from controller.core.containers.names import ContainerNames\n"
    show += "print(ContainerNames(pathlib.Path(sys.argv[1]), '1').home_id)"
    for environment in (ASCII, {"LC_ALL": "C.UTF-8"}, {"LC_ALL": "de_DE.ISO-8859-1"}):
        told_of = subprocess.run(
            [sys.executable, "-c", show, str(told.home)],
            env={**told.env(), **environment},
            capture_output=True,
            check=True,
            cwd=PROJECT,
        )
        assert told_of.stdout.decode() == f"{ContainerNames(told.home, '1').home_id}\n"
