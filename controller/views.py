"""What `status`, `log` and `show` say, from the state alone: as JSON-able values and for a terminal.

Descriptions, details and diffs were written by an agent or a run. Every string is made safe on its way out,
and a number JSON has no word for (a run may claim `nan`) becomes null. The hold-out score is in none of it:
who picks experiments by what stands here must not pick by that one. `report` has a place of its own for it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from controller import audit, costs, pause
from controller.core.events import Record
from controller.core.model import Verdict
from controller.core.state import Experiment, ResearchState
from controller.core.untrusted import clean_line, clean_text

STYLES = {
    Verdict.KEEP: "bold green",
    Verdict.DISCARD: "default",
    Verdict.CRASH: "red",
    Verdict.REJECT: "magenta",
}

_LAST = 5
_TEXT_LIMIT = 200_000
_COMMIT = 7

Json = Any
"""What `json.dumps` takes with `allow_nan=False`."""


def status_json(state: ResearchState, today: str) -> Json:
    """Where the effort stands: frontier, counts, the open experiment, the last few verdicts, the money.

    `today` is the UTC day whose spending is shown, `2026-11-21`.
    """
    frontier, session = state.frontier, state.session
    baseline = baseline_bpb(state)
    best = frontier.val_bpb if frontier else None
    return _plain(
        {
            "tag": state.tag,
            "branch": f"autoresearch/{state.tag}" if state.tag else None,
            "frontier": frontier.model_dump() if frontier else None,
            "baseline_bpb": baseline,
            "improvement_bpb": baseline - best if baseline is not None and best is not None else None,
            "experiments": len(state.finished),
            "verdicts": {verdict.value: state.count(verdict) for verdict in Verdict},
            "causes": {str(cause): count for cause, count in state.causes.items()},
            "open": _row(state, state.open) if state.open else None,
            "last": [_row(state, experiment) for experiment in state.finished[-_LAST:]],
            "agent": session.agent if session else None,
            "absence": costs.absence_json(state),
            "pause": pause.as_json(state.pause),
            "prepared": clean_line(state.prepared.description) if state.prepared else None,
            "spending": costs.spending_json(state, today),
            "budget_seconds": session.budget_seconds if session else None,
            "provenance": session.provenance.model_dump() if session else None,
            "stopped": state.stopped,
            "head": state.head,
        }
    )


def log_json(state: ResearchState) -> list[Json]:
    """Every experiment, the open one included, oldest first."""
    return [_plain(_row(state, experiment)) for experiment in state.experiments]


def show_json(
    state: ResearchState,
    number: int,
    *,
    records: Sequence[Record],
    diff: str,
    log_excerpt: str,
    audited: bool = False,
) -> Json:
    """All there is to know about one experiment; `records` is its trail, told in full if `audited`."""
    experiment = state.experiments[number]
    proposal = experiment.proposal
    return _plain(
        _row(state, experiment)
        | {
            "hypothesis": proposal.hypothesis,
            "parameters": proposal.parameters,
            "train_sha256": proposal.train_sha256,
            "outcome": experiment.outcome.model_dump() if experiment.outcome else None,
            "score": experiment.score.model_dump(exclude=audit.HOLDOUT) if experiment.score else None,
            "refusal": _refusal(experiment),
            "quarantine": experiment.quarantine.model_dump(exclude={"score": audit.HOLDOUT})
            if experiment.quarantine
            else None,
            "claim_mismatch": experiment.claim_mismatch.model_dump() if experiment.claim_mismatch else None,
            "rule": experiment.decision.rule if experiment.decision else None,
            "provenance": experiment.provenance.model_dump() if experiment.provenance else None,
            "diff": diff,
            "log": log_excerpt,
            "records": [
                record.model_dump(exclude={"data": {"score": audit.HOLDOUT}})
                for record in records
                if record.experiment == number
            ],
        }
        | ({"audit": audit.as_json(records)} if audited else {})
    )


def status(state: ResearchState, today: str) -> RenderableType:
    """The same as `status_json`, for people."""
    facts = Table.grid(padding=(0, 2))
    facts.add_column(style="dim", no_wrap=True)
    facts.add_column()
    for name, value in _facts(state, today):
        facts.add_row(Text(name), value)
    if not state.experiments:
        return facts
    return Group(facts, Text(), _table(state, state.experiments[-_LAST:]))


def log(state: ResearchState) -> RenderableType:
    """A table of every experiment."""
    return _table(state, state.experiments) if state.experiments else Text("No experiment has been run yet.")


def show(
    state: ResearchState,
    number: int,
    *,
    records: Sequence[Record],
    diff: str,
    log_excerpt: str,
    audited: bool = False,
) -> RenderableType:
    """The same as `show_json`, for people."""
    experiment = state.experiments[number]
    trail = audit.render(records) if audited else _journal([r for r in records if r.experiment == number])
    return Group(
        _title(f"experiment {number}"),
        _details(state, experiment),
        _title("change"),
        diff_text(diff),
        _title("run.log, excerpt"),
        Text(clean_text(log_excerpt, _TEXT_LIMIT)),
        _title("audit trail" if audited else "journal"),
        trail,
    )


def _journal(records: Sequence[Record]) -> Table:
    table = Table.grid(padding=(0, 2))
    for record in records:
        name, link = Text(record.data.event), Text(record.hash[:12], style="dim")
        table.add_row(str(record.seq), Text(record.time), name, link)
    return table


def baseline_bpb(state: ResearchState) -> float | None:
    """The first score there is, from which improvement is counted."""
    return state.baseline_bpb


def verdict_text(experiment: Experiment) -> Text:
    """Verdict, cause and marks in words: `keep`, `crash oom`; the phase while there is no verdict."""
    if experiment.verdict is None:
        return Text(str(experiment.phase), style="cyan")
    words = [str(word) for word in (experiment.verdict, experiment.cause) if word is not None]
    text = Text(" ".join(words), style=STYLES[experiment.verdict])
    for mark in marks(experiment):
        text.append(f" {mark}", style="yellow")
    return text


def marks(experiment: Experiment) -> list[str]:
    """What is odd about its score, a word each."""
    odd = {"quarantined": experiment.quarantine, "claim-mismatch": experiment.claim_mismatch}
    return [word for word, event in odd.items() if event is not None]


def description(experiment: Experiment) -> str:
    """The agent's own line about its proposal, and who stood in for whom, safe to print."""
    return clean_line(experiment.description)


def diff_text(diff: str) -> Text:
    """A unified diff in colours."""
    text = Text()
    for line in clean_text(diff, _TEXT_LIMIT).split("\n"):
        style = {"+": "green", "-": "red", "@": "cyan"}.get(line[:1], "")
        text.append(line + "\n", style="bold" if line.startswith(("+++", "---")) else style)
    text.rstrip()
    return text


def _row(state: ResearchState, experiment: Experiment) -> dict[str, Json]:
    score, proposal = experiment.score, experiment.proposal
    return {
        "experiment": experiment.number,
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
        "parent": proposal.parent,
        "commit": experiment.commit,
        "attempt": experiment.attempt,
        "proposed_at": experiment.proposed_at,
        "started_at": experiment.started_at,
        "finished_at": experiment.finished_at,
        "budget_seconds": experiment.budget_seconds,
        "seconds": experiment.outcome.seconds if experiment.outcome else None,
        "spending": costs.spent_json(state.spending.of(experiment.number)),
    }


def effect(experiment: Experiment) -> float | None:
    """Score minus the score it had to beat, bits per byte; negative is better."""
    if experiment.score is None or experiment.frontier_bpb is None:
        return None
    return experiment.score.val_bpb - experiment.frontier_bpb


def _refusal(experiment: Experiment) -> Json:
    judgement = experiment.judgement
    return judgement.model_dump() if judgement is not None and experiment.score is None else None


def _word(value: object | None) -> str | None:
    return None if value is None else str(value)


def _plain(value: Json) -> Json:
    if isinstance(value, str):
        return clean_text(value, _TEXT_LIMIT)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {clean_line(str(key)): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value


def _facts(state: ResearchState, today: str) -> Iterable[tuple[str, Text]]:
    yield "effort", Text(f"autoresearch/{clean_line(state.tag)}" if state.tag else "not started")
    frontier, baseline = state.frontier, baseline_bpb(state)
    if frontier and frontier.val_bpb is not None and baseline is not None:
        best = Text(f"val_bpb {frontier.val_bpb:.6f}", style="bold green")
        where = f"  experiment {frontier.experiment}, commit {frontier.commit[:_COMMIT]}"
        best.append(where, style="default")
        yield "best", best
        yield "baseline", Text(f"val_bpb {baseline:.6f}  improved by {baseline - frontier.val_bpb:.6f}")
    counts = ", ".join(f"{state.count(verdict)} {verdict}" for verdict in Verdict)
    yield "experiments", Text(f"{len(state.finished)} finished: {counts}")
    if failed := state.causes.most_common():
        yield "causes", Text(", ".join(f"{count} {cause}" for cause, count in failed))
    if state.open:
        yield "open", Text(f"experiment {state.open.number}, {state.open.phase}: {description(state.open)}")
    if state.session:
        session = state.session
        yield "agent", Text(clean_line(session.agent))
        yield "budget", Text(f"{session.budget_seconds:g} s on {clean_line(session.provenance.device)}")
    for name, value in costs.lines(state, today):
        yield name, Text(value)
    if state.pause:
        yield "pause", Text(pause.line(state.pause), style="yellow")
    if state.stopped:
        yield "stopped", Text(clean_line(state.stopped))
    yield "head", Text(state.head)


def _table(state: ResearchState, experiments: Sequence[Experiment]) -> Table:
    costly = state.spending.total.calls > 0  # an agent that asks nobody needs no column
    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in ("#", "val_bpb", "effect", "seconds", *(("cost",) if costly else ())):
        table.add_column(name, justify="right", no_wrap=True)
    for name in ("verdict", "commit"):
        table.add_column(name, no_wrap=True)
    table.add_column("description", overflow="fold")
    for experiment in experiments:
        score, change, outcome = experiment.score, effect(experiment), experiment.outcome
        table.add_row(
            str(experiment.number),
            f"{score.val_bpb:.6f}" if score else "",
            f"{change:+.6f}" if change is not None else "",
            f"{outcome.seconds:.1f}" if outcome else "",
            *((f"${state.spending.of(experiment.number).usd:.2f}",) if costly else ()),
            verdict_text(experiment),
            (experiment.commit or "")[:_COMMIT],
            Text(description(experiment)),
        )
    return table


def _details(state: ResearchState, experiment: Experiment) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    table.add_row("verdict", verdict_text(experiment))
    for name, value in _detail_lines(state, experiment):
        table.add_row(name, Text(clean_text(value, _TEXT_LIMIT)))
    return table


def _detail_lines(state: ResearchState, experiment: Experiment) -> Iterable[tuple[str, str]]:
    proposal, outcome, score = experiment.proposal, experiment.outcome, experiment.score
    yield "description", description(experiment)
    yield "hypothesis", proposal.hypothesis
    if proposal.expected_effect is not None:
        yield "expected", f"{proposal.expected_effect:+g} bits per byte"
    if proposal.idea:
        yield "idea", proposal.idea
    yield "agent", proposal.agent
    if proposal.stands_in_for is not None:
        yield "in place of", proposal.stands_in_for
    if (spent := state.spending.of(experiment.number)).calls:
        yield "cost", f"{costs.money(spent)}, {spent.calls} requests, {costs.tokens(spent.usage)}"
    if proposal.fixes is not None:
        yield "repairs", f"experiment {proposal.fixes}"
    yield "from", proposal.parent
    if experiment.decision:
        yield "rule", experiment.decision.rule
    if score:
        change = effect(experiment)
        against = f" ({change:+.6f} against {experiment.frontier_bpb:.6f})" if change is not None else ""
        sure = "confirmed" if score.confirmed else "not confirmed, and not kept"
        yield "val_bpb", f"{score.val_bpb:.6f}{against}, {sure}"
    if quarantine := experiment.quarantine:
        yield "quarantined", f"{quarantine.reason}; the first score was {quarantine.score.val_bpb:.6f}"
    if refusal := _refusal(experiment):
        yield "refused", f"{refusal['cause']}: {refusal['detail']}"
    if outcome:
        limit = f" of {experiment.budget_seconds:g} s" if experiment.budget_seconds else ""
        ended = f"exit code {outcome.exit_code}, attempt {experiment.attempt}"
        yield "ran", f"{outcome.seconds:.1f} s{limit}, {ended}"
        if outcome.detail:
            yield "detail", outcome.detail
        claims = {key: value for key, value in outcome.claim.model_dump().items() if value is not None}
        yield "claimed", ", ".join(f"{key} {value:g}" for key, value in claims.items()) or "nothing"
    if mismatch := experiment.claim_mismatch:
        yield "mismatch", f"val_bpb {mismatch.claim:g} was claimed; {mismatch.bound:.6f} off would be usual"
    if experiment.commit:
        yield "commit", experiment.commit
    if experiment.provenance:
        for key, value in experiment.provenance.model_dump().items():
            if value:
                yield key, str(value)


def _title(text: str) -> Rule:
    return Rule(Text(text, style="bold"), align="left", style="dim")
