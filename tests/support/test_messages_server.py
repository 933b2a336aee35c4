"""The server of these tests, held against the SDK: what it says must be what the real one would say."""

from __future__ import annotations

from typing import Any

import anthropic
import pytest

from tests.support.messages_server import (
    Answer,
    Cut,
    MessagesServer,
    edit,
    look,
    overloaded,
    say,
    think,
    together,
)

REPLY = think("hm", together(say("so"), edit("a", "b" * 200), look(3)))
HELLO: Any = {"role": "user", "content": [{"type": "text", "text": "hello"}]}
CALL: Any = {
    "role": "assistant",
    "content": [{"type": "tool_use", "id": "t1", "name": "submit", "input": {}}],
}


def answering(*answers: Answer) -> MessagesServer:
    coming = iter(answers)
    return MessagesServer(lambda body: next(coming))


def client(server: MessagesServer) -> anthropic.Anthropic:
    return anthropic.Anthropic(api_key="k", base_url=server.url, max_retries=0)


def test_streamed_or_not_it_is_the_same_message() -> None:
    with answering(REPLY, REPLY) as server, client(server) as sdk:
        whole = sdk.messages.create(model="m", max_tokens=10, messages=[HELLO])
        with sdk.messages.stream(model="m", max_tokens=10, messages=[HELLO]) as stream:
            streamed = stream.get_final_message()
    assert [block.type for block in whole.content] == ["thinking", "text", "tool_use", "tool_use"]
    for a, b in zip(whole.content, streamed.content, strict=True):
        assert a.model_dump(exclude={"id"}) == b.model_dump(exclude={"id", "parsed_output"})
    assert whole.stop_reason == streamed.stop_reason == "tool_use"
    assert whole.usage.input_tokens == streamed.usage.input_tokens
    assert whole.usage.output_tokens == streamed.usage.output_tokens == 500


def test_its_errors_are_the_ones_the_sdk_knows() -> None:
    with answering(overloaded(), Cut(REPLY)) as server, client(server) as sdk:
        with pytest.raises(anthropic.OverloadedError):
            sdk.messages.create(model="m", max_tokens=10, messages=[HELLO])
        with pytest.raises(anthropic.BadRequestError, match="tool_use must be answered"):
            sdk.messages.create(model="m", max_tokens=10, messages=[HELLO, CALL, HELLO])
