"""Certificates in words, JSON and Markdown."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from controller.core.state import ResearchState
from controller.core.values import Evidence


def as_json(state: ResearchState) -> dict[str, Any]:
    """What is certified, what is provisional, and what is being found out."""
    certified, latest = state.certified, state.certificates[-1] if state.certificates else None
    gained = certified_gain(state)
    return {
        "certified": certified.model_dump() if certified else None,
        "gain": gained,
        "provisional": list(state.chain),
        "taken_back": sorted(state.fallen),
        "open": None
        if state.certificate is None
        else {
            "certificate": state.certificate.number,
            "base": state.certificate.base,
            "head": state.certificate.head,
            "pairs": len(state.certificate.pairs),
        },
        "latest": latest.model_dump(mode="json") if latest else None,
    }


def certified_gain(state: ResearchState) -> float | None:
    """What all certified chains brought, bits per byte; None if none was certified."""
    gains = [decided.evidence.gain for decided in state.certificates if decided.outcome == "certified"]
    return sum(gains) if gains else None


def lines(state: ResearchState) -> Iterator[tuple[str, str]]:
    """Name and value of what is to be said of it."""
    if state.certified is None:
        return
    gain = certified_gain(state)
    if gain is None:
        yield "certified", "nothing yet; every gain so far may be luck"
    else:
        yield "certified", f"a gain of {gain:.6f}, up to experiment {state.certified.experiment}"
    if state.chain:
        yield "provisional", f"{_keeps(len(state.chain))} since: experiments {_listed(state.chain)}"
    if state.fallen:
        yield (
            "taken back",
            f"{_keeps(len(state.fallen))} that did not hold: experiments {_listed(state.fallen)}",
        )
    if (certificate := state.certificate) is not None:
        both, pairs = f"{certificate.head} against {certificate.base}", len(certificate.pairs)
        yield "certificate", f"experiment {both}, {pairs} pairs so far"


def _keeps(number: int) -> str:
    return f"{number} keeps" if number > 1 else "1 keep"


def _listed(numbers: Any) -> str:
    return ", ".join(map(str, sorted(numbers)))


def words(evidence: Evidence) -> str:
    """The figures of one certificate in a line."""
    interval = (
        f" (95 % interval {evidence.low:+.6f} to {evidence.high:+.6f})"
        if evidence.low is not None and evidence.high is not None
        else ""
    )
    return f"gain {evidence.gain:+.6f}{interval}, evidence {evidence.e_value:.3g}, {evidence.pairs} pairs"
