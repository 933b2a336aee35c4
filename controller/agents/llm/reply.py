"""One reply of the Messages API, put together from the events of its stream, or come in one piece. Pure.

What arrives is kept as it came, because the API wants its own blocks back unchanged in the next request.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from controller.core.values import Usage

Block = dict[str, Any]

_LEVELS = 50
"""Of nesting. A message has six; a tool's input has one."""
_MOST_TOKENS = 1 << 40
"""Far more than any request has; a number beyond it says nothing about tokens."""


class Nonsense(Exception):
    """The events do not make up a message."""


@dataclass(frozen=True)
class ToolUse:
    """A call of a tool. `problem` says why its input is no JSON object, if it is not."""

    id: str
    name: str
    input: dict[str, Any]
    problem: str = ""


@dataclass
class Reply:
    """A message as far as it has come."""

    message: Block = field(default_factory=dict)
    blocks: dict[int, Block] = field(default_factory=dict)
    stop_reason: str = ""
    complete: bool = False
    _json: dict[int, str] = field(default_factory=dict)
    _usage: dict[str, Any] = field(default_factory=dict)

    def add(self, event: Any) -> None:
        """Take in one event of the stream. Raises Nonsense."""
        try:
            _require_shallow(event)
            self._add(event)
        except (KeyError, TypeError, AttributeError, ValueError, ArithmeticError) as error:
            raise Nonsense(f"{type(error).__name__} in a {_kind(event)} event") from error

    def take(self, message: Any) -> None:
        """Take in a whole message, from an endpoint that does not stream. Raises Nonsense."""
        try:
            _require_shallow(message)
            self._add({"type": "message_start", "message": {**message, "content": []}})
            for index, block in enumerate(message["content"]):
                self._start(index, dict(block))
                if index in self._json:
                    self._json[index] = json.dumps(block["input"])
                self._close(index)
            self._add({"type": "message_delta", "delta": message})
            self._add({"type": "message_stop"})
        except (KeyError, TypeError, AttributeError, ValueError, ArithmeticError) as error:
            raise Nonsense(f"{type(error).__name__} in a message") from error

    @property
    def started(self) -> bool:
        return bool(self.message)

    @property
    def usage(self) -> Usage:
        """Tokens as far as they are known."""
        created = self._usage.get("cache_creation")
        hour = created.get("ephemeral_1h_input_tokens") if isinstance(created, dict) else None
        written = _count(self._usage.get("cache_creation_input_tokens"))
        return Usage(
            input_tokens=_count(self._usage.get("input_tokens")),
            cache_write_tokens=written,
            cache_write_hour_tokens=min(_count(hour), written),
            cache_read_tokens=_count(self._usage.get("cache_read_input_tokens")),
            output_tokens=_count(self._usage.get("output_tokens")),
        )

    @property
    def content(self) -> list[Block]:
        """The blocks as the next request must quote them: none that is empty, none that was cut off."""
        return [_sound(block) for _, block in sorted(self.blocks.items()) if _quotable(block)]

    @property
    def tool_uses(self) -> list[ToolUse]:
        """Calls of tools in the order they were made."""
        return [
            ToolUse(block["id"], block["name"], block["input"], self._problem(index))
            for index, block in sorted(self.blocks.items())
            if block["type"] == "tool_use"
        ]

    def record(self) -> bytes:
        """The message as JSON, for the record."""
        whole = {**self.message, "content": [block for _, block in sorted(self.blocks.items())]}
        broken = {str(i): text for i, text in self._json.items() if self._problem(i)}
        whole |= {"stop_reason": self.stop_reason, "usage": self._usage}
        return json.dumps(whole | ({"input_as_received": broken} if broken else {})).encode("ascii")

    def _add(self, event: Any) -> None:
        match event["type"]:
            case "message_start":
                self.message = dict(event["message"])
                self._usage.update(self.message.get("usage") or {})
            case "content_block_start":
                self._start(int(event["index"]), dict(event["content_block"]))
            case "content_block_delta":
                self._extend(int(event["index"]), event["delta"])
            case "content_block_stop":
                self._close(int(event["index"]))
            case "message_delta":
                self.stop_reason = str(event["delta"].get("stop_reason") or self.stop_reason)
                known = (event.get("usage") or {}).items()
                self._usage.update({name: value for name, value in known if value is not None})
            case "message_stop":
                self.complete = self.started and bool(self.stop_reason)

    def _start(self, index: int, block: Block) -> None:
        if not isinstance(block["type"], str):
            raise TypeError
        if block["type"] == "tool_use":
            names = _sound({"id": str(block["id"]), "name": str(block["name"])})
            block = {"type": "tool_use", **names, "input": {}}
            self._json[index] = ""
        self.blocks[index] = block

    def _extend(self, index: int, delta: Block) -> None:
        block = self.blocks[index]
        match delta["type"]:
            case "text_delta":
                block["text"] = block["text"] + delta["text"]
            case "thinking_delta":
                block["thinking"] = block["thinking"] + delta["thinking"]
            case "signature_delta":
                block["signature"] = delta["signature"]
            case "input_json_delta":
                self._json[index] += delta["partial_json"]

    def _close(self, index: int) -> None:
        block = self.blocks[index]
        if block["type"] == "tool_use":
            parsed = _parse(self._json[index])
            block["input"] = parsed if isinstance(parsed, dict) else {}
        else:
            self.blocks[index] = _sound(block)

    def _problem(self, index: int) -> str:
        text = self._json.get(index, "")
        if not text.strip():
            return ""  # a tool without arguments
        try:
            parsed = json.loads(text)
            _require_shallow(parsed)
        except (ValueError, RecursionError) as error:
            return f"its input is no JSON: {type(error).__name__}"
        return "" if isinstance(parsed, dict) else "its input is no JSON object"


def _parse(text: str) -> Any:
    try:
        parsed = json.loads(text)
        _require_shallow(parsed)
        return _sound(parsed)
    except (ValueError, RecursionError):
        return None


def _require_shallow(value: Any, levels: int = _LEVELS) -> None:
    """Raises ValueError for what is nested so deeply that walking through it could exhaust the stack."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    if levels == 0 and inner:
        raise ValueError("nested too deeply")
    for item in inner:
        _require_shallow(item, levels - 1)


def _sound(value: Any) -> Any:
    """The same with surrogate pairs joined and lone halves replaced: those can be neither sent nor stored."""
    if isinstance(value, str):
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, list):
        return [_sound(item) for item in value]
    if isinstance(value, dict):
        return {_sound(name): _sound(item) for name, item in value.items()}
    return value


def _quotable(block: Block) -> bool:
    if block["type"] == "text":
        return bool(str(block.get("text") or "").strip())
    if block["type"] == "thinking":
        return bool(block.get("signature"))
    return True


def _count(value: Any) -> int:
    return value if isinstance(value, int) and 0 < value < _MOST_TOKENS else 0


def _kind(event: Any) -> str:
    return str(event.get("type"))[:40] if isinstance(event, dict) else type(event).__name__
