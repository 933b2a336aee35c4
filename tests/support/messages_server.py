"""A local HTTP server that speaks the Messages API, and a researcher who follows a script behind it.

    script = ScriptedResearcher([[edit("WIDTH = 64", "WIDTH = 96"), overloaded(), submit("wider")]])
    with MessagesServer(script) as server:
        Claude(ClaudeConfig(base_url=server.url), key, clock).propose(context)

It streams or not, as it is asked; counts tokens and a prompt cache like the real one, only more simply;
refuses what the real one refuses; and fails in every way the script says. What it received is in
`server.received`.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self

Body = dict[str, Any]
Block = dict[str, Any]
Events = list[tuple[str, Body]]

BYTES_PER_TOKEN = 3
_JSON_PIECE = 40
_OPENING_BLOCKS = 3


# --- what the server may answer -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Say:
    """A reply of the model. A tool's input given as text is sent as it is, JSON or not."""

    blocks: tuple[Block, ...]
    stop_reason: str | None = None
    """None: `tool_use` if a tool is called, else `end_turn`."""
    output_tokens: int = 500


@dataclass(frozen=True)
class Fail:
    """An HTTP error."""

    status: int
    kind: str
    message: str
    headers: Mapping[str, str] = field(default_factory=dict)
    code: str | None = None


@dataclass(frozen=True)
class Cut:
    """A reply whose stream breaks off after some events; `reset` without even closing the connection well."""

    say: Say
    events: int = 5
    reset: bool = True


@dataclass(frozen=True)
class ErrorEvent:
    """A reply whose stream turns into an error after it began."""

    kind: str
    message: str


@dataclass(frozen=True)
class Raw:
    """Whatever this is, with status 200."""

    content: bytes
    content_type: str = "text/event-stream"


@dataclass(frozen=True)
class Hang:
    """Nothing, until the client or the test has enough."""


Answer = Say | Fail | Cut | ErrorEvent | Raw | Hang
Step = Answer | Callable[[Body], Answer]
"""What comes next; a function gets the request."""


# --- the words of a script ----------------------------------------------------------------------------------


def call(tool: str, given: Mapping[str, Any] | str) -> Say:
    return Say(({"type": "tool_use", "name": tool, "input": given},))


def edit(old: str, new: str) -> Say:
    return call("edit_train_py", {"old": old, "new": new})


def replace_all(text: str) -> Say:
    return call("replace_train_py", {"text": text})


def look(number: int) -> Say:
    return call("look_at_experiment", {"number": number})


def submit(description: str = "a change", idea: str = "an idea", expected_effect: float = -0.01) -> Say:
    given = {
        "description": description,
        "hypothesis": "It may help.",
        "expected_effect": expected_effect,
        "idea": idea,
    }
    return call("submit", given)


def say(text: str) -> Say:
    return Say(({"type": "text", "text": text},))


def think(thought: str, then: Say) -> Say:
    """A thinking block before the rest."""
    return replace(then, blocks=({"type": "thinking", "thinking": thought}, *then.blocks))


def together(*says: Say) -> Say:
    """Several blocks in one reply: parallel calls of tools, say."""
    return Say(tuple(block for one in says for block in one.blocks))


def refused() -> Say:
    return Say(({"type": "text", "text": "I"},), stop_reason="refusal")


def at_max_tokens(one: Say) -> Say:
    """The reply ends in the middle of its last call."""
    *blocks, last = one.blocks
    text = json.dumps(last["input"])
    return Say((*blocks, {**last, "input": text[: len(text) // 2]}), stop_reason="max_tokens")


def rate_limited(retry_after: float | None = None) -> Fail:
    headers = {} if retry_after is None else {"retry-after": f"{retry_after:g}"}
    return Fail(429, "rate_limit_error", "This request would exceed your rate limit.", headers)


def overloaded() -> Fail:
    return Fail(529, "overloaded_error", "Overloaded")


def server_error() -> Fail:
    return Fail(500, "api_error", "Internal server error")


def unauthorised() -> Fail:
    return Fail(401, "authentication_error", "invalid x-api-key")


def month_is_spent() -> Fail:
    return Fail(
        429, "rate_limit_error", "You have crossed your monthly limit.", code="enforced_spend_limit_reached"
    )


class ScriptedResearcher:
    """Plays one list of steps for each conversation; after a failure the same conversation goes on.

    `delay_seconds` is how long each reply takes to begin, or a function that says so.
    """

    def __init__(
        self, conversations: Iterable[Sequence[Step]], delay_seconds: float | Callable[[], float] = 0.0
    ) -> None:
        self._conversations = iter(conversations)
        self._steps: Iterator[Step] = iter(())
        self._replied = True
        self._delay = delay_seconds

    def __call__(self, body: Body) -> Answer:
        if self._replied and _opens(body):
            self._steps, self._replied = iter(next(self._conversations, ())), False
        step = next(self._steps, None)
        if step is None:
            return Fail(400, "invalid_request_error", "The script has no step for this request.")
        answer = step(body) if callable(step) else step
        self._replied = self._replied or isinstance(answer, Say)
        return answer

    def delay(self) -> float:
        return self._delay() if callable(self._delay) else self._delay


def _opens(body: Body) -> bool:
    """True for the first request of a conversation; a reply that is not quoted back leaves a remark."""
    return len(body["messages"]) == 1 and len(body["messages"][0]["content"]) == _OPENING_BLOCKS


def train_py_of(body: Body) -> str:
    """The frontier's train.py as the request quotes it."""
    found = re.search(r"(`{3,})python\n(.*)\n\1", body["messages"][0]["content"][1]["text"], re.DOTALL)
    assert found is not None
    return found[2]


# --- the server ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Received:
    """One request as it arrived."""

    content: bytes
    body: Body
    headers: Mapping[str, str]
    at: float
    """time.monotonic()"""


class MessagesServer:
    """Listens on a free port of 127.0.0.1 while the context is entered."""

    def __init__(self, respond: Callable[[Body], Answer], streams: bool = True) -> None:
        """`streams` False: every message comes in one piece, whatever was asked for."""
        self.streams = streams
        self.received: list[Received] = []
        self.usages: list[Body] = []
        """What the server counted, for each reply that began."""
        self.closing = threading.Event()
        self.arrived = threading.Semaphore(0)
        """Released once for each request."""
        self._respond = respond
        self._lock = threading.Lock()
        self._ids = itertools.count()
        self._cached: set[str] = set()
        self._http = _HTTPServer(("127.0.0.1", 0), _handler(self))
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.05,))

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._http.server_address[1]}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.closing.set()
        self._http.shutdown()
        self._thread.join()
        self._http.server_close()

    def answer(self, content: bytes, headers: Mapping[str, str]) -> tuple[Answer, Body]:
        """What to send, and the message it is about, if it is one."""
        body = json.loads(content)
        with self._lock:
            self.received.append(Received(content, body, headers, time.monotonic()))
            complaint = violation(body)
            answer = (
                Fail(400, "invalid_request_error", complaint)
                if complaint is not None
                else self._respond(body)
            )
            said = answer.say if isinstance(answer, Cut) else answer if isinstance(answer, Say) else None
            usage = self._count(body) if not isinstance(answer, Fail | Hang | Raw) else {}
            message = self._message(body, said or Say(()), usage)
        self.arrived.release()
        delay = getattr(self._respond, "delay", lambda: 0.0)()
        self.closing.wait(delay if not isinstance(answer, Fail) else 0.0)
        return answer, message

    def _message(self, body: Body, said: Say, usage: Body) -> Body:
        blocks = [self._block(block) for block in said.blocks]
        calls = any(block["type"] == "tool_use" for block in blocks)
        usage = {**usage, "output_tokens": said.output_tokens}
        if usage.get("input_tokens") is not None:
            self.usages.append(usage)
        return {
            "id": f"msg_{next(self._ids):06d}",
            "type": "message",
            "role": "assistant",
            "model": body["model"],
            "content": blocks,
            "stop_reason": said.stop_reason or ("tool_use" if calls else "end_turn"),
            "stop_sequence": None,
            "usage": usage,
        }

    def _block(self, block: Block) -> Block:
        if block["type"] == "tool_use":
            return {**block, "id": f"toolu_{next(self._ids):06d}"}
        return {**block, "signature": "c2lnbmVk"} if block["type"] == "thinking" else dict(block)

    def _count(self, body: Body) -> Body:
        """Tokens by the marks: what an earlier request marked is read, the rest up to the last is written."""
        total = read = marked = hourly = 0
        digest = hashlib.sha256()
        marks = []
        for segment in _segments(body):
            mark = segment.pop("cache_control", None)
            text = json.dumps(segment).encode()
            digest.update(text)
            total += max(1, len(text) // BYTES_PER_TOKEN)
            if digest.hexdigest() in self._cached:
                read = total
            if mark is not None:
                marked = total
                hourly = total if mark.get("ttl") == "1h" else hourly
                marks.append(digest.hexdigest())
        self._cached.update(marks)
        written = max(0, marked - read)
        hour = min(written, max(0, hourly - read))
        return {
            "input_tokens": total - read - written,
            "cache_read_input_tokens": read,
            "cache_creation_input_tokens": written,
            "cache_creation": {
                "ephemeral_1h_input_tokens": hour,
                "ephemeral_5m_input_tokens": written - hour,
            },
        }


def violation(body: Body) -> str | None:
    """Why the real API would answer 400 to this, as far as it concerns us."""
    waiting: set[str] = set()
    for number, message in enumerate(body["messages"]):
        if message["role"] != ("user", "assistant")[number % 2]:
            return f"messages.{number}: roles must alternate"
        if not message["content"]:
            return f"messages.{number}: content must not be empty"
        if any(block["type"] == "text" and not block["text"].strip() for block in message["content"]):
            return f"messages.{number}: text content blocks must be non-empty"
        answered = {b["tool_use_id"] for b in message["content"] if b["type"] == "tool_result"}
        if answered != waiting:
            return f"messages.{number}: every tool_use must be answered by a tool_result in the next message"
        waiting = {b["id"] for b in message["content"] if b["type"] == "tool_use"}
    marks = [segment["cache_control"] for segment in _segments(body) if "cache_control" in segment]
    if len(marks) > 4:
        return "A maximum of 4 blocks with cache_control may be provided."
    lives = [mark.get("ttl", "5m") for mark in marks]
    if lives != sorted(lives):  # "1h" < "5m"
        return "a ttl='1h' cache_control block must not come after a ttl='5m' one"
    return None


def _segments(body: Body) -> Iterator[Block]:
    """The parts of a prompt in the order in which the cache sees them."""
    yield from (dict(tool) for tool in body.get("tools", ()))
    yield from (dict(block) for block in body.get("system", ()))
    for message in body["messages"]:
        yield from (dict(block) for block in message["content"])


class _HTTPServer(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False  # a handler that hangs must not hold up the test that made it hang

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away is part of the script."""


def _handler(server: MessagesServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            content = self.rfile.read(int(self.headers["content-length"]))
            if self.path != "/v1/messages":
                self._fail(Fail(404, "not_found_error", f"no such address: {self.path}"))
                return
            answer, message = server.answer(content, {k.lower(): v for k, v in self.headers.items()})
            match answer:
                case Fail():
                    self._fail(answer)
                case Hang():
                    server.closing.wait()
                    self.close_connection = True
                case Raw():
                    self._whole(200, answer.content, answer.content_type)
                case ErrorEvent():
                    error = {"type": "error", "error": {"type": answer.kind, "message": answer.message}}
                    self._stream([*stream_events(message)[:2], ("error", error)])
                case Cut():
                    self._stream(stream_events(message)[: answer.events], complete=not answer.reset)
                case Say():
                    if server.streams and json.loads(content).get("stream"):
                        self._stream(stream_events(message))
                    else:
                        self._whole(200, json.dumps(message).encode())

        def _fail(self, fail: Fail) -> None:
            error: Body = {"type": fail.kind, "message": fail.message}
            if fail.code is not None:
                error["details"] = {"error_code": fail.code}
            content = json.dumps({"type": "error", "error": error, "request_id": "req_1"}).encode()
            self._whole(fail.status, content, headers=fail.headers)

        def _whole(
            self,
            status: int,
            content: bytes,
            content_type: str = "application/json",
            headers: Mapping[str, str] | None = None,
        ) -> None:
            self.send_response(status)
            self.send_header("content-type", content_type)
            self.send_header("content-length", str(len(content)))
            for name, value in (headers or {}).items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

        def _stream(self, events: Events, *, complete: bool = True) -> None:
            self.send_response(200)
            self.send_header("content-type", "text/event-stream; charset=utf-8")
            self.send_header("transfer-encoding", "chunked")
            self.end_headers()
            for name, data in events:
                self._chunk(f"event: {name}\ndata: {json.dumps(data)}\n\n".encode())
            if complete:
                self._chunk(b"")
            else:
                self.wfile.flush()
                self.connection.shutdown(socket.SHUT_RDWR)
                self.close_connection = True

        def _chunk(self, content: bytes) -> None:
            self.wfile.write(f"{len(content):x}\r\n".encode() + content + b"\r\n")

        def log_message(self, format: str, *args: Any) -> None:
            """Quiet."""

    return Handler


def stream_events(message: Body) -> Events:
    """A message as the events of its stream."""
    usage = message["usage"]
    begun = {**message, "content": [], "stop_reason": None, "usage": {**usage, "output_tokens": 1}}
    events: Events = [
        ("message_start", {"type": "message_start", "message": begun}),
        ("ping", {"type": "ping"}),
    ]
    for index, block in enumerate(message["content"]):
        start, deltas = _pieces(block)
        events.append(_event("content_block_start", index=index, content_block=start))
        events += [_event("content_block_delta", index=index, delta=delta) for delta in deltas]
        events.append(_event("content_block_stop", index=index))
    ending = {"stop_reason": message["stop_reason"], "stop_sequence": None}
    events.append(_event("message_delta", delta=ending, usage={"output_tokens": usage["output_tokens"]}))
    events.append(_event("message_stop"))
    return events


def _event(name: str, **data: Any) -> tuple[str, Body]:
    return name, {"type": name, **data}


def _pieces(block: Block) -> tuple[Block, list[Block]]:
    """How a block begins, and what is added to it bit by bit."""
    match block["type"]:
        case "text":
            return {"type": "text", "text": ""}, [{"type": "text_delta", "text": block["text"]}]
        case "thinking":
            begun = {"type": "thinking", "thinking": "", "signature": ""}
            thought = {"type": "thinking_delta", "thinking": block["thinking"]}
            return begun, [thought, {"type": "signature_delta", "signature": block["signature"]}]
        case _:
            given = block["input"]
            text = given if isinstance(given, str) else json.dumps(given)
            pieces = [text[i : i + _JSON_PIECE] for i in range(0, len(text), _JSON_PIECE)]
            opened = {"type": "tool_use", "id": block["id"], "name": block["name"], "input": {}}
            return opened, [{"type": "input_json_delta", "partial_json": piece} for piece in pieces]
