"""One session: begin or continue the effort of a home, and work until a limit is reached."""

from __future__ import annotations

import contextlib
import datetime as dt
import hashlib
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import structlog

from controller import recovery
from controller.app import agent as choose
from controller.app.home import read_standing
from controller.app.machine import Machine
from controller.components import Components
from controller.core.errors import Unfit, UserError
from controller.core.events import EffortStarted, SessionStarted
from controller.core.program import source
from controller.core.program.policy import check
from controller.core.rules import Limits, Rules, Wish
from controller.core.state import ResearchState, apply
from controller.core.untrusted import clean_line
from controller.core.values import Provenance
from controller.loop import Loop
from controller.observers.terminal import observer
from controller.ports import Agent, Observer
from controller.settings import PROJECT, Settings
from controller.steering import employed
from controller.store.journal import Journal
from controller.store.ledger import Ledger
from controller.store.pause import HomeSurroundings
from controller.store.repository import GitRepository
from controller.store.retention import Retention
from controller.store.runs import Runs
from controller.store.snapshot import Archive, Snapshot
from controller.system import text_files
from controller.system.clock import SystemClock
from controller.views.facts import baseline_failed

log = structlog.stdlib.get_logger(__name__)


@dataclass(frozen=True)
class Plan:
    """The effort that a start continues or begins."""

    tag: str
    files: Mapping[str, str] | None
    """Content of the base commit; None if the effort has begun already."""


def run(
    config: Settings,
    agent: Agent,
    stop: threading.Event,
    understudy: Agent | None = None,
    watchers: Sequence[Observer] = (),
) -> str:
    """Begin or continue the effort of a home; return why it stopped. The caller holds the home's lock."""
    clock = SystemClock()
    state, archive = read_standing(config.home)
    agents = [agent, *([understudy] if understudy else [])]
    if (name := _instead(config, state)) is not None:
        agents = _hired(config, name) or agents
    plan = _plan(config, state)
    machine = Machine.assemble(config)
    with contextlib.ExitStack() as resources:
        resources.callback(machine.sandbox.close)
        resources.callback(machine.close_monitors)
        journal = resources.enter_context(contextlib.closing(Journal(config.home, clock, archive.position)))
        repository = _begin(config.home, plan, journal)
        for record in archive.follow():
            apply(state, record)
        program = repository.read(repository.head(), "program.md")
        provenance = machine.provenance.model_copy(update={"program": _sha256(program)})
        recovery.check_comparable(state, provenance, config.budget.wall_seconds)
        components = Components(
            journal=journal,
            repository=repository,
            agents=agents,
            slots=machine.slots,
            rules=rules(config, agents, machine),
            runs=Runs(config.home),
            clock=clock,
            observer=resources.enter_context(observer(sys.stdout, clock, watchers)),
            stop=stop,
            publish=publisher(config.home, archive),
            prune=Retention(config.home, config.storage).prune,
            check_inputs=machine.check_inputs,
            surroundings=HomeSurroundings(
                config.home, config.min_free_bytes * len(machine.slots), machine.engine_root
            ),
            hire=lambda name: choose.hire(config, name),
            rehearsal=machine.rehearsal,
        )
        loop = Loop(components, state, config.budget.wall_seconds)
        recovery.sweep(config.home, components, loop.state)
        recovery.recover(components, machine.sandbox, loop.state)
        require_fit(state, provenance, config, components.surroundings.wish())
        settings = config.model_dump(mode="json", exclude={"anthropic_api_key", "notify"})
        if (reason := loop.limit(settings)) is not None:
            # A service that is restarted at its limit must not fill the journal with sessions.
            return _ended(reason, loop.state)
        loop.effort.record(
            SessionStarted(
                agent=agents[0].name,
                budget_seconds=config.budget.wall_seconds,
                provenance=provenance,
                settings=settings,
            )
        )
        return _ended(loop.run(), loop.state)


def _instead(config: Settings, state: ResearchState) -> str | None:
    """The agent that a person has chosen instead of the one in the settings; None if those changed since."""
    last = state.session.settings.get("agent") if state.session else None
    return state.steering.agent if last == config.agent else None


def _hired(config: Settings, name: str) -> list[Agent] | None:
    """None if that agent cannot be had any more: the one in the settings works until a person says more."""
    try:
        return choose.hire(config, name)
    except UserError as error:
        log.warning("agent_not_changed", agent=clean_line(name), error=clean_line(str(error)))
        return None


def rules(config: Settings, agents: Sequence[Agent], machine: Machine) -> Rules:
    """What the plan goes by, out of the settings."""
    told = Rules(
        agent=agents[0].name,
        slots=len(machine.slots),
        is_watched=config.noise.enabled,
        bounds=config.judge.bounds,
        limits=Limits(**config.limits.model_dump()),
        replicates=config.replicates,
        keep=config.keep,
        early_end=config.budget.early_end,
        certify=config.certify,
        absence=config.absence,
        retry=config.retry,
        noise=config.noise,
    )
    return employed(told, agents)


def _ended(reason: str, state: ResearchState) -> str:
    """Why an effort stopped. Raises UserError if none of its experiments has a score: that is no success."""
    if failed := baseline_failed(state):
        raise UserError(f"{reason}, and nothing has a score; the baseline: {failed}")
    return reason


def _plan(config: Settings, state: ResearchState) -> Plan:
    """What is to be continued or begun, found out without changing anything. Raises UserError, NotReady."""
    if state.tag is not None:
        if config.tag not in (None, state.tag):
            raise UserError(
                f"The home {config.home} belongs to the effort {state.tag}; "
                f"use another --home for {config.tag}."
            )
        return Plan(state.tag, None)
    tag = config.tag or default_tag(SystemClock().now())
    GitRepository(config.home / "repo", tag)  # refuses what is no branch name
    files = {
        "train.py": read_train(config.train),
        "prepare.py": read_text(PROJECT / "harness" / "prepare.py", "prepare.py"),
        "program.md": read_text(config.program, "program.md"),
    }
    return Plan(tag, files)


def require_fit(state: ResearchState, provenance: Provenance, config: Settings, wish: Wish) -> None:
    """Raises Unfit if the last session stopped for what the machine lacks, and nothing has changed since.

    Before a session is on record: a service that is started again and again must not train three each time.
    """
    found, last = state.obstacle, state.finished[-1].finished_at if state.finished else None
    if found is None or state.session is None or last is None:
        return
    changed = state.session.provenance != provenance
    now = config.model_dump(mode="json")
    changed = changed or any(state.session.settings.get(name) != now[name] for name in ("sandbox", "slots"))
    told_to = not wish.paused and wish.at is not None and wish.at > dt.datetime.fromisoformat(last)
    if not changed and not told_to:
        raise Unfit(found.last_words)


def _begin(home: Path, plan: Plan, journal: Journal) -> GitRepository:
    """The research repository; a new effort gets its branch, base commit and first journal line."""
    repository = GitRepository(home / "repo", plan.tag)
    if plan.files is not None:
        base = repository.begin(plan.tag, plan.files)
        journal.append(EffortStarted(tag=plan.tag, base_commit=base))
    return repository


def publisher(home: Path, archive: Archive) -> Callable[[ResearchState], None]:
    """Brings every projection up to date that spans experiments."""
    ledger, snapshot = Ledger(home), Snapshot(home, archive)

    def publish(state: ResearchState) -> None:
        ledger.publish(state)
        snapshot.publish(state)

    return publish


def default_tag(now: dt.datetime) -> str:
    """Upstream's habit: `nov21`."""
    return now.strftime("%b%d").lower()


def read_train(path: Path) -> str:
    """Read a train.py a person named, as the interpreter would. Raises UserError if no experiment can be made
    of it."""
    try:
        text = source.decode(_read(path, "train.py"))
    except SyntaxError as error:
        raise UserError(f"{path} cannot be run: {error.msg}.") from None
    objection = check(text, None)
    if objection is not None:
        raise UserError(f"{path} cannot be run: {objection.detail}.")
    return text


def read_text(path: Path, what: str) -> str:
    """Read a file a person named. Raises UserError if it is not there or not UTF-8."""
    try:
        return text_files.decode(_read(path, what), path)
    except text_files.Unreadable as error:
        raise UserError(f"{error}.") from None


def _read(path: Path, what: str) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"There is no {what} at {path}.") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from error


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8")).hexdigest()
