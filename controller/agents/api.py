"""Requests to the Messages API: each on record with its cost, and repeated while that helps."""

from __future__ import annotations

import asyncio
import json
import math
import random
from dataclasses import dataclass
from typing import Any, Literal

import anthropic
import httpx2
import structlog
from pydantic import JsonValue, SecretStr

from controller.agents.claude_config import ClaudeConfig
from controller.agents.reply import Nonsense, Reply
from controller.agents.weather import Away, Busy, Failure, Unusable, judge, retry_after
from controller.core.model import AgentAway, AgentError, Interrupted, Usage, UserError
from controller.core.untrusted import clean_line
from controller.ports import Clock, Desk, Request

log = structlog.stdlib.get_logger(__name__)

_FIRST_WAIT, _LONGEST_WAIT = 0.5, 60.0
_CONNECT_SECONDS = 10.0
_STOP_POLL_SECONDS = 0.1
#: Failures of one request that were charged, before it is given up: patience must not burn money.
_MAX_CHARGED = 3
_LAST_VERSION_WITH_TEMPERATURE = "2023-06-01"
#: More than any text of ours was ever seen to have. The API counts after the fact; see `Gauge.observe`.
_TOKENS_PER_BYTE = 0.5


class Gauge:
    """Tokens of a request, estimated from its bytes, on the high side."""

    def __init__(self) -> None:
        self.tokens_per_byte = _TOKENS_PER_BYTE

    def tokens(self, body: bytes) -> int:
        return math.ceil(len(body) * self.tokens_per_byte)

    def observe(self, body: bytes, usage: Usage) -> None:
        """Learn from what the API counted: an estimate that was too low is not made a second time."""
        counted = usage.input_tokens + usage.cache_write_tokens + usage.cache_read_tokens
        if counted > self.tokens(body):
            self.tokens_per_byte = 1.05 * counted / len(body)
            log.warning("tokens_underestimated", counted=counted, tokens_per_byte=self.tokens_per_byte)


@dataclass(frozen=True)
class Topic:
    """What a request is for."""

    purpose: Literal["propose", "fix"]
    mode: str


class Api:
    """One model at one endpoint. The key stays in here."""

    def __init__(self, config: ClaudeConfig, key: SecretStr, clock: Clock) -> None:
        """Raises UserError if the model's price is not known, or if the key can be none."""
        self.gauge = Gauge()
        self._config = config
        self._key = _checked(key)
        self._clock = clock
        self._price = config.price()
        self._random = random.Random()
        self._tls = httpx2.create_ssl_context()  # reading the certificates takes longer than all the rest

    def ask(self, desk: Desk, topic: Topic, body: dict[str, Any]) -> Reply:
        """The reply to one request, which is repeated while the API is busy and our patience lasts.

        Raises AgentAway, AgentExhausted, Interrupted; AgentError if this request will never be answered.
        """
        give_up = self._clock.monotonic() + self._config.patience_seconds
        wait, charged = _FIRST_WAIT, 0
        while True:
            if desk.stop.is_set():
                raise Interrupted("stopped by a person")
            outcome = self._send(desk, topic, body)
            if isinstance(outcome, Reply):
                return outcome
            verdict = judge(outcome.failure, self._clock.now())
            match verdict:
                case Away(reason=reason, seconds=seconds):
                    raise AgentAway(reason, seconds)
                case Unusable(reason=reason):
                    raise AgentError(reason)
                case Busy(reason=reason, after=after):
                    charged += outcome.cost_usd > 0
                    pause = max(after or 0.0, wait * self._random.uniform(0.5, 1))
                    if charged >= _MAX_CHARGED or self._clock.monotonic() + pause > give_up:
                        raise AgentAway(reason, after or 0.0)
                    if desk.stop.wait(pause):
                        raise Interrupted("stopped by a person")
                    wait = min(2 * wait, _LONGEST_WAIT)

    def encode(self, body: dict[str, Any]) -> bytes:
        """The body as it is sent. The key is in a header and not in here."""
        return json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode("utf-8")

    def _send(self, desk: Desk, topic: Topic, body: dict[str, Any]) -> Reply | _Failed:
        encoded = self.encode(body)
        reserve = self._price.most(self.gauge.tokens(encoded), self._config.max_tokens)
        parameters: dict[str, JsonValue] = {
            "max_tokens": self._config.max_tokens,
            "effort": self._config.effort,
            "temperature": self._config.temperature,
        }
        call = desk.sending(
            Request(topic.purpose, topic.mode, self._config.model, parameters, encoded, reserve)
        )
        began, reply = self._clock.monotonic(), Reply()
        failure = asyncio.run(self._receive(desk, encoded, reply))
        seconds = self._clock.monotonic() - began
        if failure is None:
            self.gauge.observe(encoded, reply.usage)
            desk.answered(
                call,
                reply=reply.record(),
                stop_reason=reply.stop_reason,
                usage=reply.usage,
                seconds=seconds,
                cost_usd=self._price.cost(reply.usage),
            )
            return reply
        failed = _Failed(failure.failure, self._charge(failure, reply, reserve))
        desk.failed(
            call,
            status=failed.failure.status,
            error=failed.failure.message,
            usage=reply.usage,
            seconds=seconds,
            cost_usd=failed.cost_usd,
        )
        if desk.stop.is_set():
            raise Interrupted("stopped by a person")
        return failed

    def _charge(self, failure: _Broken, reply: Reply, reserve: float) -> float:
        """The most a failed request can have cost; of a reply that was cut only the input is known."""
        if not failure.sent:
            return 0.0
        if not reply.started:
            return reserve
        return self._price.cost(reply.usage.model_copy(update={"output_tokens": self._config.max_tokens}))

    async def _receive(self, desk: Desk, body: bytes, reply: Reply) -> _Broken | None:
        """Fill `reply`; what went wrong, if something did. Ends soon after a person asks to stop."""
        task = asyncio.ensure_future(self._stream(body, reply))
        while not task.done():
            await asyncio.wait({task}, timeout=_STOP_POLL_SECONDS)
            if desk.stop.is_set() and not task.done():
                task.cancel()
                await asyncio.wait({task})
                return _Broken(Failure(None, "stopped by a person"), sent=True)
        return task.result()

    async def _stream(self, body: bytes, reply: Reply) -> _Broken | None:
        limit = self._config.answer_seconds
        try:
            async with asyncio.timeout(limit), self._client() as client:
                # Not messages.create, which writes the body anew: what is on record is what was sent.
                stream = await client.post(
                    "/v1/messages",
                    cast_to=object,
                    content=body,
                    options={"headers": self._headers()},
                    stream=True,
                    stream_cls=anthropic.AsyncStream[object],
                )
                async for sse in anthropic.AsyncStream.raw_events(stream.response):
                    event = sse.json()
                    if sse.event == "error":
                        return _Broken(_in_stream(event), sent=True)
                    reply.add(event)
        except anthropic.APIStatusError as error:
            return self._refused(error)
        except (TimeoutError, anthropic.APITimeoutError) as error:
            return _Broken(Failure(None, f"no complete reply within {limit:g} s"), sent=_was_sent(error))
        except anthropic.APIConnectionError as error:
            return _Broken(Failure(None, self._clean(str(error.__cause__ or error))), sent=_was_sent(error))
        except (httpx2.HTTPError, anthropic.AnthropicError, Nonsense, ValueError) as error:
            return _Broken(Failure(None, self._clean(f"the reply broke off: {error}")), sent=True)
        if not reply.complete:
            return _Broken(Failure(None, "the reply broke off"), sent=True)
        return None

    def _headers(self) -> dict[str, str]:
        headers = {"content-type": "application/json"}
        if self._config.temperature is not None:
            headers["anthropic-version"] = _LAST_VERSION_WITH_TEMPERATURE
        return headers

    def _client(self) -> anthropic.AsyncAnthropic:
        # A retry of the SDK's own would be a request that is on no record. The SDK sends the key as a bearer
        # token; endpoints that speak the API's older version look for it in x-api-key.
        key = self._key.get_secret_value()
        return anthropic.AsyncAnthropic(
            api_key=key,
            default_headers={"x-api-key": key},
            base_url=self._config.base_url,
            timeout=httpx2.Timeout(self._config.answer_seconds, connect=_CONNECT_SECONDS),
            max_retries=0,
            http_client=anthropic.DefaultAsyncHttpxClient(verify=self._tls, follow_redirects=False),
        )

    def _refused(self, error: anthropic.APIStatusError) -> _Broken:
        failure = Failure(
            status=error.status_code,
            message=self._clean(error.api_message or error.message),
            kind=str(error.type or ""),
            code=error.error_code or "",
            retry_after=retry_after(error.response.headers, self._clock.now()),
        )
        return _Broken(failure, sent=False)

    def _clean(self, text: str) -> str:
        return clean_line(text.replace(self._key.get_secret_value(), "[key]"), 300)


@dataclass(frozen=True)
class _Broken:
    failure: Failure
    sent: bool
    """True if the model may have been at work on it."""


@dataclass(frozen=True)
class _Failed:
    failure: Failure
    cost_usd: float


def _checked(key: SecretStr) -> SecretStr:
    text = key.get_secret_value().strip()
    if not text or not text.isascii() or not text.isprintable():
        raise UserError("ANTHROPIC_API_KEY holds no key, or characters that no key has.")
    return SecretStr(text)


def _in_stream(event: Any) -> Failure:
    """An error that came as an event of a stream which had begun well."""
    error = event.get("error") if isinstance(event, dict) else None
    known = error if isinstance(error, dict) else {}
    return Failure(None, clean_line(str(known.get("message", "")), 300), kind=str(known.get("type", "")))


def _was_sent(error: BaseException) -> bool:
    """False if there never was a connection to send anything over."""
    return not isinstance(error.__cause__, httpx2.ConnectError | httpx2.ConnectTimeout | httpx2.PoolTimeout)
