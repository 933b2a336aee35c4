"""An effort whose experiments all end for what the machine lacks: it stops, and says what is wrong."""

from __future__ import annotations

import datetime as dt
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from controller.agents.replay import Replay
from controller.app.run import require_fit
from controller.core.errors import Unfit
from controller.core.events import SessionStarted, SessionStopped
from controller.core.rules import Wish
from controller.core.state import ResearchState, fold
from controller.core.values import Cause, Provenance, Verdict
from controller.settings import Settings
from controller.store.journal import read_records
from controller.views import facts as views_json
from controller.views import tables as views
from tests.loop.effort import Effort, start, verdicts
from tests.support.efforts import PROVENANCE, START, Story
from tests.support.fakes import train_py
from tests.views.test_tables import printed

NO_USER = "crash KeyError: 'getpwuid(): uid not found: 10001'"
CRASH = (Verdict.CRASH, Cause.EXIT)


def begin(folder: Path, efforts: list[Effort], *notes: str) -> Effort:
    """The first note is the baseline's, the others are those of the proposals."""
    (folder / "proposals").mkdir()
    for number, note in enumerate(notes[1:]):
        text = train_py(2.0, note, salt=number)
        (folder / "proposals" / f"{number}.py").write_text(text, encoding="utf-8")
    agent = Replay(folder / "proposals")
    return start(efforts, folder / "home", agent, baseline=train_py(3.0, notes[0]))


def test_three_that_end_like_the_baseline_stop_the_loop(tmp_path: Path, efforts: list[Effort]) -> None:
    effort = begin(tmp_path, efforts, *[NO_USER] * 6)
    loop = effort.loop()
    with pytest.raises(Unfit, match="`make image`") as stopped, capture_logs() as logs:
        loop.run()
    assert stopped.value.exit_status == 3
    assert verdicts(loop.state) == [CRASH] * 3
    last = list(read_records(effort.home))[-1].data
    assert isinstance(last, SessionStopped) and "uid not found: 10001" in last.reason
    [told] = [line for line in logs if line["event"] == "baseline_failed"]
    assert "`make image`" in told["advice"]


def test_who_begins_it_again_gets_three_more(tmp_path: Path, efforts: list[Effort]) -> None:
    effort = begin(tmp_path, efforts, *[NO_USER] * 9)
    for number in (3, 6):
        loop = effort.loop()
        with pytest.raises(Unfit):
            loop.run()
        assert verdicts(loop.state) == [CRASH] * number
        effort.restart()


def test_one_that_is_scored_is_the_frontier_and_nothing_stops(tmp_path: Path, efforts: list[Effort]) -> None:
    effort = begin(tmp_path, efforts, NO_USER, NO_USER, "", *[NO_USER] * 4)
    loop = effort.loop(experiments=7)
    loop.run()
    assert verdicts(loop.state) == [CRASH, CRASH, (Verdict.KEEP, None), *[CRASH] * 4]


def unfit() -> ResearchState:
    story = Story()
    for _ in range(3):
        story.run("an idea", Cause.EXIT, detail="RuntimeError: No CUDA GPUs are available")
    records = story.records
    event = records[1].data
    assert isinstance(event, SessionStarted)
    usual = Settings().model_dump(mode="json")
    settings = {name: usual[name] for name in ("sandbox", "slots")}
    records[1] = records[1].model_copy(update={"data": event.model_copy(update={"settings": settings})})
    return fold(records)


LATER = START + dt.timedelta(days=1)


@pytest.mark.parametrize(
    ("change", "settings", "wish", "fit"),
    [
        ({}, {}, Wish(paused=False), False),
        ({"image": "sha256:" + "9" * 64}, {}, Wish(paused=False), True),
        ({"driver": "580.1"}, {}, Wish(paused=False), True),
        ({}, {"sandbox": {"gpu_access": "cdi"}}, Wish(paused=False), True),
        ({}, {"slots": [{"gpu": ["1"]}]}, Wish(paused=False), True),
        ({}, {}, Wish(paused=False, at=LATER), True),
        ({}, {}, Wish(paused=True, at=LATER), False),
        ({}, {}, Wish(paused=False, at=START), False),  # said before it stopped
    ],
)
def test_a_start_that_finds_everything_as_it_was_trains_nothing(
    change: dict[str, str], settings: dict[str, Any], wish: Wish, fit: bool
) -> None:
    provenance = Provenance.model_validate({**PROVENANCE.model_dump(), **change})
    config = Settings.model_validate(settings)
    if fit:
        require_fit(unfit(), provenance, config, wish)
    else:
        with pytest.raises(Unfit, match="glovebox continue"):
            require_fit(unfit(), provenance, config, wish)


def test_status_says_what_is_wrong() -> None:
    story = Story()
    story.run("baseline", Cause.EXIT, detail="RuntimeError: No CUDA GPUs are available")
    state = fold(story.records)
    told = views_json.status(state, "2026-03-01")
    assert told["baseline_failed"].startswith("exit: RuntimeError: No CUDA GPUs are available. The container")
    assert told["obstacle"] is None and views_json.status(unfit(), "2026-03-01")["obstacle"] == "gpu"
    assert "BASELINE" in printed(views.status(state, "2026-03-01"))
    story.run("an idea", 2.0)
    state = fold(story.records)
    assert views_json.status(state, "2026-03-01")["baseline_failed"] is None
    assert "BASELINE" not in printed(views.status(state, "2026-03-01"))
