"""What happens now: the slots, what the agent thinks about, and what is waited for."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from controller.core.experiment import Experiment, Phase
from controller.core.state import ResearchState, SlotState
from controller.core.untrusted import clean_line
from controller.store import pause
from controller.store.runs import Runs
from controller.views import certificates, conditions, costs, curves, facts, spread
from controller.views.tables import counts
from controller.web import steering
from controller.web.follower import Standing
from controller.web.live import last_lines

_LATEST = 8
Context = dict[str, Any]


@dataclass(frozen=True)
class Pulse:
    """Whether a controller is at work in the home."""

    running: bool
    overdue_seconds: float
    sentence: str


def context(standing: Standing, pulse: Pulse, now: dt.datetime) -> Context:
    """For the template `now.html`."""
    state = standing.state
    slots = sorted(state.slots.items()) or [(0, SlotState())]
    return {
        "figures": list(figures(state, now)),
        "slots": [_slot(standing, number, slot, now) for number, slot in slots],
        "proposals": [_proposal(state, number) for number in sorted(state.proposals)],
        "waits": list(waits(standing, pulse, now)),
        "latest": [standing.rows[number] for number in reversed(state.order[-_LATEST:])],
        "frontier": state.frontier.experiment if state.frontier else None,
        **steering.overview(standing),
    }


def figures(state: ResearchState, now: dt.datetime) -> Iterator[tuple[str, str, str]]:
    """Name, value and a note of what matters most."""
    frontier, baseline = state.frontier, state.baseline_bpb
    if frontier is not None and frontier.val_bpb is not None:
        gain = f"{baseline - frontier.val_bpb:.6f} better than the baseline" if baseline is not None else ""
        yield "best val_bpb", f"{frontier.val_bpb:.6f}", f"experiment {frontier.experiment}; {gain}"
    gained, kept = certificates.total(state), len(state.chain)
    since = f"{kept} keeps since are provisional" if kept else "no keep is provisional"
    if gained is not None:
        yield "certified gain", f"{gained.gain:.6f}", since
    elif state.certified is not None:
        yield "certified gain", "none yet", since
    if (measured := state.pool.spread) is not None:
        low, high = measured.interval()
        yield "chance (σ)", f"{measured.sigma:.6f}", f"95 % interval {low:.6f} to {high:.6f}"
    most = state.limit("experiments")
    of = f"of {most:,.0f}: " if most is not None else ""
    yield "experiments", f"{state.verdicts.total():,}", of + counts(state)
    if (spent := state.spending.total).calls:
        today = costs.money(state.spending.on(now.date().isoformat()))
        yield "spent", f"${spent.usd:,.2f}", f"today {today}; {spent.calls:,} requests"


def _slot(standing: Standing, number: int, slot: SlotState, now: dt.datetime) -> Context:
    state, watched = standing.state, standing.conditions.get(number)
    experiment = state.experiments[slot.experiment] if slot.experiment is not None else None
    return {
        "number": number,
        "is_held": number in state.steering.held,
        "possible": [] if experiment is None else steering.possible(state, experiment.number),
        "run": None if experiment is None else _run(standing, experiment, now),
        "notes": list(_notes(slot)),
        "machine": list(conditions.lines(watched[1])) if watched else [],
        "machine_of": watched[0] if watched else None,
    }


def _run(standing: Standing, experiment: Experiment, now: dt.datetime) -> Context:
    live = standing.live.get(experiment.number)
    curve = live[1].curve if live else experiment.outcome.curve if experiment.outcome else None
    left = until = None
    if experiment.phase is Phase.TRAINING and experiment.started_at and experiment.budget_seconds:
        end = dt.datetime.fromisoformat(experiment.started_at) + dt.timedelta(
            seconds=experiment.budget_seconds
        )
        left, until = max(0.0, (end - now).total_seconds()), end.isoformat()
    return {
        "number": experiment.number,
        "phase": str(experiment.phase),
        "description": facts.description(experiment),
        "attempt": experiment.attempt,
        "budget": experiment.budget_seconds,
        "since": experiment.started_at or experiment.opened_at,
        "left": left,
        "until": until,
        "sketch": curves.sketch(curve) if curve else "",
        "step": curve.step if curve else None,
        "log": last_lines(Runs(standing.home).folder(experiment.number) / "run.log"),
    }


def _notes(slot: SlotState) -> Iterator[str]:
    if slot.pause is not None:
        yield conditions.paused(slot.pause)
    if slot.noise is not None:
        yield f"waits {conditions.waiting(slot.noise)}"
    if slot.faults:
        yield f"{slot.faults} faults of the machine in a row; the latest: {clean_line(slot.fault, 500)}"


def _proposal(state: ResearchState, number: int) -> Context:
    proposal = state.proposals[number]
    calls = [call for call in state.spending.open.values() if call.request.proposal == number]
    return {
        "number": number,
        "agent": clean_line(proposal.agent),
        "purpose": proposal.purpose,
        "asked_at": proposal.asked_at,
        "made": proposal.is_made,
        "description": clean_line(proposal.description),
        "hypothesis": clean_line(proposal.hypothesis, 1000),
        "about": _about(proposal.fixes, proposal.merges, proposal.repeats),
        "calls": [f"call {call.request.call} to {clean_line(call.request.model)}" for call in calls],
        "rehearsed": proposal.rehearsals[-1].result if proposal.rehearsals else None,
    }


def _about(fixes: int | None, merges: int | None, repeats: int | None) -> str:
    told = {"repairs": fixes, "merges": merges, "repeats": repeats}
    return ", ".join(f"{verb} experiment {number}" for verb, number in told.items() if number is not None)


def waits(standing: Standing, pulse: Pulse, now: dt.datetime) -> Iterator[tuple[str, str]]:
    """What is waited for and why, and what a person should look at."""
    state = standing.state
    yield "controller", pulse.sentence
    if wrong := facts.baseline_failed(state):
        yield "baseline", f"failed, so there is no score to beat: {wrong}"
    if state.pause is not None:
        yield "pause", conditions.paused(state.pause)
    elif (wish := pause.read(standing.home)).paused:
        by = f" by {wish.by}" if wish.by else ""
        yield "pause", f"asked for{by}; it begins when nothing runs"
    yield from (line for line in costs.lines(state, now.date().isoformat()) if line[0] == "away")
    if (drift := spread.drifted(state)) is not None:
        yield "drift", drift
    if state.certificate is not None:
        yield from (line for line in certificates.lines(state) if line[0] == "certificate")
    if state.stopped:
        yield "stopped", clean_line(state.stopped, 500)
    if not state.open and not state.proposals and pulse.running and not state.stopped:
        agent = clean_line(state.session.agent) if state.session else "the agent"
        yield "proposal", f"waited for, by {agent}"
