"""Is every event of an effort accounted for, and what did it cost?"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from controller.agents.llm.prices import Price
from controller.core.events import (
    AgentAbsent,
    AgentFailed,
    AgentReturned,
    ApiAnswered,
    ApiFailed,
    ApiRequested,
    ExperimentOpened,
    ProposalAsked,
    ProposalDropped,
    ProposalRefused,
    Record,
)
from controller.core.state import ResearchState, fold
from controller.store.journal import read_blob, read_records
from controller.store.verify import verify
from tests.support.messages_server import MessagesServer

E = TypeVar("E")


class Account:
    """One effort, as its journal tells it."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.records: Sequence[Record] = [*read_records(home)]
        self.state: ResearchState = fold(self.records)

    def problems(self, server: MessagesServer, price: Price, experiments: int) -> Iterator[str]:
        """What does not add up; nothing if all does."""
        yield from verify(self.home)
        finished = [experiment for experiment in self.state.finished if experiment.verdict is not None]
        if len(finished) != experiments:
            yield f"{len(finished)} experiments have a verdict, not {experiments}"
        yield from self._calls(server)
        yield from self._money(price)
        yield from self._proposals()
        yield from self._attendance()
        table = (self.home / "results.tsv").read_text(encoding="utf-8")
        if any(character < " " and character not in "\t\n" for character in table) or "\u202e" in table:
            yield "the ledger holds control characters"

    def _calls(self, server: MessagesServer) -> Iterator[str]:
        """Each request on record is one that arrived, byte for byte, and each has exactly one end."""
        sent = self.of(ApiRequested)
        bodies = [read_blob(self.home, event.request_sha256) for event in sent]
        if bodies != [received.content for received in server.received]:
            yield f"{len(bodies)} requests are on record and {len(server.received)} arrived, or they differ"
        ends = Counter(event.call for event in self._ends())
        if ends != Counter(event.call for event in sent) or self.state.spending.open:
            yield "calls without an end, or with two"
        for answer in self.of(ApiAnswered):
            read_blob(self.home, answer.reply_sha256)

    def _money(self, price: Price) -> Iterator[str]:
        spending = self.state.spending
        for answer in self.of(ApiAnswered):
            if not math.isclose(answer.cost_usd, price.cost(answer.usage)):
                yield f"call {answer.call} cost {answer.cost_usd}, not what its tokens cost"
        total = sum(event.cost_usd for event in self._ends())
        by_proposal = sum(spending.of(number).usd for number in range(self.state.next_proposal))
        by_day = sum(spent.usd for spent in spending.by_day.values())
        if not all(math.isclose(total, other) for other in (spending.total.usd, by_proposal, by_day)):
            yield f"the costs do not add up: {total}, {spending.total.usd}, {by_proposal}, {by_day}"

    def _proposals(self) -> Iterator[str]:
        """Each experiment is the baseline, an agent's, a repair or an understudy's; no proposal is lost."""
        for experiment in self.state.experiments:
            made = experiment.proposal
            ways = (experiment.number == 0, made.fixes is not None, made.stands_in_for is not None)
            known = (made.purpose == "baseline", made.purpose == "fix", made.agent != "claude")
            if sum(ways) > 1 or (not ways[0] and ways != known):
                yield f"experiment {experiment.number} came about in no known way"
        ends: list[ExperimentOpened | ProposalDropped | ProposalRefused | AgentFailed] = [
            *self.of(ExperimentOpened),
            *self.of(ProposalDropped),
            *self.of(ProposalRefused),
            *self.of(AgentFailed),
        ]
        gone = [*(event.proposal for event in ends), *self.state.proposals]
        if sorted(gone) != [event.proposal for event in self.of(ProposalAsked)]:
            yield f"{len(self.of(ProposalAsked))} proposals were asked for and {len(gone)} accounted for"

    def _attendance(self) -> Iterator[str]:
        away = False
        for record in self.records:
            if isinstance(record.data, AgentReturned) and not away:
                yield "the agent came back without having been away"
            away = away and not isinstance(record.data, AgentReturned)
            away = away or isinstance(record.data, AgentAbsent)

    def of(self, kind: type[E]) -> list[E]:
        """Every event of one kind, in order."""
        return [record.data for record in self.records if isinstance(record.data, kind)]

    def _ends(self) -> list[ApiAnswered | ApiFailed]:
        return [*self.of(ApiAnswered), *self.of(ApiFailed)]

    def table(self) -> Iterator[str]:
        """What each experiment cost, and all together."""
        counts = f"{'calls':>5} {'input':>8} {'cached':>8} {'output':>7}"
        yield f"{'exp':>3} {'verdict':8} {'came from':12} {counts} {'usd':>8}  description"
        for experiment in self.state.experiments:
            proposal = experiment.proposal
            spent, usage = self._spent(proposal.number)
            way = "understudy" if proposal.stands_in_for else proposal.purpose
            yield (
                f"{experiment.number:>3} {experiment.verdict or '':8} {way:12} {usage} {spent:8.4f}  "
                f"{proposal.description[:60]}"
            )
        spent, usage = self._spent(None)
        yield f"{'all':>3} {'':8} {'':12} {usage} {spent:8.4f}"

    def _spent(self, proposal: int | None) -> tuple[float, str]:
        spending = self.state.spending
        spent = spending.total if proposal is None else spending.of(proposal)
        usage = spent.usage
        plain = usage.input_tokens + usage.cache_write_tokens
        counts = f"{spent.calls:5} {plain:8} {usage.cache_read_tokens:8} {usage.output_tokens:7}"
        return spent.usd, counts

    def events(self) -> str:
        """How often each kind of event happened."""
        counts = Counter(record.data.event for record in self.records)
        return ", ".join(f"{kind} {count}" for kind, count in sorted(counts.items()))

    def failures(self) -> str:
        """How requests failed, by HTTP status."""
        counts = Counter(str(event.status or "connection") for event in self.of(ApiFailed))
        return ", ".join(f"{status}: {count}" for status, count in sorted(counts.items()))
