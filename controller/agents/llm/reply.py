"""One reply of the Messages API. The SDK assembles it from the events of its stream.

The endpoint and the model may send anything, but the SDK trusts them. So this module refuses what cannot be
a message, and keeps the input of tools as text until it has all arrived.
"""

from __future__ import annotations

import json
import warnings
from dataclasses import dataclass, field
from typing import Any

# Private, but the public AsyncMessageStream cannot be used: it parses the input of tools as it arrives,
# repairs JSON that was cut off, and raises at input that is not JSON.
from anthropic.lib.streaming._messages import accumulate_event
from anthropic.types import ParsedMessage

from controller.core.values import Usage

Block = dict[str, Any]

_MAX_DEPTH = 50
"""Levels of nesting. A message has six; the input of our tools has one."""
_MAX_TOKENS = 1 << 40
"""Far more than any request has; a larger number is nonsense."""


class MalformedReply(Exception):
    """The events do not make up a message."""


@dataclass(frozen=True)
class ToolUse:
    """A call of a tool. If its input is not a JSON object, `problem` says why and `input` is empty."""

    id: str
    name: str
    input: dict[str, Any]
    problem: str = ""


@dataclass
class Reply:
    """A message as far as it has arrived."""

    complete: bool = False
    _message: ParsedMessage[None] | None = None
    _inputs: dict[int, str] = field(default_factory=dict)
    """Of the blocks whose input was streamed, by index: JSON, as far as it has arrived."""

    def add(self, event: Any) -> None:
        """Take in one event of the stream. Raises MalformedReply."""
        try:
            _require_shallow(event)
            self._add(event)
        except Exception as error:  # the SDK does not say what it raises about data that it did not expect
            raise MalformedReply(f"an event makes no sense ({type(error).__name__})") from error

    def take(self, message: Any) -> None:
        """Take in a whole message, from an endpoint that does not stream. Raises MalformedReply."""
        self.add({"type": "message_start", "message": message})
        self.add({"type": "message_stop"})

    @property
    def started(self) -> bool:
        return self._message is not None

    @property
    def stop_reason(self) -> str:
        return str(getattr(self._message, "stop_reason", None) or "")

    @property
    def usage(self) -> Usage:
        """Tokens, as far as they are known."""
        known = getattr(self._message, "usage", None)
        created = getattr(known, "cache_creation", None)
        written = _count(known, "cache_creation_input_tokens")
        return Usage(
            input_tokens=_count(known, "input_tokens"),
            cache_write_tokens=written,
            cache_write_hour_tokens=min(_count(created, "ephemeral_1h_input_tokens"), written),
            cache_read_tokens=_count(known, "cache_read_input_tokens"),
            output_tokens=_count(known, "output_tokens"),
        )

    @property
    def content(self) -> list[Block]:
        """The blocks as the next request must quote them: unchanged, without empty and unfinished ones."""
        return [block for block, _ in self._blocks() if _quotable(block)]

    @property
    def tool_uses(self) -> list[ToolUse]:
        """Calls of tools, in order."""
        return [
            ToolUse(block["id"], block["name"], block["input"], problem)
            for block, problem in self._blocks()
            if block["type"] == "tool_use"
        ]

    def record(self) -> bytes:
        """The message as JSON, for the record, and the input of tools that could not be read as JSON."""
        message, blocks = self._dumped(), self._blocks()
        broken = {
            index: self._inputs.get(index, message["content"][index].get("input"))
            for index, (_, problem) in enumerate(blocks)
            if problem
        }
        message |= {"content": [block for block, _ in blocks], "input_as_received": broken}
        return json.dumps(message, default=str).encode("ascii")

    def _add(self, event: Any) -> None:
        kind = event["type"]
        if not kind.startswith(("message_", "content_block_")):
            return  # a ping, or an event that is newer than this code
        if kind == "message_start":
            _require_usable(event["message"]["content"])
            if not isinstance(event["message"].get("usage") or {}, dict):
                raise TypeError("usage")
        elif kind == "content_block_start":
            _require_usable([event["content_block"]])
        elif kind == "content_block_delta" and event["delta"]["type"] == "input_json_delta":
            index = event["index"]
            self._inputs[index] = self._inputs.get(index, "") + event["delta"]["partial_json"]
            return
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # pydantic warns of values that are newer than the SDK
            self._message = accumulate_event(event=event, current_snapshot=self._message, json_bufs={})
        self.complete = self.complete or (kind == "message_stop" and bool(self.stop_reason))

    def _dumped(self) -> Block:
        return self._message.to_dict(warnings=False) if self._message is not None else {}

    def _blocks(self) -> list[tuple[Block, str]]:
        """All blocks so far, with the input of tools parsed, and what is wrong with it."""
        blocks: list[tuple[Block, str]] = []
        for index, block in enumerate(self._dumped().get("content", ())):
            problem = ""
            if block["type"] == "tool_use":
                block["input"], problem = _parsed(self._inputs.get(index, ""), block.get("input", {}))
            blocks.append((_without_surrogates(block), problem))
        return blocks


def _parsed(text: str, default: Any) -> tuple[dict[str, Any], str]:
    """The input of a tool from its JSON, or `default` if there is none; or {} and why it is not an object."""
    try:
        value = json.loads(text) if text.strip() else default
        _require_shallow(value)
    except (ValueError, RecursionError) as error:
        return {}, f"its input is not valid JSON ({type(error).__name__})"
    return (value, "") if isinstance(value, dict) else ({}, "its input is not a JSON object")


def _require_usable(blocks: Any) -> None:
    """Raises TypeError or KeyError for a block that cannot be quoted, or a call that cannot be answered."""
    for block in blocks:
        for name in ("type", "id", "name") if block["type"] == "tool_use" else ("type",):
            if not isinstance(block[name], str):
                raise TypeError(name)


def _require_shallow(value: Any, levels: int = _MAX_DEPTH) -> None:
    """Raises ValueError for a value nested so deeply that traversing it could exhaust the stack."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    if levels == 0 and inner:
        raise ValueError("nested too deeply")
    for item in inner:
        _require_shallow(item, levels - 1)


def _without_surrogates(value: Any) -> Any:
    """The same with surrogate pairs joined and lone surrogates replaced, which cannot be sent or stored."""
    if isinstance(value, str):
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, list):
        return [_without_surrogates(item) for item in value]
    if isinstance(value, dict):
        return {_without_surrogates(name): _without_surrogates(item) for name, item in value.items()}
    return value


def _quotable(block: Block) -> bool:
    if block["type"] == "text":
        return bool(str(block.get("text") or "").strip())
    if block["type"] == "thinking":
        return bool(block.get("signature"))
    return True


def _count(owner: Any, name: str) -> int:
    value = getattr(owner, name, None)
    return value if isinstance(value, int) and 0 < value < _MAX_TOKENS else 0
