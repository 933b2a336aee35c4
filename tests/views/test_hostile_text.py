"""Whatever an agent or a run writes, every place that shows it shows text and nothing else (A2, A3)."""

from __future__ import annotations

from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controller.core.events import AnyEvent
from tests.support.hostile import CHANNELS, TEXTS, complaints, effort, elements, unseen

COSTLY = {"the terminal": 4, "JSON": 4, "the picture": 2, "the live view": 6, "commits": 6}
"""Examples for channels that take a tenth of a second and more."""

any_text = st.text(st.characters(exclude_categories=()), max_size=40)
hostile = st.lists(st.sampled_from([*TEXTS.values()]) | any_text, max_size=4).map("".join)


@pytest.mark.parametrize("channel", CHANNELS)
def test_any_text_is_neutral(channel: str) -> None:
    @settings(max_examples=COSTLY.get(channel, 25), deadline=None)
    @given(hostile)
    def is_neutral(text: str) -> None:
        assert complaints(channel, [text]) == []

    is_neutral()


@pytest.mark.parametrize("channel", [channel for channel in CHANNELS if channel not in COSTLY])
def test_every_known_trick_is_neutral(channel: str) -> None:
    """The others see all of them in `make attacks`."""
    assert complaints(channel, TEXTS.values()) == []


def test_every_event_is_told_of() -> None:
    assert {type(record.data) for record in effort("x")[0]} == set(get_args(AnyEvent))


def test_the_checks_see_what_they_look_for() -> None:
    assert unseen("a\x1b[31m\u202e\u200b\ud800") == {"\x1b", "\u202e", "\u200b", "\ud800"}
    assert elements("a <b>c</b>") == [("p",), ("b",)]
    assert elements("| a |\n|---|\n| ![x](y) |")[-1] == ("img", "src=y", "alt=x")
