"""What a request to a language model costs, in dollars. Prices are per million tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

from pydantic import Field

from controller.core.values import Usage, Value

_MILLION = 1_000_000

Dollars = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Price(Value):
    """Prices of one model, in dollars per million tokens. One that is not given equals that of input."""

    input: Dollars
    output: Dollars
    cache_write: Dollars | None = None
    """For five minutes."""
    cache_write_hour: Dollars | None = None
    cache_read: Dollars | None = None

    def cost(self, usage: Usage) -> float:
        """What the tokens of one request cost."""
        five_minutes = usage.cache_write_tokens - usage.cache_write_hour_tokens
        return (
            usage.input_tokens * self.input
            + five_minutes * _or(self.cache_write, self.input)
            + usage.cache_write_hour_tokens * _or(self.cache_write_hour, self.input)
            + usage.cache_read_tokens * _or(self.cache_read, self.input)
            + usage.output_tokens * self.output
        ) / _MILLION

    def most(self, input_tokens: int, output_tokens: int) -> float:
        """The most that so many tokens can cost, however the input is cached."""
        dearest = max(
            self.input,
            _or(self.cache_write, self.input),
            _or(self.cache_write_hour, self.input),
            _or(self.cache_read, self.input),
        )
        return (input_tokens * dearest + output_tokens * self.output) / _MILLION


def _or(price: float | None, default: float) -> float:
    return default if price is None else price


#: List prices of November 2026, from platform.claude.com (Pricing). Claude Haiku 5.5 is missing: its price
#: depends on the length of the prompt, which one row cannot express.
PRICES: Mapping[str, Price] = {
    name: Price(input=i, output=o, cache_write=five, cache_write_hour=hour, cache_read=read)
    for name, i, o, five, hour, read in (
        ("claude-fable-5-1", 10, 50, 12.5, 20, 0.25),
        ("claude-opus-5-5", 4, 20, 5, 8, 0.2),
        ("claude-opus-5", 5, 25, 6.25, 10, 0.5),
        ("claude-opus-4-8", 5, 25, 6.25, 10, 0.5),
        ("claude-sonnet-5-5", 2, 10, 2.5, 4, 0.1),
        ("claude-sonnet-5", 2, 10, 2.5, 4, 0.2),
        ("claude-haiku-4-5", 1, 5, 1.25, 2, 0.1),
    )
}
