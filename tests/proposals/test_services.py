"""What an agent may rely on: the real services and their fake, held to one contract."""

from __future__ import annotations

import datetime as dt
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from controller.core.errors import AgentAway, AgentExhausted, Interrupted
from controller.core.events import ProposalAsked, ProposalDropped
from controller.core.program.policy import digest
from controller.core.rules import Limits, Rules
from controller.core.state import fold
from controller.core.values import Usage
from controller.ports import Request, Services
from controller.proposals.services import ProposalServices
from controller.store.effort import Effort
from controller.store.journal import read_records
from tests.support.fakes import FakeServices, Silent
from tests.support.story import BASELINE, Story

MakeServices = Callable[[float | None], Services]


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
    assert story.state.frontier is not None
    story.record(ProposalAsked(proposal=0, agent="m", purpose="propose", parent=story.state.frontier.commit))
    yield story
    story.journal.close()


def real_services(story: Story, limits: Limits, tried: frozenset[str] = frozenset()) -> ProposalServices:
    return ProposalServices(
        Effort(story.journal, story.state, Silent(), Evening()),
        Evening(),
        lambda: Rules(agent="m", limits=limits),
        proposal=0,
        frontier_py=BASELINE,
        tried=tried,
        suspects={},
        rehearsal=None,
        stop=threading.Event(),
    )


@pytest.fixture(params=["fake", "real"])
def make_services(request: pytest.FixtureRequest, story: Story) -> MakeServices:
    def fake(dollars: float | None) -> Services:
        return FakeServices(frontier_py=BASELINE, dollars=dollars)

    def real(dollars: float | None) -> Services:
        return real_services(story, Limits(dollars=dollars))

    return fake if request.param == "fake" else real


def asking(usd: float) -> Request:
    return Request(mode="explore", model="m", parameters={}, body=b'{"messages": []}', reserve_usd=usd)


def answer(services: Services, call: int, usd: float) -> None:
    usage = Usage(input_tokens=3, output_tokens=2)
    services.answered(call, reply=b"{}", stop_reason="tool_use", usage=usage, seconds=1.0, cost_usd=usd)


def fail(services: Services, call: int, usd: float) -> None:
    services.failed(call, status=529, error="overloaded", usage=Usage(), seconds=1.0, cost_usd=usd)


def test_calls_are_numbered_in_the_order_they_are_sent(make_services: MakeServices) -> None:
    services = make_services(None)
    assert [services.sending(asking(1.0)), services.sending(asking(1.0))] == [0, 1]


def test_a_call_ends_once(make_services: MakeServices) -> None:
    services = make_services(None)
    answer(services, services.sending(asking(1.0)), 0.5)
    with pytest.raises(Exception, match="on its way"):
        fail(services, 0, 0.0)


def test_what_is_in_flight_counts_in_full_and_what_was_refused_not_at_all(
    make_services: MakeServices,
) -> None:
    services = make_services(1.0)
    first = services.sending(asking(0.625))
    with pytest.raises(AgentExhausted):
        services.sending(asking(0.5))
    fail(services, first, 0.0)
    answer(services, services.sending(asking(0.5)), 0.25)
    services.sending(asking(0.75))
    with pytest.raises(AgentExhausted):
        services.sending(asking(0.001))


def test_an_objection_is_in_words_and_a_fair_text_has_none(make_services: MakeServices) -> None:
    services = make_services(None)
    assert services.objection("def broken(:") is not None
    assert "comments" in (services.objection(BASELINE + "# a thought\n") or "")
    assert services.objection(BASELINE + "print(1)\n") is None
    assert services.rehearse(BASELINE + "print(1)\n") is None


def test_what_was_run_before_is_objected_to(story: Story) -> None:
    services = real_services(story, Limits(), frozenset({digest(BASELINE + "print(1)\n")}))
    assert "before" in (services.objection(BASELINE + "print(1)  # again\n") or "")


def test_the_limit_of_a_day_lasts_until_midnight(story: Story) -> None:
    """The journal's clock stands at 1 January, that of the services at 1 March."""
    day = Limits(dollars_per_day=1.0)
    services = real_services(story, day)
    services.sending(asking(1.0))
    services.sending(asking(1.0))
    with pytest.raises(AgentAway) as away:
        services.sending(asking(1.5))
    assert away.value.retry_seconds == 300.0


def test_both_ends_of_a_call_are_on_record(story: Story) -> None:
    services = real_services(story, Limits())
    answer(services, services.sending(asking(1.0)), 0.5)
    fail(services, services.sending(asking(2.0)), 2.0)
    state = fold(read_records(story.home))
    assert state == story.state
    assert (state.spending.of(0).usd, state.spending.of(0).calls, state.spending.open) == (2.5, 2, {})
    request, reply = [
        getattr(record.data, "request_sha256", None) or getattr(record.data, "reply_sha256", None)
        for record in read_records(story.home)
        if record.data.event in ("api_requested", "api_answered")
    ][:2]
    assert request is not None and story.journal.get_blob(request) == b'{"messages": []}'
    assert reply is not None and story.journal.get_blob(reply) == b"{}"


def test_nothing_is_written_for_a_proposal_that_was_given_up(story: Story) -> None:
    services = real_services(story, Limits())
    call, before = services.sending(asking(1.0)), story.state.seq
    story.record(ProposalDropped(proposal=0, reason="broken off"))
    before = story.state.seq
    with pytest.raises(Interrupted):
        answer(services, call, 0.5)
    with pytest.raises(Interrupted):
        services.sending(asking(1.0))
    assert story.state.seq == before
