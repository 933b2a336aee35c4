"""Putting a reply together from its stream, whatever comes."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.agents.llm.reply import MalformedReply, Reply
from controller.core.values import Usage
from tests.support.messages_server import stream_events

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


def begun() -> Reply:
    """A reply of which the first event has arrived."""
    reply = Reply()
    reply.add({"type": "message_start", "message": {"content": []}})
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
    reply = begun()
    reply.add(
        {"type": "content_block_start", "index": 0, "content_block": {"type": "thinking", "thinking": ""}}
    )
    reply.add({"type": "content_block_start", "index": 1, "content_block": {"type": "text", "text": " "}})
    assert reply.content == []


WORDS = [
    *(
        "type",
        "index",
        "message",
        "usage",
        "content",
        "content_block",
        "delta",
        "text",
        "thinking",
        "signature",
    ),
    *(
        "partial_json",
        "id",
        "name",
        "input",
        "stop_reason",
        "input_tokens",
        "output_tokens",
        "cache_creation",
    ),
    *("cache_read_input_tokens", "cache_creation_input_tokens", "ephemeral_1h_input_tokens"),
]
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
    reply = begun()
    for name, data in events:
        try:
            reply.add({**data, "type": name})
        except MalformedReply:
            return
    assert not reply.complete


# The words of the protocol in any order, so that what is nonsense looks like a reply for as long as possible.
any_text = st.text(st.characters(exclude_categories=()), max_size=5)
hostile_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.just(10**400) | st.floats() | any_text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(WORDS), inner, max_size=4),
    max_leaves=8,
)
blocks = st.fixed_dictionaries(
    {"type": st.sampled_from(["text", "thinking", "tool_use", "other"])},
    optional={name: any_text | hostile_values for name in ("text", "thinking", "id", "name", "input", "x")},
)
deltas = st.fixed_dictionaries(
    {"type": st.sampled_from(["text_delta", "thinking_delta", "signature_delta", "input_json_delta"])},
    optional={
        name: any_text | hostile_values for name in ("text", "thinking", "signature", "partial_json", "x")
    },
)
usages = st.dictionaries(st.sampled_from(WORDS), hostile_values, max_size=4)
indices = st.integers(0, 2) | hostile_values
hostile_starts = st.fixed_dictionaries(
    {
        "type": st.just("message_start"),
        "message": st.fixed_dictionaries(
            {"content": st.lists(blocks, max_size=2)}, optional={"usage": usages}
        ),
    }
)
hostile_events = st.one_of(
    hostile_starts,
    st.fixed_dictionaries(
        {"type": st.just("content_block_start"), "index": indices, "content_block": blocks}
    ),
    st.fixed_dictionaries({"type": st.just("content_block_delta"), "index": indices, "delta": deltas}),
    st.fixed_dictionaries({"type": st.just("content_block_stop"), "index": indices}),
    st.fixed_dictionaries(
        {
            "type": st.just("message_delta"),
            "delta": st.fixed_dictionaries({"stop_reason": any_text | hostile_values}),
            "usage": usages,
        }
    ),
    st.dictionaries(st.sampled_from(WORDS), hostile_values, max_size=4),
)


@given(hostile_starts, st.lists(hostile_events, max_size=8))
def test_what_is_not_called_nonsense_can_be_worked_with(
    start: dict[str, Any], events: list[dict[str, Any]]
) -> None:
    reply = Reply()
    for event in (start, *events):
        try:
            reply.add(event)
        except MalformedReply:
            break
    can_be_worked_with(reply)


@given(st.fixed_dictionaries({"content": st.lists(blocks, max_size=3), "usage": usages}))
def test_a_message_in_one_piece_that_is_not_called_nonsense_can_be_worked_with(
    message: dict[str, Any],
) -> None:
    reply = Reply()
    with contextlib.suppress(MalformedReply):
        reply.take(message)
    can_be_worked_with(reply)


def can_be_worked_with(reply: Reply) -> None:
    json.dumps(reply.content, ensure_ascii=False).encode("utf-8")
    json.loads(reply.record())
    for use in reply.tool_uses:
        f"{use.id} {use.name}".encode()
        json.dumps(use.input, ensure_ascii=False).encode("utf-8")
    assert all(0 <= count < 1 << 41 for count in reply.usage.model_dump().values())


@pytest.mark.parametrize("depth", [100, 400, 900])
def test_what_is_nested_too_deeply_is_nonsense(depth: int) -> None:
    nested: Any = "x"
    for _ in range(depth):
        nested = [nested]
    for event in (
        {"type": "message_start", "message": {"content": [], "x": nested}},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "x": nested}},
    ):
        with pytest.raises(MalformedReply):
            (begun() if event["type"] == "content_block_start" else Reply()).add(event)
    reply = begun()
    call = {"type": "tool_use", "id": "t", "name": "submit"}
    reply.add({"type": "content_block_start", "index": 0, "content_block": call})
    text = json.dumps({"description": nested})
    reply.add(
        {
            "type": "content_block_delta",
            "index": 0,
            "delta": {"type": "input_json_delta", "partial_json": text},
        }
    )
    reply.add({"type": "content_block_stop", "index": 0})
    [use] = reply.tool_uses
    assert use.input == {} and "not valid JSON" in use.problem
    json.loads(reply.record())


@pytest.mark.parametrize(
    "event",
    [
        None,
        [],
        "text",
        {},
        {"type": "message_start"},
        {"type": "message_start", "message": {}},
        {"type": "message_start", "message": {"content": [], "usage": 5}},
        {"type": "message_start", "message": {"content": [5]}},
        {"type": "content_block_start", "index": "x", "content_block": {}},
        {"type": "content_block_start", "index": 0, "content_block": {"type": 3}},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "tool_use", "id": "t"}},
        {"type": "content_block_delta", "index": 7, "delta": {"type": "text_delta", "text": "x"}},
        {"type": "message_delta", "delta": None},
    ],
)
def test_what_is_not_an_event_is_nonsense(event: object) -> None:
    for reply in (Reply(), begun()):
        with pytest.raises(MalformedReply):
            reply.add(event)


@given(message=json_values)
def test_what_is_not_a_message_is_nonsense(message: object) -> None:
    with pytest.raises(MalformedReply):
        taken(message)


def test_what_is_newer_than_the_sdk_is_kept_or_passed_over() -> None:
    reply = Reply()
    reply.add({"type": "something_new", "x": 1})
    reply.add({"type": "message_start", "message": {"content": [], "x": 1, "usage": {"service_tier": "new"}}})
    reply.add({"type": "something_new", "x": 1})
    reply.add({"type": "content_block_start", "index": 0, "content_block": {"type": "new_block", "x": 1}})
    reply.add({"type": "content_block_delta", "index": 0, "delta": {"type": "new_delta"}})
    reply.add({"type": "content_block_stop", "index": 0})
    call = {"type": "tool_use", "id": "t", "name": "look", "input": {}, "caller": {"type": "new"}, "x": [1]}
    reply.add({"type": "content_block_start", "index": 1, "content_block": call})
    reply.add({"type": "content_block_stop", "index": 1})
    reply.add({"type": "message_delta", "delta": {"stop_reason": "new"}, "usage": {"output_tokens": 7}})
    reply.add({"type": "message_stop"})
    assert reply.content == [{"type": "new_block", "x": 1}, call]
    assert reply.complete and reply.stop_reason == "new" and reply.usage.output_tokens == 7


@pytest.mark.parametrize("length", range(1, len('{"old": "a", "new": "b"}')))
def test_input_that_was_cut_off_is_never_taken_for_complete(length: int) -> None:
    reply = begun()
    call = {"type": "tool_use", "id": "t", "name": "edit", "input": {}}
    reply.add({"type": "content_block_start", "index": 0, "content_block": call})
    delta = {"type": "input_json_delta", "partial_json": '{"old": "a", "new": "b"}'[:length]}
    reply.add({"type": "content_block_delta", "index": 0, "delta": delta})
    reply.add({"type": "content_block_stop", "index": 0})
    [use] = reply.tool_uses
    assert use.input == {} and use.problem
    assert json.loads(reply.record())["input_as_received"] == {"0": delta["partial_json"]}


def test_a_count_on_the_last_event_replaces_the_first_one() -> None:
    reply = Reply()
    counts = {"input_tokens": 5, "cache_read_input_tokens": 6, "output_tokens": 1}
    reply.add({"type": "message_start", "message": {"content": [], "usage": counts}})
    assert reply.usage == Usage(input_tokens=5, cache_read_tokens=6, output_tokens=1)
    later = {"input_tokens": 50, "cache_read_input_tokens": None, "output_tokens": 9}
    reply.add({"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": later})
    assert reply.usage == Usage(input_tokens=50, cache_read_tokens=6, output_tokens=9)


def test_input_that_came_in_one_piece_and_is_not_an_object_is_recorded() -> None:
    call = {"type": "tool_use", "id": "t", "name": "edit", "input": ["old", "new"]}
    reply = taken({"content": [call], "stop_reason": "tool_use"})
    assert [(use.input, use.problem) for use in reply.tool_uses] == [({}, "its input is not a JSON object")]
    assert json.loads(reply.record())["input_as_received"] == {"0": ["old", "new"]}
