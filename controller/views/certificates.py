"""Certificates in words, JSON and Markdown."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

from controller.core.events import CertificateDecided, Record
from controller.core.plan import conclusion
from controller.core.state import ResearchState, apply
from controller.core.statistics.certificate import is_same


def as_json(state: ResearchState) -> dict[str, Any]:
    """What is certified, what is provisional, and what is being found out."""
    certified, latest = state.certified, state.certificates[-1] if state.certificates else None
    gained = total(state)
    return {
        "certified": certified.model_dump() if certified else None,
        "gain": asdict(gained) if gained else None,
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


@dataclass(frozen=True)
class Total:
    """What all certified chains brought together, bits per byte."""

    gain: float
    low: float | None
    """Ends of its 95 % interval; None if one of them has none."""
    high: float | None


def total(state: ResearchState) -> Total | None:
    """None if nothing is certified that a person has not taken back. Each chain was compared in runs of its
    own: errors add in squares."""
    good = [decided for decided in state.certificates if decided.outcome == "certified"]
    found = [decided.evidence for decided in good if decided.head not in state.fallen]
    if not found:
        return None
    gain = math.fsum(one.gain for one in found)
    if any(one.low is None or one.high is None for one in found):
        return Total(gain, None, None)
    reach = math.sqrt(math.fsum((one.gain - (one.low or 0.0)) ** 2 for one in found))
    return Total(gain, gain - reach, gain + reach)


def recomputed(records: Iterable[Record]) -> dict[int, bool]:
    """By certificate: whether the scores of its runs say by now what is on record."""
    state, agrees = ResearchState(), dict[int, bool]()
    for record in records:
        event, certificate = record.data, state.certificate
        if isinstance(event, CertificateDecided) and certificate is not None:
            again = conclusion(state, certificate, event.most_pairs)
            agrees[event.certificate] = (
                again is not None and again[0] == event.outcome and is_same(again[2], event.evidence)
            )
        apply(state, record)
    return agrees


def lines(state: ResearchState) -> Iterator[tuple[str, str]]:
    """Name and value of what is to be said of it."""
    if state.certified is None:
        return
    gained = total(state)
    if gained is None:
        yield "certified", "nothing yet; every gain so far may be luck"
    else:
        interval = f" (95 % interval {gained.low:.6f} to {gained.high:.6f})" if gained.low is not None else ""
        yield (
            "certified",
            f"a gain of {gained.gain:.6f}{interval}, up to experiment {state.certified.experiment}",
        )
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


def _listed(numbers: Iterable[int]) -> str:
    return ", ".join(map(str, sorted(numbers)))
