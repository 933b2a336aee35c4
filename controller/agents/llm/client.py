"""Requests to the Messages API: each is recorded with its cost, and retried while that helps."""

from __future__ import annotations

import json
import math
import random
from dataclasses import dataclass
from typing import Any, Literal

import structlog
from pydantic import JsonValue, SecretStr

from controller.agents.llm.config import ClaudeConfig
from controller.agents.llm.failures import Away, Busy, Failure, Unusable, classify
from controller.agents.llm.reply import Reply
from controller.agents.llm.transport import Broken, Transport
from controller.core.backoff import backoff
from controller.core.errors import AgentAway, AgentError, Interrupted
from controller.core.values import Usage
from controller.ports import Clock, Request, Services

log = structlog.stdlib.get_logger(__name__)

_FIRST_WAIT, _LONGEST_WAIT = 0.5, 60.0
#: A request is given up once so many of its tries have cost money.
_MAX_CHARGED = 3
#: High on purpose: code and prose have about one token per three bytes. See also `TokenEstimator.observe`.
_TOKENS_PER_BYTE = 0.5


class TokenEstimator:
    """Estimates the tokens of a request from its size. It errs on the high side."""

    def __init__(self) -> None:
        self.tokens_per_byte = _TOKENS_PER_BYTE

    def tokens(self, body: bytes) -> int:
        return math.ceil(len(body) * self.tokens_per_byte)

    def observe(self, body: bytes, usage: Usage) -> None:
        """Raise later estimates if the API counted more than this one."""
        counted = usage.input_tokens + usage.cache_write_tokens + usage.cache_read_tokens
        if counted > self.tokens(body):
            self.tokens_per_byte = 1.05 * counted / len(body)
            log.warning("tokens_underestimated", counted=counted, tokens_per_byte=self.tokens_per_byte)


@dataclass(frozen=True)
class Topic:
    """What a request is for."""

    purpose: Literal["propose", "fix", "merge"]
    mode: str


class Api:
    """One model at one endpoint."""

    def __init__(self, config: ClaudeConfig, key: SecretStr, clock: Clock) -> None:
        """Raises UserError if the price of the model is unknown or the key is malformed."""
        self.estimator = TokenEstimator()
        self._config = config
        self._clock = clock
        self._price = config.price()
        self._random = random.Random()
        self._transport = Transport(config, key, clock)

    def ask(self, services: Services, topic: Topic, body: dict[str, Any]) -> Reply:
        """The reply to one request, retried while the API is busy, for up to `patience_seconds`.

        Raises AgentAway, AgentExhausted, Interrupted; AgentError if retrying cannot help.
        """
        give_up = self._clock.monotonic() + self._config.patience_seconds
        failures = charged = 0
        while True:
            if services.stop.is_set():
                raise Interrupted("stopped by a person")
            outcome = self._send(services, topic, body)
            if isinstance(outcome, Reply):
                return outcome
            match classify(outcome.failure, self._clock.now()):
                case Away(reason=reason, seconds=seconds):
                    raise AgentAway(reason, seconds)
                case Unusable(reason=reason):
                    raise AgentError(reason)
                case Busy(reason=reason, after=after):
                    failures += 1
                    charged += outcome.cost_usd > 0
                    wait = backoff(failures, _FIRST_WAIT, _LONGEST_WAIT) * self._random.uniform(0.5, 1)
                    pause = max(after or 0.0, wait)
                    if charged >= _MAX_CHARGED or self._clock.monotonic() + pause > give_up:
                        raise AgentAway(reason, after or 0.0)
                    if services.stop.wait(pause):
                        raise Interrupted("stopped by a person")

    def encode(self, body: dict[str, Any]) -> bytes:
        """The body as it is sent. It does not contain the key, which is sent in a header."""
        return json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode("utf-8")

    def _send(self, services: Services, topic: Topic, body: dict[str, Any]) -> Reply | _Failed:
        encoded = self.encode(body)
        reserve = self._price.most(self.estimator.tokens(encoded), self._config.max_tokens)
        parameters: dict[str, JsonValue] = {
            "max_tokens": self._config.max_tokens,
            "effort": self._config.effort,
            "temperature": self._config.temperature,
        }
        call = services.sending(Request(topic.mode, self._config.model, parameters, encoded, reserve))
        began, reply = self._clock.monotonic(), Reply()
        broken = self._transport.send(encoded, reply, services.stop)
        seconds = self._clock.monotonic() - began
        if broken is None:
            self.estimator.observe(encoded, reply.usage)
            services.answered(
                call,
                reply=reply.record(),
                stop_reason=reply.stop_reason,
                usage=reply.usage,
                seconds=seconds,
                cost_usd=self._price.cost(reply.usage),
            )
            return reply
        failed = _Failed(broken.failure, self._charge(broken, reply, reserve))
        services.failed(
            call,
            status=failed.failure.status,
            error=failed.failure.message,
            usage=reply.usage,
            seconds=seconds,
            cost_usd=failed.cost_usd,
        )
        if services.stop.is_set():
            raise Interrupted("stopped by a person")
        return failed

    def _charge(self, broken: Broken, reply: Reply, reserve: float) -> float:
        """The most a failed request can have cost. A reply that was cut off says only what its input cost."""
        if not broken.sent:
            return 0.0
        if not reply.started:
            return reserve
        return self._price.cost(reply.usage.model_copy(update={"output_tokens": self._config.max_tokens}))


@dataclass(frozen=True)
class _Failed:
    failure: Failure
    cost_usd: float
