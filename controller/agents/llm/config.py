"""The settings of the `claude` agent. Imports nothing slow: every command reads the settings."""

from __future__ import annotations

from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, field_validator

from controller.agents.llm.prices import PRICES, Price
from controller.core.errors import UserError


class ClaudeConfig(BaseModel):
    """How requests to the language model are made."""

    model_config = ConfigDict(extra="forbid")

    base_url: str = "https://api.anthropic.com"
    """Any endpoint that implements the Messages API."""
    model: Annotated[str, Field(min_length=1)] = "claude-opus-5-5"
    """The name of the model at that endpoint."""
    effort: Literal["low", "medium", "high", "xhigh", "max"] | None = None
    """How much the model thinks; None: its default. Not every model accepts this."""
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    """None: the default of the model, the only value that models since Claude Opus 4.7 accept."""
    max_tokens: Annotated[int, Field(ge=1024)] = 32_000
    """The most tokens of one reply, thinking included."""
    max_turns: Annotated[int, Field(ge=1)] = 12
    """The most replies for one proposal."""
    max_context_tokens: Annotated[int, Field(ge=8192)] = 100_000
    """The most tokens of one request, by an estimate that errs on the high side."""
    answer_seconds: Annotated[float, Field(gt=0)] = 600
    """The longest one reply may take."""
    patience_seconds: Annotated[float, Field(ge=0)] = 300
    """How long a request is retried while the API is busy or unreachable, before the agent counts as away."""
    plateau_after: Annotated[int, Field(ge=1)] = 8
    """After so many experiments in a row without a keep, the model is asked to change its approach."""
    prices: dict[str, Price] = Field(default_factory=dict)
    """By model, in dollars per million tokens: `input`, `output`, `cache_write`, `cache_write_hour`,
    `cache_read`. A price that is not given equals that of input."""

    @field_validator("base_url")
    @classmethod
    def _is_address(cls, value: str) -> str:
        parts = urlsplit(value)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("it must begin with http:// or https:// and name a host")
        if parts.username is not None or parts.password is not None:
            raise ValueError("it must not hold a password: settings go into the journal")
        return value

    def price(self) -> Price:
        """The price of `model`. Raises UserError if it is unknown: spending could not be counted."""
        price = self.prices.get(self.model) or PRICES.get(self.model)
        if price is None:
            raise UserError(
                f"The price of the model {self.model} is not known; set claude.prices to "
                f'{{"{self.model}": {{"input": …, "output": …}}}}, in dollars per million tokens.'
            )
        return price
