"""What the machine was like during a run, and what the loop waits for, in words."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from controller.core.state import Noise, Pause, ResearchState, SlotState
from controller.core.untrusted import clean_line
from controller.core.values import Conditions, CpuConditions, GpuConditions
from controller.views.costs import moment

Json = Any
"""What `json.dumps` takes."""

_GIB = 1024**3


def noise_json(state: ResearchState) -> Json:
    """What the first experiment waits for that does; null if none does."""
    return next((_noise_json(slot) for _, slot in sorted(state.slots.items()) if slot.noise), None)


def _noise_json(slot: SlotState) -> Json:
    noise = slot.noise
    assert noise is not None
    return {
        "experiment": slot.experiment,
        **noise.disturbance.model_dump(mode="json"),
        "since": noise.since,
        "until": noise.until,
        "looks": noise.looks,
    }


def slots_json(state: ResearchState) -> Json:
    """Every slot: its number, its open experiment, how far that has come, and what it waits for."""
    return [
        {
            "slot": number,
            "experiment": slot.experiment,
            "phase": state.experiments[slot.experiment].phase if slot.experiment is not None else None,
            "faults": slot.faults,
            "pause": pause_json(slot.pause),
            "held": number in state.steering.held,
            "noise": _noise_json(slot) if slot.noise else None,
        }
        for number, slot in sorted((state.slots | _held(state)).items())
    ]


def _held(state: ResearchState) -> dict[int, SlotState]:
    """Slots that were never used because a person has paused them from the beginning."""
    return {number: SlotState() for number in state.steering.held if number not in state.slots}


def waiting(noise: Noise) -> str:
    """One line for people."""
    again = f", looked at again at {moment(noise.until)}" if noise.until else ""
    since, detail = moment(noise.since), _words(noise.disturbance.detail)
    return f"for the slot to be undisturbed since {since}{again}: {detail}"


def paused(pause: Pause) -> str:
    """One line for people about a pause that lasts."""
    event = pause.event
    what = {
        "person": f"paused by {clean_line(event.by) or 'somebody'}",
        "disk": "waiting for room on the disk",
        "infrastructure": "waiting for the machine",
    }[event.why]
    again = f", tried again at {moment(event.until)}" if event.until else ""
    reason = f": {_words(event.reason)}" if event.reason else ""
    return f"{what} since {moment(pause.since)}{again}{reason}"


def pause_json(pause: Pause | None) -> Json:
    """The same; null while there is none."""
    if pause is None:
        return None
    return {**pause.event.model_dump(exclude={"event"}), "since": pause.since}


def lines(conditions: Conditions | None) -> Iterator[tuple[str, str]]:
    """For `show`, as names and values; nothing for a run that nobody watched."""
    if conditions is None:
        return
    if conditions.cpu is not None:
        yield "cpu", _cpu(conditions.cpu)
    if conditions.gpu is not None:
        yield "gpu", _gpu(conditions.gpu)
    for found in conditions.disturbances:
        yield "disturbed", _words(found.detail)


def _cpu(cpu: CpuConditions) -> str:
    return (
        f"{cpu.ours:.0%} used by us, {cpu.others:.0%} by others, "
        f"{cpu.contended:.0%} of it all while no CPU was idle; watched for {cpu.seconds:.0f} s"
    )


def _gpu(gpu: GpuConditions) -> str:
    told = [
        _pair(gpu.temperature_mean, gpu.temperature_max, "°C", "at most"),
        _pair(gpu.sm_clock_mean, gpu.sm_clock_min, "MHz", "at least"),
        _pair(gpu.power_mean, gpu.power_max, "W", "at most"),
        *(f"{reason} {share:.0%}" for reason, share in gpu.throttled.items()),
        _memory(gpu),
        f"lost: {_words(gpu.lost)}" if gpu.lost else "",
        f"{gpu.samples} samples",
    ]
    return ", ".join(word for word in told if word)


def _memory(gpu: GpuConditions) -> str:
    used = [bytes_ for bytes_ in (gpu.foreign_bytes, gpu.left_bytes) if bytes_ is not None]
    return f"{max(used) / _GIB:.1f} GiB used by others" if used else ""


def _pair(mean: float | None, edge: float | None, unit: str, which: str) -> str:
    return "" if mean is None or edge is None else f"{mean:.0f} {unit} ({which} {edge:.0f})"


def _words(detail: str) -> str:
    return clean_line(detail, 500)
