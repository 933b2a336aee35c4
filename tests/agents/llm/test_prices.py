"""What tokens cost."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.agents.llm.config import ClaudeConfig
from controller.agents.llm.prices import PRICES, Price
from controller.core.errors import UserError
from controller.core.values import Usage

OPUS = PRICES["claude-opus-5-5"]
MILLION = 1_000_000

tokens = st.integers(0, 10 * MILLION)


@pytest.mark.parametrize(
    ("usage", "dollars"),
    [
        (Usage(), 0.0),
        (Usage(input_tokens=MILLION), 4.0),
        (Usage(output_tokens=MILLION), 20.0),
        (Usage(cache_read_tokens=MILLION), 0.2),
        (Usage(cache_write_tokens=MILLION), 5.0),
        (Usage(cache_write_tokens=MILLION, cache_write_hour_tokens=MILLION), 8.0),
        (Usage(cache_write_tokens=MILLION, cache_write_hour_tokens=MILLION // 2), 6.5),
        (
            Usage(input_tokens=1000, cache_write_tokens=2000, cache_read_tokens=30_000, output_tokens=500),
            0.004 + 0.01 + 0.006 + 0.01,
        ),
    ],
)
def test_each_token_has_its_price(usage: Usage, dollars: float) -> None:
    assert OPUS.cost(usage) == pytest.approx(dollars)


def test_what_has_no_price_of_its_own_costs_as_input() -> None:
    price = Price(input=2, output=10)
    usage = Usage(
        input_tokens=1, cache_write_tokens=2, cache_write_hour_tokens=1, cache_read_tokens=4, output_tokens=8
    )
    assert price.cost(usage) == pytest.approx((7 * 2 + 8 * 10) / MILLION)


def test_a_free_cache_is_free() -> None:
    assert Price(input=2, output=10, cache_read=0).cost(Usage(cache_read_tokens=MILLION)) == 0.0


@given(st.sampled_from(sorted(PRICES)), tokens, tokens, tokens, tokens, tokens)
def test_no_request_costs_more_than_the_most(model: str, a: int, b: int, hour: int, c: int, out: int) -> None:
    usage = Usage(
        input_tokens=a,
        cache_write_tokens=b,
        cache_write_hour_tokens=min(b, hour),
        cache_read_tokens=c,
        output_tokens=out,
    )
    assert PRICES[model].cost(usage) <= PRICES[model].most(a + b + c, out) * (1 + 1e-12)


def test_a_model_without_a_price_is_a_mistake_that_names_the_setting() -> None:
    with pytest.raises(UserError, match=r"price of the model mine is not known; set claude\.prices"):
        ClaudeConfig(model="mine").price()
    assert ClaudeConfig(model="mine", prices={"mine": Price(input=1, output=2)}).price().output == 2
    own = Price(input=1, output=1)
    assert ClaudeConfig(prices={"claude-opus-5-5": own}).price() == own


@pytest.mark.parametrize("address", ["ftp://x", "api.anthropic.com", "https://", "https://me:secret@host"])
def test_an_address_that_is_none_or_holds_a_secret_is_refused(address: str) -> None:
    with pytest.raises(ValueError, match="base_url"):
        ClaudeConfig(base_url=address)
