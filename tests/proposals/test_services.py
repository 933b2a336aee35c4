"""What an agent may rely on: the real services and their fake, held to one contract."""

from __future__ import annotations

import datetime as dt
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from controller.core.errors import AgentAway, AgentExhausted, Interrupted
from controller.core.program.policy import digest
from controller.core.state import fold
from controller.core.values import Usage
from controller.ports import Request, Services
from controller.proposals.services import Budget, JournalDesk
from controller.store.effort import Chronicle
from controller.store.journal import read_records
from tests.support.fakes import FakeServices, Silent
from tests.support.story import BASELINE, Story

MakeDesk = Callable[[float | None], Services]


class Evening:
    """A clock that stands at five minutes to midnight, UTC."""

    def now(self) -> dt.datetime:
        return dt.datetime(2026, 3, 1, 23, 55, tzinfo=dt.UTC)

    def monotonic(self) -> float:
        return 0.0


@pytest.fixture
def story(tmp_path: Path) -> Iterator[Story]:
    story = Story(tmp_path)
    story.begin()
    yield story
    story.journal.close()


def journal_desk(story: Story, budget: Budget, tried: frozenset[str] = frozenset()) -> JournalDesk:
    return JournalDesk(
        Chronicle(story.journal, story.state, Silent()),
        Evening(),
        experiment=1,
        frontier_py=BASELINE,
        tried=tried,
        suspects={},
        rehearsal=None,
        budget=budget,
        stop=threading.Event(),
    )


@pytest.fixture(params=["fake", "real"])
def make_desk(request: pytest.FixtureRequest, story: Story) -> MakeDesk:
    def fake(dollars: float | None) -> Services:
        return FakeServices(frontier_py=BASELINE, dollars=dollars)

    def real(dollars: float | None) -> Services:
        return journal_desk(story, Budget(dollars=dollars))

    return fake if request.param == "fake" else real


def asking(usd: float) -> Request:
    return Request(
        purpose="propose", mode="explore", model="m", parameters={}, body=b'{"messages": []}', reserve_usd=usd
    )


def answer(services: Services, call: int, usd: float) -> None:
    usage = Usage(input_tokens=3, output_tokens=2)
    services.answered(call, reply=b"{}", stop_reason="tool_use", usage=usage, seconds=1.0, cost_usd=usd)


def fail(services: Services, call: int, usd: float) -> None:
    services.failed(call, status=529, error="overloaded", usage=Usage(), seconds=1.0, cost_usd=usd)


def test_calls_are_numbered_in_the_order_they_are_sent(make_desk: MakeDesk) -> None:
    services = make_desk(None)
    assert [services.sending(asking(1.0)), services.sending(asking(1.0))] == [0, 1]


def test_a_call_ends_once(make_desk: MakeDesk) -> None:
    services = make_desk(None)
    answer(services, services.sending(asking(1.0)), 0.5)
    with pytest.raises(Exception, match="on its way"):
        fail(services, 0, 0.0)


def test_what_is_in_flight_counts_in_full_and_what_was_refused_not_at_all(make_desk: MakeDesk) -> None:
    services = make_desk(1.0)
    first = services.sending(asking(0.625))
    with pytest.raises(AgentExhausted):
        services.sending(asking(0.5))
    fail(services, first, 0.0)
    answer(services, services.sending(asking(0.5)), 0.25)
    services.sending(asking(0.75))
    with pytest.raises(AgentExhausted):
        services.sending(asking(0.001))


def test_an_objection_is_in_words_and_a_fair_text_has_none(make_desk: MakeDesk) -> None:
    services = make_desk(None)
    assert services.objection("def broken(:") is not None
    assert "comments" in (services.objection(BASELINE + "# a thought\n") or "")
    assert services.objection(BASELINE + "print(1)\n") is None
    assert services.rehearse(BASELINE + "print(1)\n") is None


def test_what_was_run_before_is_objected_to(story: Story) -> None:
    services = journal_desk(story, Budget(), frozenset({digest(BASELINE + "print(1)\n")}))
    assert "before" in (services.objection(BASELINE + "print(1)  # again\n") or "")


def test_the_limit_of_a_day_lasts_until_midnight(story: Story) -> None:
    """The journal's clock stands at 1 January, the desk's at 1 March."""
    day = Budget(dollars_per_day=1.0)
    services = journal_desk(story, day)
    services.sending(asking(1.0))
    services.sending(asking(1.0))
    with pytest.raises(AgentAway) as away:
        services.sending(asking(1.5))
    assert away.value.retry_seconds == 300.0


def test_both_ends_of_a_call_are_on_record(story: Story) -> None:
    services = journal_desk(story, Budget())
    answer(services, services.sending(asking(1.0)), 0.5)
    fail(services, services.sending(asking(2.0)), 2.0)
    state = fold(read_records(story.home))
    assert state == story.state
    assert (state.spending.of(1).usd, state.spending.of(1).calls, state.spending.open) == (2.5, 2, {})
    request, reply = [
        getattr(record.data, "request_sha256", None) or getattr(record.data, "reply_sha256", None)
        for record in read_records(story.home)
        if record.data.event in ("api_requested", "api_answered")
    ][:2]
    assert request is not None and story.journal.get_blob(request) == b'{"messages": []}'
    assert reply is not None and story.journal.get_blob(reply) == b"{}"


def test_nothing_is_written_from_a_closed_desk(story: Story) -> None:
    services = journal_desk(story, Budget())
    call, before = services.sending(asking(1.0)), story.state.seq
    desk.close()
    with pytest.raises(Interrupted):
        answer(services, call, 0.5)
    with pytest.raises(Interrupted):
        services.sending(asking(1.0))
    assert story.state.seq == before
