"""Putting a reply together from its stream, whatever comes."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.agents.reply import Nonsense, Reply
from controller.core.model import Usage
from tests.messages_server import stream_events

MESSAGE: dict[str, Any] = {
    "id": "msg_1",
    "type": "message",
    "role": "assistant",
    "model": "m",
    "content": [
        {"type": "thinking", "thinking": "hm", "signature": "c2ln"},
        {"type": "text", "text": "so"},
        {"type": "tool_use", "id": "t1", "name": "submit", "input": {"a": "x" * 100, "b": [1, None]}},
    ],
    "stop_reason": "tool_use",
    "stop_sequence": None,
    "usage": {
        "input_tokens": 10,
        "cache_read_input_tokens": 20,
        "cache_creation_input_tokens": 30,
        "cache_creation": {"ephemeral_1h_input_tokens": 25, "ephemeral_5m_input_tokens": 5},
        "output_tokens": 40,
    },
}
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


def read(events: list[tuple[str, dict[str, Any]]]) -> Reply:
    reply = Reply()
    for _, data in events:
        reply.add(data)
    return reply


def taken(message: Any) -> Reply:
    reply = Reply()
    reply.take(message)
    return reply


@pytest.mark.parametrize("reply", [read(stream_events(MESSAGE)), taken(MESSAGE)], ids=["stream", "one piece"])
def test_a_whole_reply(reply: Reply) -> None:
    assert reply.complete and reply.stop_reason == "tool_use"
    assert reply.content == MESSAGE["content"]
    assert [(use.name, use.input, use.problem) for use in reply.tool_uses] == [
        ("submit", {"a": "x" * 100, "b": [1, None]}, "")
    ]
    assert reply.usage == Usage(
        input_tokens=10,
        cache_write_tokens=30,
        cache_write_hour_tokens=25,
        cache_read_tokens=20,
        output_tokens=40,
    )


@pytest.mark.parametrize("length", range(1, len(stream_events(MESSAGE))))
def test_no_beginning_of_a_reply_is_taken_for_all_of_it(length: int) -> None:
    reply = read(stream_events(MESSAGE)[:length])
    assert reply.started and not reply.complete
    assert reply.usage.input_tokens == 10


def test_what_the_model_had_not_finished_is_not_quoted() -> None:
    reply = Reply()
    reply.add({"type": "message_start", "message": {}})
    reply.add(
        {"type": "content_block_start", "index": 0, "content_block": {"type": "thinking", "thinking": ""}}
    )
    reply.add({"type": "content_block_start", "index": 1, "content_block": {"type": "text", "text": " "}})
    assert reply.content == []


EVENTS = [
    "message_start",
    "content_block_start",
    "content_block_delta",
    "content_block_stop",
    "message_delta",
]


@given(
    st.lists(
        st.tuples(st.sampled_from(EVENTS), st.dictionaries(st.text(max_size=12), json_values, max_size=4))
    )
)
def test_nonsense_is_called_so(events: list[tuple[str, dict[str, Any]]]) -> None:
    reply = Reply()
    for name, data in events:
        try:
            reply.add({**data, "type": name})
        except Nonsense:
            return
    assert not reply.complete


@pytest.mark.parametrize(
    "event",
    [
        None,
        [],
        "text",
        {},
        {"type": "message_start"},
        {"type": "message_start", "message": {"usage": 5}},
        {"type": "content_block_start", "index": "x", "content_block": {}},
        {"type": "content_block_start", "index": 0, "content_block": {"type": 3}},
        {"type": "content_block_delta", "index": 7, "delta": {"type": "text_delta", "text": "x"}},
        {"type": "message_delta", "delta": None},
    ],
)
def test_an_event_that_is_none(event: object) -> None:
    with pytest.raises(Nonsense):
        Reply().add(event)


@given(message=json_values)
def test_a_message_that_is_none(message: object) -> None:
    with pytest.raises(Nonsense):
        taken(message)


def test_events_and_blocks_of_a_later_day_are_passed_over() -> None:
    reply = Reply()
    reply.add({"type": "something_new", "x": 1})
    reply.add({"type": "content_block_start", "index": 0, "content_block": {"type": "new_block", "x": 1}})
    reply.add({"type": "content_block_delta", "index": 0, "delta": {"type": "new_delta"}})
    reply.add({"type": "content_block_stop", "index": 0})
    assert reply.content == [{"type": "new_block", "x": 1}]
