"""What persons asked for, in words, JSON and Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from controller.core.events import AnyEvent, RolledBack, Steered, SteeringRefused
from controller.core.state import ResearchState
from controller.core.steering_request import SteeringRequest
from controller.core.untrusted import clean_line
from controller.views.costs import moment

Json = Any
"""What `json.dumps` takes."""


def as_json(state: ResearchState) -> dict[str, Json]:
    """What is still to be done of it, and what holds."""
    steering = state.steering
    return {
        "instructions": [_asked(one) for one in steering.instructions],
        "queue": [_asked(one) for one in steering.queue],
        "killed": [_asked(one) for one in steering.killed.values()],
        "held": [_asked(one) for _, one in sorted(steering.held.items())],
        "rollback": _asked(steering.rollback) if steering.rollback else None,
        "limits": dict(steering.limits),
        "agent": steering.agent,
    }


def _asked(event: Steered) -> Json:
    return event.model_dump(exclude={"event", "limits", "agent", "train_sha256"}, exclude_defaults=True)


def lines(state: ResearchState) -> Iterator[tuple[str, str]]:
    """For `status`, as names and values; nothing if nobody asked for anything."""
    steering = state.steering
    for one in steering.instructions:
        yield "instruction", f"for the next question, {_who(one)}: {clean_line(one.text)}"
    for one in steering.queue:
        yield "queued", f"{clean_line(one.text)}, {_who(one)}"
    for number, one in sorted(steering.killed.items()):
        yield "to be killed", f"experiment {number}, {_who(one)}"
    for slot, one in sorted(steering.held.items()):
        yield "paused", f"slot {slot}, {_who(one)}"
    if (back := steering.rollback) is not None:
        yield "rollback", f"to experiment {back.target}, {_who(back)}"
    if steering.limits:
        changed = ", ".join(f"{name} {_limit(value)}" for name, value in steering.limits.items())
        yield "limits changed", clean_line(changed)
    if steering.agent is not None:
        yield "agent changed", clean_line(steering.agent)


def waiting(state: ResearchState, requests: Iterable[SteeringRequest]) -> Iterator[tuple[str, str]]:
    """The requests that nobody has answered yet, in the words that the answer would have."""
    for one in requests:
        if one.id not in state.steering.heard:
            text = f"experiment {one.target} again" if one.verb == "requeue" else one.text
            yield "asked for", f"{sentence(one.granted(text))}; not answered yet"


def _who(one: Steered) -> str:
    why = f", {clean_line(one.reason)}" if one.reason else ""
    return f"by {clean_line(one.by)} at {moment(one.at)}{why}"


def _limit(value: float | None) -> str:
    return "none" if value is None else f"{value:g}"


def sentence(event: AnyEvent) -> str | None:
    """One line about a request that was answered, or about its effect; None for other events."""
    match event:
        case SteeringRefused():
            return f"{clean_line(event.by)} asked for {event.verb}: refused: {clean_line(event.because)}"
        case RolledBack():
            return f"the frontier is experiment {event.target} again"
        case Steered():
            why = f" ({clean_line(event.reason)})" if event.reason else ""
            return f"{clean_line(event.by)}: {_what(event)}{why}"
        case _:
            return None


def _what(event: Steered) -> str:
    match event.verb:
        case "instruct":
            return f"instructs the agent: {clean_line(event.text)}"
        case "queue" | "requeue":
            return f"queues {clean_line(event.text)}"
        case "kill":
            return f"kills experiment {event.target}"
        case "rollback":
            return f"goes back to experiment {event.target}"
        case "hold":
            return f"pauses slot {event.slot}"
        case "release":
            return f"lets slot {event.slot} go on"
        case "limit":
            changed = (f"{name} to {_limit(value)}" for name, value in event.limits.items())
            return f"sets the limit on {clean_line(', '.join(changed))}"
        case "agent":
            return f"has {clean_line(event.agent)} asked from now on"
