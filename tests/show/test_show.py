"""Thirty experiments by a researcher who does everything, and nobody intervenes."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest
from pydantic import SecretStr

from controller.agents.llm.config import ClaudeConfig
from controller.agents.llm.conversation import Claude
from controller.agents.tuner import Tuner
from controller.core.errors import UserError
from controller.core.events import ProposalAsked, ProposalMade, Record
from controller.core.rules import AbsenceConfig
from controller.core.state import ResearchState, fold
from controller.store.journal import read_records
from controller.system.clock import SystemClock
from tests.bench.idle import idle
from tests.loop.effort import Effort, start
from tests.loop.slow import PatientTrainer, Watch
from tests.show import live
from tests.show.account import Account
from tests.show.outages import missing
from tests.show.script import TRAIN, Script
from tests.support.messages_server import MessagesServer

EXPERIMENTS = 30

_WHILE = "while time_left() > 5.0:"
assert _WHILE in TRAIN
BRIEF = TRAIN.replace(_WHILE, "while time_left() > 13.0:")
"""Of 20 seconds, it leaves what it does not need. On a machine too slow for that it has saved at once."""
ONLY_THE_FIRST_IS_LONG = TRAIN.replace(_WHILE, "while time_left() > (5.0 if LR == 3e-3 else 23.0):")
"""The same of 30 seconds, but for the baseline."""


def spoken(state: ResearchState) -> bool:
    """What the agent was asked while the experiment trains, it answered."""
    made = any(proposal.is_made for proposal in state.proposals.values())
    answered = made or state.absence is not None or state.agent_errors_in_a_row > 0
    return answered or state.next_number == EXPERIMENTS


def train_patiently(effort: Effort) -> None:
    """Every training lasts until the agent has spoken."""
    effort.components.observer = watch = Watch()
    effort.train_with(PatientTrainer(lambda number: watch.until(spoken), like=effort.trainer))


def test_thirty_experiments_need_nobody_but_for_a_key(tmp_path: Path, efforts: list[Effort]) -> None:
    script = Script()
    with MessagesServer(script) as server:
        config = ClaudeConfig(base_url=server.url, max_turns=6, answer_seconds=1, patience_seconds=1)
        effort = start(efforts, tmp_path, Claude(config, SecretStr(live.KEY), SystemClock()), TRAIN)
        effort.rule(absence=AbsenceConfig(retry_seconds=0.5))
        train_patiently(effort)
        with pytest.raises(UserError, match="check the key"):
            effort.loop(EXPERIMENTS).run()
        effort.agent = Claude(config, SecretStr(live.NEXT_KEY), SystemClock())
        effort.restart()
        train_patiently(effort)
        effort.stand_in(Tuner())
        # Only the quota keeps it away for that long; pretended trainings would be over before a storm is.
        effort.rule(absence=AbsenceConfig(retry_seconds=0.5, understudy_after_seconds=10))
        assert "30 experiments" in effort.loop(EXPERIMENTS).run()
        account = Account(tmp_path)
        print(*account.table(), account.events(), sep="\n")
        assert [*account.problems(server, config.price(), EXPERIMENTS)] == []
        assert [*missing(account, script, server, rehearsed=False)] == []
    assert account.state.spending.total.usage.cache_read_tokens > 0
    assert [*live.leaks(tmp_path / "home")] == []


@pytest.mark.engine
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_few_of_them_on_real_containers(tmp_path: Path, with_data: Callable[[Path], None]) -> None:
    home = tmp_path / "home"
    with_data(home)
    with MessagesServer(Script()) as server:
        try:
            live.run(home, server, experiments=4, budget=20.0, train=BRIEF)
        finally:
            live.remove_leftovers(home)
        account = Account(home)
        assert [*account.problems(server, ClaudeConfig().price(), 4)] == []
    assert account.state.spending.total.usd > 0
    assert idle(account.records).experiments == 4
    assert [*live.leaks(home)] == []


@pytest.mark.engine
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_killed_controller_goes_on_with_what_was_proposed(
    tmp_path: Path, with_data: Callable[[Path], None]
) -> None:
    """SIGKILL while the baseline trains and the next proposal is ready: nothing is asked or trained twice."""
    home = tmp_path / "home"
    with_data(home)
    with MessagesServer(Script(plain_only=True)) as server:
        try:
            with live.start(home, server, 2, budget=30.0, train=ONLY_THE_FIRST_IS_LONG) as process:
                until(lambda: any(_is_answer(record) for record in read_records(home)))
                process.kill()
            assert not fold(read_records(home)).finished
            live.run(home, server, 2, budget=30.0, train=ONLY_THE_FIRST_IS_LONG)
        finally:
            live.remove_leftovers(home)
        account = Account(home)
        assert [*account.problems(server, ClaudeConfig().price(), 2)] == []
        assert len(server.received) == 1
    assert [experiment.attempt for experiment in account.state.experiments] == [1, 1]
    assert [event.proposal for event in account.of(ProposalAsked)] == [0, 1]
    assert account.state.experiments[1].proposal.number == 1


def _is_answer(record: Record) -> bool:
    """True if it is the first proposal after the baseline."""
    return isinstance(record.data, ProposalMade) and record.data.proposal == 1


def until(reached: Callable[[], bool], seconds: float = 120.0) -> None:
    """Look again and again; another process writes what is looked at."""
    end = time.monotonic() + seconds
    while not reached():
        assert time.monotonic() < end
        time.sleep(0.1)
