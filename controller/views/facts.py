"""What `status`, `log` and `show` say, from the state alone, as JSON-able values.

Descriptions, details and diffs were written by an agent or a run. Every string is made safe on its way out,
and a number JSON has no word for (a run may claim `nan`) becomes null. The hold-out score is in none of it:
who picks experiments by what stands here must not pick by that one. `report` has a place of its own for it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from controller.core import obstacle
from controller.core.events import Record
from controller.core.experiment import Experiment
from controller.core.hardware.disturbance import spoiling
from controller.core.keeps import keeps_of
from controller.core.proposal import Proposal
from controller.core.state import ResearchState
from controller.core.untrusted import clean_line, clean_text
from controller.core.values import Cause, Verdict
from controller.views import audit, certificates, conditions, costs, spread, steering

TEXT_LIMIT = 200_000
"""Characters of one text that are shown."""

_LAST = 5

Json = Any
"""What `json.dumps` takes with `allow_nan=False`."""


def status(state: ResearchState, today: str) -> Json:
    """Where the effort stands: frontier, counts, the open experiment, the last few verdicts, the money.

    `today` is the UTC day whose spending is shown, `2026-11-21`.
    """
    frontier, session = state.frontier, state.session
    baseline = state.baseline_bpb
    best = frontier.val_bpb if frontier else None
    made = [known for _, known in sorted(state.proposals.items()) if known.is_made]
    return _plain(
        {
            "tag": state.tag,
            "branch": f"autoresearch/{state.tag}" if state.tag else None,
            "frontier": frontier.model_dump() if frontier else None,
            "baseline_bpb": baseline,
            "baseline_failed": baseline_failed(state) or None,
            "obstacle": state.obstacle.kind if state.obstacle else None,
            "improvement_bpb": baseline - best if baseline is not None and best is not None else None,
            "spread": spread.as_json(state),
            "certificates": certificates.as_json(state),
            "experiments": len(state.finished),
            "worked_seconds": state.worked_seconds,
            "limits": {name: state.limit(name) for name in ("experiments", "hours")},
            "replicates": state.replicates,
            "verdicts": {verdict.value: state.count(verdict) for verdict in Verdict},
            "causes": {str(cause): count for cause, count in state.causes.items()},
            "open": _row(state, state.open[0]) if state.open else None,
            "slots": conditions.slots_json(state),
            "last": [_row(state, experiment) for experiment in state.finished[-_LAST:]],
            "exposed": state.causes[Cause.EXPOSED],
            "fresh_rows_left": state.fresh_left,
            "agent": session.agent if session else None,
            "absence": costs.absence_json(state),
            "noise": conditions.noise_json(state),
            "pause": conditions.pause_json(state.pause),
            "steering": steering.as_json(state),
            "prepared": next((clean_line(known.description) for known in made), None),
            "proposals": [_proposal(known) for _, known in sorted(state.proposals.items())],
            "spending": costs.spending_json(state, today),
            "budget_seconds": session.budget_seconds if session else None,
            "provenance": session.provenance.model_dump() if session else None,
            "stopped": state.stopped,
            "head": state.head,
        }
    )


def baseline_failed(state: ResearchState) -> str:
    """Why an effort has no score to compare with, in words; empty if it has one, or has only just begun."""
    if not state.unscored:
        return ""
    baseline, refused = state.experiments[0], refusal(state.experiments[0])
    detail = refused["detail"] if refused else baseline.outcome.detail if baseline.outcome else ""
    found = obstacle.of(baseline)
    advice = f" {found.remedy}" if found else ""
    return f"{baseline.cause}: {clean_line(detail, 300).rstrip('.')}.{advice}"


def log(state: ResearchState) -> list[Json]:
    """Every experiment, the open one included, oldest first."""
    return [_plain(_row(state, experiment)) for experiment in state.experiments]


@dataclass(frozen=True)
class Exhibit:
    """One experiment and what there is about it outside the state."""

    state: ResearchState
    number: int
    records: Sequence[Record] = ()
    """Its lines of the journal; if `audited`, everything that led to it and came of it."""
    diff: str = ""
    log_excerpt: str = ""
    audited: bool = False

    @property
    def experiment(self) -> Experiment:
        return self.state.experiments[self.number]

    @property
    def own_records(self) -> list[Record]:
        return [record for record in self.records if record.experiment == self.number]


def show(shown: Exhibit) -> Json:
    """All there is to know about one experiment."""
    experiment, proposal = shown.experiment, shown.experiment.proposal
    return _plain(
        _row(shown.state, experiment)
        | {
            "hypothesis": proposal.hypothesis,
            "parameters": proposal.parameters,
            "train_sha256": experiment.train_sha256,
            "seed": experiment.seed,
            "ran_sha256": experiment.ran_sha256,
            "outcome": experiment.outcome.model_dump() if experiment.outcome else None,
            "score": experiment.score.model_dump(exclude=audit.HOLDOUT) if experiment.score else None,
            "refusal": refusal(experiment),
            "quarantine": experiment.quarantine.model_dump(exclude={"score": audit.HOLDOUT})
            if experiment.quarantine
            else None,
            "claim_mismatch": experiment.claim_mismatch.model_dump() if experiment.claim_mismatch else None,
            "rule": experiment.decision.rule if experiment.decision else None,
            "provenance": experiment.provenance.model_dump() if experiment.provenance else None,
            "diff": shown.diff,
            "log": shown.log_excerpt,
            "records": [
                record.model_dump(exclude={"data": {"score": audit.HOLDOUT}}) for record in shown.own_records
            ],
        }
        | ({"audit": audit.as_json(shown.records)} if shown.audited else {})
    )


def effect(experiment: Experiment) -> float | None:
    """Score minus the score it had to beat, bits per byte; negative is better. None for a replicate."""
    if experiment.score is None or experiment.frontier_bpb is None or experiment.repeats is not None:
        return None
    return experiment.score.val_bpb - experiment.frontier_bpb


def marks(experiment: Experiment) -> list[str]:
    """What is odd about its score, a word each."""
    odd = {
        "quarantined": experiment.quarantine,
        "claim-mismatch": experiment.claim_mismatch,
        "disturbed": spoiling(experiment.outcome) if experiment.outcome else None,
    }
    return [word for word, event in odd.items() if event is not None]


def description(experiment: Experiment) -> str:
    """The agent's own line about its proposal, and who stood in for whom, safe to print."""
    return clean_line(experiment.description)


def refusal(experiment: Experiment) -> Json:
    """What the judge found instead of a score, if it did."""
    judgement = experiment.judgement
    return judgement.model_dump() if judgement is not None and experiment.score is None else None


def _proposal(proposal: Proposal) -> dict[str, Json]:
    """One that is neither an experiment yet nor at an end."""
    return {
        "proposal": proposal.number,
        "agent": proposal.agent,
        "purpose": proposal.purpose,
        "asked_at": proposal.asked_at,
        "made": proposal.is_made,
        "description": clean_line(proposal.description),
        "fixes": proposal.fixes,
        "merges": proposal.merges,
        "repeats": proposal.repeats,
    }


def _row(state: ResearchState, experiment: Experiment) -> dict[str, Json]:
    score, proposal = experiment.score, experiment.proposal
    return {
        "experiment": experiment.number,
        "proposal": proposal.number,
        "slot": experiment.slot,
        "phase": str(experiment.phase),
        "verdict": _word(experiment.verdict),
        "cause": _word(experiment.cause),
        "marks": marks(experiment),
        "val_bpb": score.val_bpb if score else None,
        "frontier_bpb": experiment.frontier_bpb,
        "effect_bpb": effect(experiment),
        "description": description(experiment),
        "agent": proposal.agent,
        "stands_in_for": proposal.stands_in_for,
        "idea": proposal.idea,
        "expected_effect": proposal.expected_effect,
        "fixes": proposal.fixes,
        "merges": proposal.merges,
        "repeats": proposal.repeats,
        "certificate": proposal.certificate,
        "standing": keeps_of(state).mark(experiment.number).strip() or None if experiment.commit else None,
        "parent": experiment.parent,
        "commit": experiment.commit,
        "attempt": experiment.attempt,
        "opened_at": experiment.opened_at,
        "started_at": experiment.started_at,
        "finished_at": experiment.finished_at,
        "budget_seconds": experiment.budget_seconds,
        "seconds": experiment.outcome.seconds if experiment.outcome else None,
        "spending": costs.spent_json(state.spending.of(proposal.number)),
    }


def _word(value: object | None) -> str | None:
    return None if value is None else str(value)


def _plain(value: Json) -> Json:
    if isinstance(value, str):
        return clean_text(value, TEXT_LIMIT)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {clean_line(str(key)): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value
