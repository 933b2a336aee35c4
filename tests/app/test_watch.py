"""`watch` follows an effort that another process tells further."""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from controller.app.watch import watch
from controller.core.errors import UserError
from controller.system.clock import SystemClock
from tests.support.story import BASELINE, Story

PATIENCE = 20.0


@pytest.fixture
def story(tmp_path: Path) -> Iterator[Story]:
    story = Story(tmp_path / "home")
    story.begin()
    yield story
    story.journal.close()


def test_what_happens_elsewhere_scrolls_by(story: Story) -> None:
    story.experiment(BASELINE, 2.0)
    stream, stop = io.StringIO(), threading.Event()
    before = {path: path.read_bytes() for path in story.home.rglob("*") if path.is_file()}
    thread = threading.Thread(target=watch, args=(story.home, stream, stop, SystemClock()))
    thread.start()
    try:
        shown(stream, "2.000000")
        assert before == {path: path.read_bytes() for path in story.home.rglob("*") if path.is_file()}
        story.experiment(BASELINE.replace("4", "5"), 1.75)
        shown(stream, "1.750000")
    finally:
        stop.set()
        thread.join(PATIENCE)
    assert not thread.is_alive()


def shown(stream: io.StringIO, text: str) -> None:
    end = time.monotonic() + PATIENCE
    while text not in stream.getvalue():
        assert time.monotonic() < end, stream.getvalue()
        time.sleep(0.02)


def test_without_an_effort_it_says_so(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="No effort was started"):
        watch(tmp_path, io.StringIO(), threading.Event(), SystemClock())
