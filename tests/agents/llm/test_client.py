"""The `claude` agent when requests fail: what it waits for, what it pays, when it goes away or stops."""

from __future__ import annotations

import datetime as dt
import logging
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from pydantic import SecretStr

from controller.agents.llm.config import ClaudeConfig
from controller.agents.llm.conversation import Claude
from controller.agents.llm.prices import PRICES
from controller.core.errors import AgentAway, AgentError, AgentExhausted, Interrupted, UserError
from controller.core.values import Usage
from controller.system.clock import SystemClock
from tests.agents.llm.effort import KEY, Bench, scripted
from tests.support.fakes import FakeServices
from tests.support.messages_server import (
    Cut,
    ErrorEvent,
    Fail,
    Hang,
    Raw,
    Step,
    edit,
    month_is_spent,
    overloaded,
    rate_limited,
    server_error,
    submit,
    together,
    unauthorised,
)

GOOD = together(edit("WIDTH = 64", "WIDTH = 96"), submit())
MAX_OUTPUT_USD = 32_000 * 20 / 1e6


@pytest.fixture(autouse=True)
def nothing_left_open(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """asyncio only logs what it finds unfinished when its loop closes."""
    yield
    assert not [
        record for record in caplog.get_records("call") if record.name == "asyncio" and record.levelno > 20
    ]


def after(*failures: Step, **settings: object) -> Bench:
    """A proposal that succeeds after these failures."""
    with scripted([*failures, GOOD]) as server:
        bench = Bench.build(server, **settings)  # type: ignore[arg-type]
        assert bench.agent.propose(bench.context()).description == "a change"
    assert len(bench.bodies) == len(failures) + 1 == len(bench.services.ended)
    assert all(body == bench.bodies[0] for body in bench.bodies)
    return bench


@contextmanager
def failing(
    kind: type[AgentError], *failures: Step, **settings: object
) -> Iterator[tuple[Bench, list[AgentError]]]:
    """A proposal that fails; the list holds the error afterwards. Every call has its end on record."""
    errors: list[AgentError] = []
    with scripted([*failures]) as server:
        bench = Bench.build(server, **settings)  # type: ignore[arg-type]
        with pytest.raises(kind) as raised:
            bench.agent.propose(bench.context())
        errors.append(raised.value)
        yield bench, errors
    assert len(bench.services.ended) == len(bench.services.requests)


def test_retry_after_is_honoured() -> None:
    bench = after(rate_limited(retry_after=17), rate_limited(retry_after=0.01))
    assert bench.stop.waits[0] == 17
    assert 0.01 <= bench.stop.waits[1] <= 1
    assert [bench.services.ended[call].status for call in (0, 1)] == [429, 429]
    assert [bench.services.ended[call].cost_usd for call in (0, 1)] == [0, 0]


def test_waits_grow_without_a_hint_and_are_not_all_alike() -> None:
    bench = after(*[overloaded(), server_error()] * 3)
    for number, wait in enumerate(bench.stop.waits):
        assert 0.25 * 2**number <= wait <= 0.5 * 2**number
    assert len(set(bench.stop.waits)) == 6
    assert bench.spent == pytest.approx(bench.services.ended[6].cost_usd)


def test_retries_end_after_the_configured_time() -> None:
    with failing(AgentAway, *[overloaded()] * 50, patience_seconds=100) as (bench, errors):
        assert sum(bench.stop.waits) <= 100
        assert errors[0].args[0].startswith("The API answered 529 overloaded_error")
        assert isinstance(errors[0], AgentAway) and errors[0].retry_seconds == 0
        assert bench.spent == 0


def test_a_quota_that_resets_in_hours_is_an_absence_at_once() -> None:
    with failing(AgentAway, rate_limited(retry_after=7200)) as (bench, errors):
        assert isinstance(errors[0], AgentAway) and errors[0].retry_seconds == 7200
        assert bench.stop.waits == []


def test_a_spent_month_is_an_absence_until_the_next() -> None:
    with failing(AgentAway, month_is_spent()) as (bench, errors):
        until = bench.clock.time + dt.timedelta(seconds=errors[0].retry_seconds or 0)  # type: ignore[attr-defined]
        assert until == dt.datetime(2026, 12, 1, tzinfo=dt.UTC)


@pytest.mark.parametrize(
    ("fail", "advice"),
    [
        (unauthorised(), "check the key in ANTHROPIC_API_KEY"),
        (Fail(403, "permission_error", "no permission"), "check claude.model"),
        (Fail(404, "not_found_error", "model: x"), "check claude.model and claude.base_url"),
        (Fail(402, "billing_error", "no payment"), "billing"),
        (Fail(307, "moved", "elsewhere", {"location": "http://127.0.0.1:1/"}), "check claude.base_url"),
    ],
)
def test_what_a_person_must_mend_is_said_in_one_sentence(fail: Fail, advice: str) -> None:
    with failing(AgentAway, fail) as (bench, errors):
        assert isinstance(errors[0], AgentAway) and errors[0].retry_seconds is None
        assert advice in str(errors[0]) and "\n" not in str(errors[0])
        assert bench.stop.waits == [] and bench.spent == 0


def test_a_bad_request_is_never_sent_twice() -> None:
    too_long = Fail(400, "invalid_request_error", "prompt is too long: 210000 tokens > 200000 maximum")
    with failing(AgentError, too_long) as (bench, errors):
        assert not isinstance(errors[0], AgentAway)
        assert "prompt is too long" in str(errors[0])
        assert len(bench.bodies) == 1


@pytest.mark.parametrize(
    "cut", [Cut(GOOD, 6), Cut(GOOD, 6, reset=False), ErrorEvent("overloaded_error", "busy")]
)
def test_a_cut_reply_is_asked_again_and_paid(cut: Step) -> None:
    bench = after(cut)
    ended = bench.services.ended[0]
    assert ended.status is None
    assert ended.usage.cache_write_tokens > 0  # known from the reply's first event
    known = ended.usage.model_copy(update={"output_tokens": 32_000})
    assert ended.cost_usd == pytest.approx(PRICES["claude-opus-5-5"].cost(known))
    assert ended.cost_usd <= bench.services.requests[0].reserve_usd


@pytest.mark.parametrize(
    "raw",
    [
        Raw(b"<html>captive portal</html>", "text/html"),
        Raw(b"event: message_start\ndata: not json\n\n"),
        Raw(b'event: message_start\ndata: {"type": "message_start", "message": 5}\n\n'),
        Raw(b""),
        Raw(b"\x00\xff\xfe" * 100),
        Raw(b"{]", "application/json"),
        Raw(b"[]", "application/json"),
        Raw(b"[" * 100_000, "application/json"),
        Raw(b'{"content":' * 300 + b"[]" + b"}" * 300, "application/json"),
        Raw(b"event: message_start\ndata: " + b"[" * 100_000 + b"\n\n"),
        Raw(
            b"event: message_start\ndata: " + b'{"type":"message_start","message":' * 300 + b"1" + b"}" * 300
        ),
        Raw(
            b'event: message_start\ndata: {"type": "message_start"}\n\n'
            + b"event: ping\ndata: {}\n\n" * 50_000
        ),
        Raw(b"event: error\ndata: {}\n\n" + b"event: ping\ndata: {}\n\n" * 50_000),
        Raw(b'event: error\ndata: {"error": 5}\n\n'),
        Raw(b'event: error\ndata: {"error": {"type": [5], "message": {"a": 5}}}\n\n'),
        Raw(b"event: error\ndata: " + b"[" * 100_000 + b"\n\n"),
    ],
)
def test_nonsense_is_asked_again_and_counts_as_dear_as_it_can_be(raw: Raw) -> None:
    bench = after(raw)
    assert bench.services.ended[0].cost_usd == bench.services.requests[0].reserve_usd
    assert bench.services.ended[0].usage == Usage()


def test_replies_that_are_cut_again_and_again_do_not_burn_money() -> None:
    with failing(AgentAway, *[Cut(GOOD, 6)] * 50, patience_seconds=10_000) as (bench, _):
        assert len(bench.bodies) == 3
        assert bench.spent <= 3 * (MAX_OUTPUT_USD + 0.1)


def test_a_reply_that_takes_too_long_is_cut_by_us_and_paid() -> None:
    bench = after(Hang(), answer_seconds=1.5)
    assert bench.services.ended[0].error == "no complete reply within 1.5 s"
    assert bench.services.ended[0].cost_usd == bench.services.requests[0].reserve_usd


def test_nobody_at_the_address_costs_nothing() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = free.getsockname()
    with scripted() as server:
        bench = Bench.build(server)
    config = ClaudeConfig(base_url=f"http://{address[0]}:{address[1]}", patience_seconds=5)
    agent = Claude(config, SecretStr(KEY), bench.clock)
    with pytest.raises(AgentAway, match="cannot be reached") as raised:
        agent.propose(bench.context())
    assert raised.value.retry_seconds == 0
    assert len(bench.stop.waits) > 2
    assert bench.spent == 0 and len(bench.services.ended) == len(bench.services.requests)


def test_no_request_is_sent_without_money_for_the_worst() -> None:
    with scripted([edit("WIDTH = 64", "WIDTH = 96"), submit()]) as server:
        bench = Bench.build(server, dollars=MAX_OUTPUT_USD)
        with pytest.raises(AgentExhausted):
            bench.agent.propose(bench.context())
        assert bench.bodies == []
        bench = Bench.build(server, dollars=MAX_OUTPUT_USD + 0.1)
        assert bench.agent.propose(bench.context()).edits is not None
    assert len(bench.bodies) == 2


def test_the_reserve_is_the_most_a_request_can_cost() -> None:
    bench = after()
    assert bench.services.requests[0].reserve_usd >= bench.services.ended[0].cost_usd
    usage = bench.services.ended[0].usage
    assert usage.output_tokens == 1000 or usage.output_tokens == 500
    assert bench.services.ended[0].cost_usd == pytest.approx(PRICES["claude-opus-5-5"].cost(usage))


def test_a_stop_ends_a_wait() -> None:
    with scripted([overloaded()] * 9) as server:
        bench = Bench.build(server, stop_after=2)
        with pytest.raises(Interrupted):
            bench.agent.propose(bench.context())
    assert len(bench.bodies) == 2


def test_a_stop_ends_a_request_that_is_on_its_way() -> None:
    """With the real clock: the reply would take until the server closes."""
    with scripted([Hang()]) as server:
        bench = Bench.build(server)
        services = FakeServices(stop=threading.Event())
        agent = Claude(bench.config, SecretStr(KEY), SystemClock())
        errors: list[BaseException] = []

        def propose() -> None:
            try:
                agent.propose(bench.context(services=services))
            except BaseException as error:
                errors.append(error)

        thread = threading.Thread(target=propose)
        thread.start()
        assert server.arrived.acquire(timeout=30)
        began = time.monotonic()
        services.stop.set()
        thread.join(timeout=30)
        assert not thread.is_alive() and time.monotonic() - began < 5
    assert isinstance(errors[0], Interrupted)
    assert services.ended[0].cost_usd == services.requests[0].reserve_usd


@pytest.mark.parametrize("key", ["", " \n", "sk-\N{HORIZONTAL ELLIPSIS}", "sk-a\nb"])
def test_a_malformed_key_is_a_user_error(key: str) -> None:
    with pytest.raises(UserError, match="ANTHROPIC_API_KEY"):
        Claude(ClaudeConfig(), SecretStr(key), SystemClock())


def test_the_key_is_sent_and_told_to_nobody(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    echo = Fail(400, "invalid_request_error", f"I do not like the key {KEY}\nat all")
    with failing(AgentError, overloaded(), Cut(GOOD, 6), echo) as (bench, errors):
        headers = bench.server.received[0].headers
        assert headers["x-api-key"] == KEY and headers["authorization"] == f"Bearer {KEY}"
        said = [str(errors[0]), repr(errors[0]), repr(errors[0].__cause__), repr(errors[0].__context__)]
    records = [
        *bench.services.requests,
        *bench.services.ended.values(),
        *(r.content for r in bench.server.received),
    ]
    assert "[key]" in said[0]
    for text in [*said, *map(repr, records), caplog.text, repr(bench.agent), repr(bench.config)]:
        assert KEY not in text
