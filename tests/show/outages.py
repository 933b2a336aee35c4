"""Did everything happen that a show is to show?"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator

from controller.core.events import (
    AgentAbsent,
    AgentFailed,
    AgentReturned,
    ApiAnswered,
    ApiFailed,
    ApiRequested,
    ProposalDropped,
    ProposalMade,
    ProposalRehearsed,
    SessionStarted,
)
from controller.core.values import Verdict
from tests.show.account import Account
from tests.show.live import KEY, NEXT_KEY
from tests.show.script import QUOTA_HOURS, Script
from tests.support.messages_server import MessagesServer


def missing(account: Account, script: Script, server: MessagesServer, *, rehearsed: bool) -> Iterator[str]:
    """What did not happen, or not as it should have; nothing if all is well."""
    yield from _weather(account)
    yield from _key(account, server)
    yield from _quota(account, script)
    yield from _researcher(account, script)
    if rehearsed and not any(event.result == "failed" for event in account.of(ProposalRehearsed)):
        yield "no rehearsal found anything"


def _weather(account: Account) -> Iterator[str]:
    failures = account.of(ApiFailed)
    for status in (401, 429, 500, 529, None):
        if not any(event.status == status for event in failures):
            yield f"no request failed with status {status}"
    for words in ("no complete reply within", "broke off"):
        if not any(words in event.error for event in failures):
            yield f"no request failed with the words {words!r}"
    for reason in ("refusal", "max_tokens"):
        if not any(event.stop_reason == reason for event in account.of(ApiAnswered)):
            yield f"no reply ended with {reason}"


def _key(account: Account, server: MessagesServer) -> Iterator[str]:
    """One sentence, no second try with the same key, and the same effort goes on with another."""
    refused = [n for n, record in enumerate(account.records) if _status(record.data) == 401]
    if len(refused) != 1:
        yield f"the key was refused {len(refused)} times"
    keys = [received.headers["x-api-key"] for received in server.received]
    if keys != sorted(keys, key=[KEY, NEXT_KEY].index) or {*keys} != {KEY, NEXT_KEY}:
        yield "the keys were not used one after the other"
    if len(account.of(SessionStarted)) != 2:
        yield f"there were {len(account.of(SessionStarted))} sessions, not 2"
    if not any(event.until is None for event in account.of(AgentAbsent)):
        yield "nobody was told that a person is needed"
    if not account.of(AgentReturned):
        yield "the agent never came back"


def _status(event: object) -> int | None:
    return event.status if isinstance(event, ApiFailed) else None


def _quota(account: Account, script: Script) -> Iterator[str]:
    """One request finds out; then the tuner proposes, marked, and nothing is sent for hours."""
    waits = [
        (dt.datetime.fromisoformat(event.until) - dt.datetime.fromisoformat(record.time)).total_seconds()
        for record in account.records
        if isinstance(event := record.data, AgentAbsent) and event.until is not None
    ]
    if not waits or waits[-1] < QUOTA_HOURS * 3600 - 60:
        yield f"the last absence is not one of {QUOTA_HOURS} hours"
    if script.refused_for_quota != 1:
        yield f"{script.refused_for_quota} requests were sent against the exhausted quota"
    last = account.state.experiments[-1].proposal
    if (last.agent, last.stands_in_for) != ("tuner", "claude"):
        yield "the tuner did not stand in at the end"
    names = [event.call for event in account.of(ApiRequested)]
    if names != [*range(len(names))]:
        yield "calls are not numbered one after the other"


def _researcher(account: Account, script: Script) -> Iterator[str]:
    experiments = account.state.experiments
    if not {Verdict.KEEP, Verdict.DISCARD, Verdict.CRASH} <= {e.verdict for e in experiments}:
        yield "not every verdict occurred"
    repairs = [experiment for experiment in experiments if experiment.proposal.fixes is not None]
    if script.repairs != 1 or len(repairs) != 1 or repairs[0].verdict is Verdict.CRASH:
        yield f"{script.repairs} repairs were asked for and {len(repairs)} run, or it crashed again"
    made = {event.proposal for event in account.of(ProposalMade)}
    if not account.of(AgentFailed) or made.isdisjoint(drop.proposal for drop in account.of(ProposalDropped)):
        yield "the agent never failed, or no proposal that was made was dropped"
    if not any("OWNED" in e.proposal.description for e in experiments):
        yield "no injection was tried"
