"""The settings of the `claude` agent. Imports nothing heavy: every command reads the settings."""

from __future__ import annotations

from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, field_validator

from controller.agents.llm.prices import PRICES, Price
from controller.core.errors import UserError


class ClaudeConfig(BaseModel):
    """How the language model is asked."""

    model_config = ConfigDict(extra="forbid")

    base_url: str = "https://api.anthropic.com"
    """Any endpoint that speaks the Messages API."""
    model: Annotated[str, Field(min_length=1)] = "claude-opus-5-5"
    """Its name at that endpoint."""
    effort: Literal["low", "medium", "high", "xhigh", "max"] | None = None
    """How much it thinks; none: as the model does by itself. Not every model takes this."""
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    """Null: as the model does by itself. Models since Claude Opus 4.7 take no other."""
    max_tokens: Annotated[int, Field(ge=1024)] = 32_000
    """Tokens of one reply, thinking included."""
    max_turns: Annotated[int, Field(ge=1)] = 12
    """Replies for one proposal."""
    max_context_tokens: Annotated[int, Field(ge=8192)] = 100_000
    """Tokens of one request, by an estimate that errs on the high side."""
    answer_seconds: Annotated[float, Field(gt=0)] = 600
    """The longest one reply may take."""
    patience_seconds: Annotated[float, Field(ge=0)] = 300
    """How long a request is repeated while the API is busy or out of reach, before the agent is away."""
    plateau_after: Annotated[int, Field(ge=1)] = 8
    """Experiments in a row without a keep, after which something else is asked for than the next idea."""
    prices: dict[str, Price] = Field(default_factory=dict)
    """By model, dollars per million tokens: `input`, `output`, `cache_write`, `cache_write_hour`,
    `cache_read`. What is not given costs as much as input."""

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
        """Of the model that is set. Raises UserError if nobody knows it: money could not be counted."""
        price = self.prices.get(self.model) or PRICES.get(self.model)
        if price is None:
            raise UserError(
                f"The price of the model {self.model} is not known; set claude.prices to "
                f'{{"{self.model}": {{"input": …, "output": …}}}}, in dollars per million tokens.'
            )
        return price
