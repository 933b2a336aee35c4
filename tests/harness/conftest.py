"""A small prepared data folder, made once per test session by the real command from generated text."""

import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

HARNESS = Path(__file__).parents[2] / "harness"
if str(HARNESS) not in sys.path:
    sys.path.insert(0, str(HARNESS))

import prepare  # noqa: E402

RunPrepare = Callable[..., "subprocess.CompletedProcess[str]"]


def generated_texts(seed: int, total_chars: int) -> Iterator[str]:
    """Documents of invented words, some with accents, that follow each other with some regularity."""
    source = random.Random(seed)
    syllables = [a + b for a in "bcdfghklmnprstvz" for b in ("a", "e", "i", "o", "u", "é", "ü", "an", "er")]
    words = ["".join(source.choices(syllables, k=source.randint(1, 4))) for _ in range(1500)]
    while total_chars > 0:
        start = source.randrange(len(words))
        picks = [(start + source.randint(0, 40)) % len(words) for _ in range(source.randint(20, 600))]
        text = " ".join(words[i] for i in picks) + ".\n"
        total_chars -= len(text)
        yield text


def run_prepare_command(*arguments: object, **options: object) -> "subprocess.CompletedProcess[str]":
    """`python prepare.py ARGUMENTS` in a process of its own."""
    command = [sys.executable, str(HARNESS / "prepare.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=240, check=False, **options)  # type: ignore[call-overload, no-any-return]


def without_privilege() -> list[str]:
    """A command that runs another one so that files nobody may read are closed to it, even if we are root."""
    if os.getuid() != 0:
        return []
    closed = "-dac_override,-dac_read_search"
    return ["setpriv", f"--bounding-set={closed}", f"--inh-caps={closed}"]


@pytest.fixture(scope="session")
def run_prepare() -> RunPrepare:
    return run_prepare_command


@pytest.fixture(scope="session")
def corpus_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A jsonl corpus just large enough for the cpu scale."""
    folder = tmp_path_factory.mktemp("corpus")
    with (folder / "texts.jsonl").open("w", encoding="utf-8") as file:
        for text in generated_texts(seed=1, total_chars=4_500_000):
            file.write(json.dumps({"text": text}) + "\n")
    return folder


@pytest.fixture(scope="session")
def prepared(corpus_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder (`public`, `judge`) at the cpu scale; do not write to it."""
    out = tmp_path_factory.mktemp("home") / "data"
    done = run_prepare_command("--out", out, "--corpus", corpus_folder, "--scale", "cpu", "--workers", 2)
    assert done.returncode == 0, done.stderr
    return out


@pytest.fixture
def public_data(prepared: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """`prepare` in this process looks at the prepared data; checkpoints go to `tmp_path`.

    Its clock starts now: it would count from the start of the test session, longer ago than a run lasts.
    """
    monkeypatch.setattr(prepare, "_STARTED", time.monotonic())
    monkeypatch.setenv("GLOVEBOX_DATA", str(prepared / "public"))
    monkeypatch.setenv("GLOVEBOX_OUT", str(tmp_path))
    prepare.manifest.cache_clear()
    yield prepared / "public"
    prepare.manifest.cache_clear()


@pytest.fixture
def harness_environment(prepared: Path, tmp_path: Path) -> dict[str, str]:
    """The environment of a child process that imports the harness."""
    return os.environ | {
        "PYTHONPATH": str(HARNESS),
        "GLOVEBOX_DATA": str(prepared / "public"),
        "GLOVEBOX_OUT": str(tmp_path),
    }


@pytest.fixture
def _own_process_state(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put back afterwards what running a train.py replaces in a process."""
    monkeypatch.setitem(sys.modules, "__main__", sys.modules["__main__"])
    monkeypatch.setitem(sys.modules, "train", sys)
    monkeypatch.setattr(sys, "argv", sys.argv)
    monkeypatch.setattr(prepare, "make_dataloader", prepare.make_dataloader)
