"""What a person has asked of an effort while it runs, as the journal tells it. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from controller.core.errors import ImpossibleHistory
from controller.core.events import (
    AnyEvent,
    ExperimentOpened,
    ProposalDropped,
    ProposalMade,
    ProposalRefused,
    RolledBack,
    SessionStarted,
    Steered,
    SteeringRefused,
)
from controller.core.proposal import Proposal
from controller.core.rules import Limits, Rules

LIMITS = tuple(Limits.__dataclass_fields__)
"""Names of the limits."""
_HEARD = 1000
"""Answered requests that are remembered: only those whose file may still be there matter."""


@dataclass(frozen=True)
class Steering:
    """What is still to be done of it, and what holds for as long as nobody changes it again."""

    heard: tuple[str, ...] = ()
    """The latest requests that were answered, by their ids."""
    instructions: tuple[Steered, ...] = ()
    """Those that no agent has answered yet, oldest first."""
    queue: tuple[Steered, ...] = ()
    """A person's programs that are not experiments yet, oldest first."""
    killed: dict[int, Steered] = field(default_factory=dict)
    """By experiment: those that are open and are to be ended."""
    rollback: Steered | None = None
    """Granted, and the repository has not heard yet."""
    held: dict[int, Steered] = field(default_factory=dict)
    """By slot: on these nothing new begins."""
    limits: dict[str, float | None] = field(default_factory=dict)
    """By name: those that hold instead of the settings'; None: no limit."""
    agent: str | None = None
    """Who is asked instead of the agent in the settings."""

    def told(self, proposal: int, asked: Mapping[int, Proposal]) -> tuple[Steered, ...]:
        """The instructions that go with the question for a proposal; `asked`: all that are not at an end."""
        named = asked[proposal].instructions if proposal in asked else ()
        return tuple(one for one in self.instructions if one.request in named)

    def untold(self, asked: Mapping[int, Proposal]) -> tuple[str, ...]:
        """Ids of the instructions that are in nobody's question."""
        under_way = {name for known in asked.values() for name in known.instructions}
        return tuple(one.request for one in self.instructions if one.request not in under_way)

    def due(self, asked: Mapping[int, Proposal]) -> tuple[Steered, ...]:
        """The queued programs for which no proposal was asked."""
        under_way = {known.request for known in asked.values()}
        return tuple(one for one in self.queue if one.request not in under_way)


def in_force(rules: Rules, steering: Steering) -> Rules:
    """The rules with the limits that a person has changed."""
    if not steering.limits:
        return rules
    return replace(rules, limits=replace(rules.limits, **_typed(steering.limits)))


def _typed(limits: Mapping[str, float | None]) -> dict[str, Any]:
    """The number of experiments is an integer; JSON may have made another number of it."""
    return {name: int(value) if name == "experiments" and value else value for name, value in limits.items()}


def steered(before: Steering, event: Steered | SteeringRefused) -> Steering:
    """After a request was answered."""
    now = replace(before, heard=(*before.heard, event.request)[-_HEARD:])
    if isinstance(event, SteeringRefused):
        return now
    match event.verb:
        case "instruct":
            return replace(now, instructions=(*now.instructions, event))
        case "queue" | "requeue":
            return replace(now, queue=(*now.queue, event))
        case "kill":
            return replace(now, killed={**now.killed, event.target or 0: event})
        case "rollback":
            return replace(now, rollback=event)
        case "hold":
            return replace(now, held={**now.held, event.slot or 0: event})
        case "release":
            return replace(now, held={slot: by for slot, by in now.held.items() if slot != event.slot})
        case "limit":
            return replace(now, limits={**now.limits, **event.limits})
        case "agent":
            return replace(now, agent=event.agent)


def rolled_back(before: Steering, event: RolledBack, doomed: Iterable[int]) -> Steering:
    """After the repository has heard of it. `doomed`: what was built on what is taken back, and is killed.

    Raises ImpossibleHistory if nobody asked for that.
    """
    asked = before.rollback
    if asked is None or (asked.request, asked.target) != (event.request, event.target):
        raise ImpossibleHistory(f"nobody asked for the rollback {event.request} to {event.target}")
    killed = dict.fromkeys(doomed, asked) | before.killed
    return replace(before, rollback=None, killed=killed)


def killed_by(asked: Steered) -> str:
    """Who killed an experiment, and why."""
    if asked.verb == "rollback":
        return f"killed by {asked.by}, who went back to experiment {asked.target}"
    return f"killed by {asked.by}" + (f": {asked.reason}" if asked.reason else "")


def ended(before: Steering, experiment: int) -> Steering:
    """After an experiment has come to its end, killed or not."""
    if experiment not in before.killed:
        return before
    return replace(
        before, killed={number: by for number, by in before.killed.items() if number != experiment}
    )


def answered(before: Steering, event: AnyEvent, proposal: Proposal) -> Steering:
    """After something has come of a proposal. An instruction is done with once an agent has answered with a
    text, and a queued program once it is an experiment or is refused: all else brings them back."""
    match event:
        case ProposalMade() if proposal.instructions:
            left = tuple(one for one in before.instructions if one.request not in proposal.instructions)
            return replace(before, instructions=left)
        case ExperimentOpened() | ProposalRefused() | ProposalDropped(unanswered=False) if proposal.request:
            left = tuple(one for one in before.queue if one.request != proposal.request)
            return replace(before, queue=left)
        case _:
            return before


def new_session(before: Steering, last: SessionStarted | None, settings: Mapping[str, Any]) -> Steering:
    """What a person changed holds in the next session too, unless the setting itself was changed since.

    `settings`: those of the next session.
    """
    if last is None:
        return before
    earlier, later = _limits(last.settings), _limits(settings)
    kept = {name: value for name, value in before.limits.items() if earlier.get(name) == later.get(name)}
    same_agent = last.settings.get("agent") == settings.get("agent")
    return replace(before, limits=kept, agent=before.agent if same_agent else None)


def _limits(settings: Mapping[str, Any]) -> Mapping[str, Any]:
    limits = settings.get("limits")
    return limits if isinstance(limits, Mapping) else {}
