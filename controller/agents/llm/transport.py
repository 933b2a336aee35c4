"""One request over HTTP: sends the body as it is and reads the reply. The key never leaves this module."""

from __future__ import annotations

import asyncio
import json
import threading
from dataclasses import dataclass

import anthropic
import httpx2
from pydantic import SecretStr

from controller.agents.llm.config import ClaudeConfig
from controller.agents.llm.failures import Failure, retry_after
from controller.agents.llm.reply import MalformedReply, Reply
from controller.core.errors import UserError
from controller.core.untrusted import clean_line
from controller.ports import Clock

_CONNECT_SECONDS = 10.0
_STOP_POLL_SECONDS = 0.1
_LAST_VERSION_WITH_TEMPERATURE = "2023-06-01"
_NEVER_CONNECTED = (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.PoolTimeout)


@dataclass(frozen=True)
class Broken:
    """A request that got no complete reply."""

    failure: Failure
    sent: bool
    """True if the model may have started to answer."""


class Transport:
    """One endpoint and one key."""

    def __init__(self, config: ClaudeConfig, key: SecretStr, clock: Clock) -> None:
        """Raises UserError if the key, or a proxy that the environment names, is malformed."""
        self._config = config
        self._key = _checked(key)
        self._clock = clock
        self._tls = httpx2.create_ssl_context()  # slow to create, so once for all requests
        try:
            self._client()
        except (httpx2.InvalidURL, ImportError, ValueError):
            # No `from`: the error quotes the address, which may contain a password.
            raise UserError(
                "A proxy that the environment names (HTTP_PROXY, HTTPS_PROXY, ALL_PROXY) cannot be used: "
                "write it as http://host:port, and special characters of a name or password as %XX."
            ) from None

    def send(self, body: bytes, reply: Reply, stop: threading.Event) -> Broken | None:
        """Send one request and fill `reply`. Returns what went wrong, if anything. `stop` breaks it off."""
        return asyncio.run(self._until_stopped(body, reply, stop))

    async def _until_stopped(self, body: bytes, reply: Reply, stop: threading.Event) -> Broken | None:
        task = asyncio.ensure_future(self._exchange(body, reply))
        while not task.done():
            await asyncio.wait({task}, timeout=_STOP_POLL_SECONDS)
            if stop.is_set() and not task.done():
                task.cancel()
                await asyncio.wait({task})
                return Broken(Failure(None, "stopped by a person"), sent=True)
        return task.result()

    async def _exchange(self, body: bytes, reply: Reply) -> Broken | None:
        limit = self._config.answer_seconds
        try:
            async with (
                asyncio.timeout(limit),
                self._client() as client,
                await self._post(client, body) as stream,
            ):
                if stream.response.headers.get("content-type", "").startswith("application/json"):
                    reply.take(json.loads(await stream.response.aread()))  # some endpoints do not stream
                else:
                    async for event in stream:
                        reply.add(event)
        except anthropic.APIStatusError as error:
            return self._refused(error)
        except (TimeoutError, anthropic.APITimeoutError) as error:
            return Broken(Failure(None, f"no complete reply within {limit:g} s"), sent=_was_sent(error))
        except anthropic.APIConnectionError as error:
            return Broken(Failure(None, self._clean(error.__cause__ or error)), sent=_was_sent(error))
        except (
            httpx2.HTTPError,
            anthropic.AnthropicError,
            MalformedReply,
            ValueError,
            RecursionError,
        ) as error:
            return self._broken_off(error)
        return None if reply.complete else self._broken_off("it ended early")

    async def _post(self, client: anthropic.AsyncAnthropic, body: bytes) -> anthropic.AsyncStream[object]:
        """Send the request; the events of the reply, which are still to be read."""
        headers = {"content-type": "application/json"}
        if self._config.temperature is not None:
            headers["anthropic-version"] = _LAST_VERSION_WITH_TEMPERATURE
        # Not messages.stream, which would write the body itself: what is on record must be what was sent.
        return await client.post(
            "/v1/messages",
            cast_to=object,
            content=body,
            options={"headers": headers},
            stream=True,
            stream_cls=anthropic.AsyncStream[object],
        )

    def _client(self) -> anthropic.AsyncAnthropic:
        # No retries by the SDK: they would not be recorded. It sends the key as a bearer token only, but
        # endpoints that implement an older version of the API expect it in x-api-key.
        key = self._key.get_secret_value()
        return anthropic.AsyncAnthropic(
            api_key=key,
            default_headers={"x-api-key": key},
            base_url=self._config.base_url,
            timeout=httpx2.Timeout(self._config.answer_seconds, connect=_CONNECT_SECONDS),
            max_retries=0,
            http_client=anthropic.DefaultAsyncHttpxClient(verify=self._tls, follow_redirects=False),
        )

    def _refused(self, error: anthropic.APIStatusError) -> Broken:
        streamed = error.status_code < 300  # an error event, after the model began to answer
        failure = Failure(
            status=None if streamed else error.status_code,
            message=self._clean(error.api_message or error.message),
            kind=self._clean(error.type or ""),
            code=error.error_code or "",
            retry_after=retry_after(error.response.headers, self._clock.now()),
        )
        return Broken(failure, sent=streamed)

    def _broken_off(self, why: object) -> Broken:
        return Broken(Failure(None, self._clean(f"the reply broke off: {why}")), sent=True)

    def _clean(self, text: object) -> str:
        return clean_line(str(text).replace(self._key.get_secret_value(), "[key]"), 300)


def _checked(key: SecretStr) -> SecretStr:
    text = key.get_secret_value().strip()
    if not text or not text.isascii() or not text.isprintable():
        raise UserError("ANTHROPIC_API_KEY is empty or contains characters that a key cannot have.")
    return SecretStr(text)


def _was_sent(error: BaseException) -> bool:
    """False if no connection was ever established."""
    return not isinstance(error.__cause__, _NEVER_CONNECTED)
