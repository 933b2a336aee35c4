"""Killed at every place there is, one after the other, an effort tells one story all the same.

The containers are pretended here; `test_chaos.py` has real ones.
"""

from __future__ import annotations

import ast
import multiprocessing
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from controller import failpoints
from controller.core.errors import UserError
from controller.store.verify import verify
from tests.chaos import pretended
from tests.chaos.witness import Story, picture, problems

OF_CONTAINERS = {
    *failpoints.OF_THE_SANDBOX,
    *failpoints.OF_THE_RUNNER,
    *failpoints.OF_A_CALLER,
    "training-ended",
    "output-drained",
    "discarded",
    "exchange-made",
    "made-ready",
    "first-worker-done",
    "second-worker-done",
    "scoring-cleared",
    "rehearsal-cleared",
}
AT_THE_BEGINNING = ["base-made", "before-effort_started", "after-effort_started"]
AT_THE_END = ["before-session_stopped", "after-session_stopped"]
MENDING = ["before-journal_repaired", "after-journal_repaired"]
MOVING = ["before-experiment_moved", "after-experiment_moved"]
IN_BETWEEN = [
    name
    for name in failpoints.NAMES
    if name not in {*OF_CONTAINERS, *AT_THE_BEGINNING, *AT_THE_END, *MENDING}
]
FAR_AWAY = 200
"""Experiments; a place that is not reached in so many is dead."""

CONTROLLER = Path(failpoints.__file__).parent
PROCESSES = multiprocessing.get_context("forkserver")


def live(home: Path, place: str | None, more: int, life: int, slots: int = 1) -> int | None:
    """One life of a controller; its exit status."""
    process = PROCESSES.Process(target=pretended.live, args=(home, place, more, life, slots))
    process.start()
    process.join(300)
    return process.exitcode


def test_every_journal_event_has_a_place_before_it_and_one_behind() -> None:
    for event in failpoints.EVENTS:
        assert {f"before-{event}", f"after-{event}"} <= set(failpoints.NAMES)
    assert len(failpoints.NAMES) == len(set(failpoints.NAMES))


def test_every_place_is_somewhere_in_the_program_and_has_a_name() -> None:
    """Those of the engine, too, which only real containers come to: `make chaos` counts them."""
    patterns = [pattern for path in CONTROLLER.rglob("*.py") for pattern in _places(path)]
    found = [[name for name in failpoints.NAMES if pattern.fullmatch(name)] for pattern in patterns]
    assert all(found), "a place without a name"
    assert {name for names in found for name in names} == set(failpoints.NAMES)


def _places(path: Path) -> Iterator[re.Pattern[str]]:
    """What is given to `reach` in one file; what stands in braces may be anything."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "reach":
            text = node.args[0]
            parts = text.values if isinstance(text, ast.JoinedStr) else [text]
            yield re.compile("".join(str(p.value) if isinstance(p, ast.Constant) else ".+" for p in parts))


@pytest.mark.parametrize("text", ["nowhere", "blob-stored:0", "blob-stored:x", "blob-stored:", ":1"])
def test_what_names_no_place_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="names no place"):
        failpoints.arm(text)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_killed_at_every_place_it_tells_one_story(tmp_path: Path) -> None:
    """Every other life has a second slot."""
    home = tmp_path / "home"
    for life, place in enumerate([*AT_THE_BEGINNING, *IN_BETWEEN, *MENDING, *AT_THE_END]):
        more = 1 if place in AT_THE_END else FAR_AWAY
        if place in MENDING:
            with (home / "audit.jsonl").open("ab") as journal:
                journal.write(b'{"data":{"exper')
        slots = 1 + life % 2
        if place in MOVING:
            assert live(home, pretended.SECOND_SLOT, more, life, slots=2) == -signal.SIGKILL
            assert problems(home, at_rest=False) == [], place
            slots = 1
        before = (home / "audit.jsonl").read_bytes() if home.exists() else b""
        assert live(home, place, more, life, slots) == -signal.SIGKILL, f"{place} is never reached"
        journal_now = (home / "audit.jsonl").read_bytes()
        assert journal_now.startswith(before) or place in MENDING
        assert problems(home, at_rest=False) == [], place
    assert live(home, None, 2, life=0) == 0
    assert problems(home, at_rest=True) == [] and verify(home) == []
    left = [path for path in home.rglob(".*") if path.name != ".git" and ".git" not in path.parts]
    assert left == [], "files that were not finished"
    story = Story.of(home)
    assert len(story.told) > 20 and {told.verdict for told in story.told} >= {"keep", "discard", "crash"}
    assert {told.slot for told in story.told} == {0, 1}
    assert [told.number for told in story.closed] != sorted(told.number for told in story.closed)

    once = picture(home)
    for _ in range(2):
        assert live(home, "recovered", 0, life=0) == -signal.SIGKILL
    assert _projections(picture(home)) == _projections(once)


def _projections(found: dict[str, str]) -> dict[str, str]:
    """Without what tells of the session that began in between."""
    return {name: value for name, value in found.items() if name not in ("audit.jsonl", "snapshot.json")}
