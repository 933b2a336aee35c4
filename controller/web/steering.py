"""Steering from a page: a form becomes the same request that the command of that name makes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from markupsafe import Markup, escape

from controller.core.errors import UserError
from controller.core.events import Verb
from controller.core.state import ResearchState, rollback_targets
from controller.core.steering import LIMITS
from controller.core.steering_request import (
    INSTRUCTION_CHARACTERS,
    REASON_CHARACTERS,
    SteeringRequest,
    limit_value,
    objection,
    slots_of,
)
from controller.core.untrusted import clean_line
from controller.store import pause, requests
from controller.views import steering
from controller.web.controls import ANYTIME, CONTROLS, OF_ONE
from controller.web.follower import Follower, Standing
from controller.web.forms import whole_number
from controller.web.rows import Row

ALL = "all"
"""In place of a slot's number."""
Context = dict[str, Any]
Fields = Mapping[str, str]


def ask(follower: Follower, verb: str, fields: Fields, client: str) -> None:
    """Put down what a form asks for, unless it is plain that it would be refused. Raises UserError."""
    by, reason = clean_line(f"web, {client}", 100), clean_line(fields.get("reason", ""), REASON_CHARACTERS)
    with follower.standing() as standing:
        home, begun = standing.home, standing.state.seq >= 0
    if not begun:
        raise UserError("No effort was started here yet.")
    if CONTROLS[verb].is_final and fields.get("sure") != "yes":
        raise UserError("This cannot be taken back: tick that you mean it.")
    if verb in ("pause", "continue") and fields.get("slot", ALL) == ALL:
        pause.write(home, paused=verb == "pause", reason=reason, by=by)
        return
    request = asked(verb, fields, by, reason)
    because = _objection(follower, request)
    if because is not None:
        raise UserError(because)
    requests.submit(home, request)


def _objection(follower: Follower, request: SteeringRequest) -> str | None:
    if request.verb == "queue":  # it needs no state, and takes seconds in which others want to read
        return objection(ResearchState(), request, 0)
    with follower.standing() as standing:
        if not standing.complete:
            return "The journal is being read; ask again in a moment."
        return objection(standing.state, request, slots_of(standing.state))


def asked(verb: str, fields: Fields, by: str, reason: str = "") -> SteeringRequest:
    """The request that a form stands for. Raises UserError if it cannot be one."""
    match verb:
        case "pause" | "continue":
            slot = whole_number(fields, "slot")
            return requests.made("hold" if verb == "pause" else "release", by, reason=reason, slot=slot)
        case "instruct":
            return requests.made("instruct", by, reason=reason, text=fields.get("text", ""))
        case "queue":
            text = clean_line(fields.get("text", "")) or f"train.py, queued by {by}"
            program = fields.get("train_py", "")
            return requests.made("queue", by, reason=reason, train_py=program, text=text)
        case "limit":
            given = {name: fields.get(name, "").strip() for name in LIMITS}
            limits = {name: limit_value(name, text) for name, text in given.items() if text}
            return requests.made("limit", by, reason=reason, limits=limits)
        case "agent":
            return requests.made("agent", by, reason=reason, agent=_agent(fields))
        case "kill" | "requeue" | "rollback":
            return requests.made(verb, by, reason=reason, target=whole_number(fields, "experiment"))
        case _:
            raise UserError("There is no such request.")


def _agent(fields: Fields) -> str:
    name = clean_line(fields.get("agent", ""))
    if not name:
        raise UserError("No agent is named.")
    return name


def place(verb: str, fields: Fields) -> str:
    """Where a person goes after asking: never an address that came with the form."""
    where = f"/experiments/{whole_number(fields, 'experiment')}" if verb in OF_ONE else "/"
    return f"{where}?asked={verb}"


def possible(state: ResearchState, number: int) -> list[tuple[str, str]]:
    """What can be done with an experiment now: verbs, and the words of the links to them."""
    return [(verb, words.format(number)) for verb, words in OF_ONE.items() if _may(state, verb, number)]


def _may(state: ResearchState, verb: Verb, number: int) -> bool:
    if verb != "kill" and number in {known.number for known in state.open}:
        return False
    return objection(state, requests.made(verb, "", target=number), slots_of(state)) is None


def form(standing: Standing, verb: str, fields: Fields, wrong: str = "") -> Context:
    """For the template `control.html`; `fields`: what was typed, or chosen by a link."""
    state = standing.state
    return {
        "verb": verb,
        "control": CONTROLS[verb],
        "typed": fields,
        # A program keeps its tabs, so that it is not cleaned: it is what the same person has just sent.
        "program": Markup("\n") + escape(fields.get("train_py", "")),
        "wrong": wrong,
        "row": _row(standing, fields),
        "slots": [ALL, *map(str, sorted({*_known(state), *state.steering.held}))],
        "limits": [(name, _in_force(state, name)) for name in LIMITS],
        "targets": sorted(set(rollback_targets(state))) if verb == "rollback" else [],
        "longest": {"reason": REASON_CHARACTERS, "instruction": INSTRUCTION_CHARACTERS},
    }


def _row(standing: Standing, fields: Fields) -> Row | None:
    """The experiment that it is about."""
    try:
        number = whole_number(fields, "experiment")
    except UserError:
        return None
    return standing.rows[number] if number < len(standing.rows) else None


def _known(state: ResearchState) -> range:
    """All slots, if the session has said how many; else those that were used."""
    told = state.session.settings.get("slots") if state.session else None
    return range(slots_of(state)) if told else range(max(state.slots, default=0) + 1)


def _in_force(state: ResearchState, name: str) -> str:
    value = state.limit(name)
    return "none" if value is None else f"{value:,g}"


def overview(standing: Standing) -> Context:
    """What was asked for, what holds and what was answered, for the page of now."""
    return {
        "asked_for": list(_asked_for(standing)),
        "answers": list(reversed(standing.answers)),
        "anytime": [(verb, CONTROLS[verb].title) for verb in ANYTIME],
    }


def _asked_for(standing: Standing) -> Iterator[tuple[str, str]]:
    yield from steering.waiting(standing.state, requests.waiting(standing.home))
    yield from steering.lines(standing.state)
