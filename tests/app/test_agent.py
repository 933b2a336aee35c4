"""Which agent works, by what the settings say and what there is."""

from __future__ import annotations

from pathlib import Path

import pytest

from controller import settings
from controller.app import agent as choose
from controller.core.errors import UserError

KEY = {"anthropic_api_key": "sk-test"}


@pytest.fixture(autouse=True)
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No .env, no settings file, no key in the environment."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ANTHROPIC_API_KEY", raising=False)


def test_auto_is_claude_where_a_key_is_and_the_tuner_where_none_is() -> None:
    assert choose.make_agent(settings.load(**KEY)).name == "claude"
    assert choose.make_agent(settings.load()).name == "tuner"
    assert choose.make_agent(settings.load(agent="tuner", **KEY)).name == "tuner"


def test_claude_needs_a_key_and_a_price() -> None:
    with pytest.raises(UserError, match="ANTHROPIC_API_KEY"):
        choose.make_agent(settings.load(agent="claude"))
    with pytest.raises(UserError, match=r"claude\.prices"):
        choose.make_agent(settings.load(agent="claude", claude={"model": "my-own"}, **KEY))


def test_an_understudy_is_there_on_request_only() -> None:
    asked = {"absence": {"understudy_after_seconds": 600}}
    assert choose.make_understudy(settings.load(**KEY)) is None
    understudy = choose.make_understudy(settings.load(**asked, **KEY))
    assert understudy is not None and understudy.name == "tuner"
    assert choose.make_understudy(settings.load(agent="tuner", **asked, **KEY)) is None


@pytest.mark.parametrize("absence", [{"retry_seconds": 0}, {"understudy_after_seconds": -1}, {"other": 1}])
def test_settings_of_an_absence_that_make_no_sense(absence: dict[str, float]) -> None:
    with pytest.raises(UserError, match="absence"):
        settings.load(absence=absence)
