"""What a person may ask of an effort while it runs, and whether it can be granted. Pure."""

from __future__ import annotations

import datetime as dt
import math
from typing import Any

from pydantic import Field, field_validator

from controller.core.errors import UserError
from controller.core.events import Steered, SteeringRefused, Verb
from controller.core.experiment import Phase
from controller.core.program import policy
from controller.core.state import ResearchState, rollback_targets
from controller.core.steering import LIMITS
from controller.core.untrusted import clean_line, clean_text
from controller.core.values import Value

INSTRUCTION_CHARACTERS = 4000
"""Of one instruction, at most."""
REASON_CHARACTERS = 500
MOST = 1_000_000
"""Of experiments, hours or dollars; a century has fewer hours."""
_MOST_SLOTS = 32
"""How many there are is for the controller to say."""


class SteeringRequest(Value):
    """One request, as it waits in the home until a controller reads it."""

    id: str = Field(pattern=r"^[0-9a-zA-Z][0-9a-zA-Z-]{0,63}$")
    """Orders the requests by time."""
    verb: Verb
    by: str
    at: str
    """When, UTC."""
    reason: str = ""
    target: int | None = None
    slot: int | None = None
    text: str = ""
    """With `instruct`: what the agent is told. With `queue`: the program's description."""
    train_py: str = ""
    """With `queue`: the program."""
    limits: dict[str, float | None] = Field(default_factory=dict)
    agent: str = ""

    @field_validator("at")
    @classmethod
    def _require_time(cls, at: str) -> str:
        """The views show it as one."""
        try:
            return dt.datetime.fromisoformat(at).astimezone(dt.UTC).isoformat(timespec="seconds")
        except OverflowError as error:  # at an end of the calendar
            raise ValueError(str(error)) from error

    def granted(self, text: str = "", train_sha256: str = "") -> Steered:
        """What goes on record; `text` and the blob's name as the verb needs them."""
        return Steered(
            **self._told(),
            target=self.target,
            slot=self.slot,
            text=clean_text(text, INSTRUCTION_CHARACTERS),
            train_sha256=train_sha256,
            limits=self.limits,
            agent=clean_line(self.agent),
        )

    def refused(self, because: str) -> SteeringRefused:
        """What goes on record if it cannot be granted."""
        return SteeringRefused(**self._told(), because=clean_line(because, REASON_CHARACTERS))

    def _told(self) -> dict[str, Any]:
        """What both answers say of it."""
        reason = clean_line(self.reason, REASON_CHARACTERS)
        return {
            "request": self.id,
            "verb": self.verb,
            "by": clean_line(self.by),
            "at": self.at,
            "reason": reason,
        }


def limit_value(name: str, text: str) -> float | None:
    """A limit as a person wrote it. Raises UserError."""
    if text.lower() == "none":
        return None
    try:
        return float(text)
    except ValueError:
        raise UserError(f"The limit on {name} is a number or none, not {clean_line(text, 60)!r}.") from None


def slots_of(state: ResearchState) -> int:
    """How many slots there are, as the last session said; without one, as many as there can be."""
    slots = state.session.settings.get("slots") if state.session else None
    return len(slots) if isinstance(slots, list) and slots else _MOST_SLOTS


def waits(state: ResearchState, request: SteeringRequest) -> bool:
    """A rollback waits for an open certificate, which is about the frontier, and for a commit."""
    committing = any(known.phase is Phase.DECIDED for known in state.open)
    return request.verb == "rollback" and (state.certificate is not None or committing)


def objection(state: ResearchState, request: SteeringRequest, slots: int) -> str | None:
    """Why a request cannot be granted, in a sentence; None if it can, as far as the state tells."""
    match request.verb:
        case "instruct":
            return _of_instruction(request.text)
        case "queue":
            return _of_program(state, request.train_py)
        case "kill":
            return _of_kill(state, request.target)
        case "requeue":
            return _of_requeue(state, request.target)
        case "rollback":
            return _of_rollback(state, request.target)
        case "limit":
            return _of_limits(request.limits)
        case "hold" | "release":
            there = request.slot is not None and 0 <= request.slot < slots
            held = request.verb == "release" and request.slot in state.steering.held
            return None if there or held else f"There is no slot {request.slot}; there are {slots}, from 0."
        case "agent":
            return None


def _of_instruction(text: str) -> str | None:
    if not clean_text(text, INSTRUCTION_CHARACTERS).strip():
        return "The instruction is empty."
    if len(text) > INSTRUCTION_CHARACTERS:
        return f"The instruction has {len(text)} characters; {INSTRUCTION_CHARACTERS} is the most."
    return None


def _of_kill(state: ResearchState, number: int | None) -> str | None:
    found = next((known for known in state.open if known.number == number), None)
    if found is None:
        return f"Experiment {number} is not running."
    if number == 0:
        return "Everything is compared with the baseline, so it cannot be killed; stop the effort instead."
    if found.phase in (Phase.JUDGED, Phase.DECIDED):
        return f"Experiment {number} has its score already."
    return None


def _of_requeue(state: ResearchState, number: int | None) -> str | None:
    if number is None or not 0 <= number < len(state.experiments):
        return f"There is no experiment {number}; `glovebox log` lists all of them."
    if state.experiments[number].repeats is not None:
        return f"Experiment {number} only repeats {state.experiments[number].repeats}; queue that one."
    if state.experiments[number].digest == _frontier_digest(state):
        return f"Experiment {number} is the frontier's program, which runs again by itself now and then."
    return None


def _of_program(state: ResearchState, train_py: str) -> str | None:
    if (found := policy.check(train_py, None)) is not None:
        return f"It cannot be run: {found.detail}."
    if policy.digest(train_py) == _frontier_digest(state):
        return "It is the frontier's program, which runs again by itself now and then."
    return None


def _frontier_digest(state: ResearchState) -> str | None:
    number = state.frontier.experiment if state.frontier else None
    return state.experiments[number].digest if number is not None else None


def _of_rollback(state: ResearchState, number: int | None) -> str | None:
    places = sorted(rollback_targets(state))
    if number in places:
        return None
    named = ", ".join(map(str, places)) or "there is none"
    return f"The frontier cannot go back to experiment {number}; it can to: {named}."


def _of_limits(limits: dict[str, float | None]) -> str | None:
    if not limits:
        return "No limit is named."
    if unknown := sorted(set(limits) - set(LIMITS)):
        return f"There is no limit {clean_line(unknown[0], 60)}; the limits are {', '.join(LIMITS)}."
    for name, value in limits.items():
        if value is None:
            continue
        possible = math.isfinite(value) and 0 < value <= MOST
        if not possible or (name == "experiments" and value != int(value)):
            kind = "whole number" if name == "experiments" else "number"
            return f"The limit on {name} must be a {kind} above 0, and {MOST:,} at most."
    return None
