"""What `status`, `log` and `show` say on a terminal. What they say, and what not, is in views_json.py.

Descriptions, details and diffs were written by an agent or a run. Every string is made safe on its way out.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.console import Group, RenderableType
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from controller.core.events import Record
from controller.core.experiment import Experiment
from controller.core.state import ResearchState
from controller.core.untrusted import clean_line, clean_text
from controller.core.values import Cause, Verdict, Work
from controller.views import audit, certificates, conditions, costs, curves, spread, steering
from controller.views.facts import TEXT_LIMIT, Exhibit, baseline_failed, description, effect, marks, refusal

STYLES = {
    Verdict.KEEP: "bold green",
    Verdict.DISCARD: "default",
    Verdict.CRASH: "red",
    Verdict.REJECT: "magenta",
}

_LAST = 5
_COMMIT = 7
_ADVICE = "something carries what workers see to later runs; `glovebox show N` has the figures"
_USED_UP = "all were given to workers, so they are asked again; a larger corpus has more"


def status(state: ResearchState, today: str) -> RenderableType:
    """The same as `views_json.status`, for people."""
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


def show(shown: Exhibit) -> RenderableType:
    """The same as `views_json.show`, for people."""
    return Group(
        _title(f"experiment {shown.number}"),
        _details(shown.state, shown.experiment),
        _title("change"),
        diff_text(shown.diff),
        _title("run.log, excerpt"),
        Text(clean_text(shown.log_excerpt, TEXT_LIMIT)),
        _title("audit trail" if shown.audited else "journal"),
        audit.render(shown.records) if shown.audited else _journal(shown.own_records),
    )


def log_gone(state: ResearchState, number: int) -> str:
    """Why an experiment has no run.log any more; empty if it should have one."""
    if number >= state.logs_pruned or number in state.kept:
        return ""
    return "It was removed, on record, to keep within storage.log_bytes."


def _journal(records: Sequence[Record]) -> Table:
    table = Table.grid(padding=(0, 2))
    for record in records:
        name, link = Text(record.data.event), Text(record.hash[:12], style="dim")
        table.add_row(str(record.seq), Text(record.time), name, link)
    return table


def counts(state: ResearchState) -> str:
    """How the finished experiments ended: `3 keep, 9 discard, 0 crash, 0 reject; 4 replicates`."""
    verdicts = ", ".join(f"{state.count(verdict)} {verdict}" for verdict in Verdict)
    repeated = "1 replicate" if state.replicates == 1 else f"{state.replicates} replicates"
    return f"{verdicts}; {repeated}" if state.replicates else verdicts


def verdict_text(experiment: Experiment) -> Text:
    """Verdict, cause and marks in words: `keep`, `crash oom`; the phase while there is no verdict."""
    if experiment.verdict is None:
        return Text(str(experiment.phase), style="cyan")
    if experiment.cause is Cause.REPLICATE:
        return Text(str(experiment.cause), style="blue")
    words = [str(word) for word in (experiment.verdict, experiment.cause) if word is not None]
    text = Text(" ".join(words), style=STYLES[experiment.verdict])
    for mark in marks(experiment):
        text.append(f" {mark}", style="yellow")
    return text


def diff_text(diff: str) -> Text:
    """A unified diff in colours."""
    text = Text()
    for line in clean_text(diff, TEXT_LIMIT).split("\n"):
        style = {"+": "green", "-": "red", "@": "cyan"}.get(line[:1], "")
        text.append(line + "\n", style="bold" if line.startswith(("+++", "---")) else style)
    text.rstrip()
    return text


def _facts(state: ResearchState, today: str) -> Iterable[tuple[str, Text]]:
    yield "effort", Text(f"autoresearch/{clean_line(state.tag)}" if state.tag else "not started")
    frontier, baseline = state.frontier, state.baseline_bpb
    if frontier and frontier.val_bpb is not None and baseline is not None:
        best = Text(f"val_bpb {frontier.val_bpb:.6f}", style="bold green")
        where = f"  experiment {frontier.experiment}, commit {clean_line(frontier.commit)[:_COMMIT]}"
        best.append(where, style="default")
        yield "best", best
        yield "baseline", Text(f"val_bpb {baseline:.6f}  improved by {baseline - frontier.val_bpb:.6f}")
    for name, value in (*certificates.lines(state), *spread.lines(state)):
        yield name, Text(value)
    if wrong := baseline_failed(state):
        yield "BASELINE", Text(f"failed, so there is no score to beat: {wrong}", style="bold white on red")
    finished = len(state.finished) - state.replicates
    yield "experiments", Text(f"{finished}{_most(state, 'experiments')} finished: {counts(state)}")
    if failed := state.causes.most_common():
        yield "causes", Text(", ".join(f"{count} {cause}" for cause, count in failed))
    if exposed := state.causes[Cause.EXPOSED]:
        found = f"{exposed} experiments knew rows that are scored, and were rejected: {_ADVICE}"
        yield "EXPOSED", Text(found, style="bold white on red")
    if state.fresh_left is not None:
        left = f"{state.fresh_left} left that no worker was given" if state.fresh_left else _USED_UP
        yield "fresh rows", Text(left)
    if state.finished and (last := state.finished[-1].finished_at) is not None:
        yield "latest", Text(f"finished at {costs.moment(last)}")
    for experiment in state.open:
        where = f" on slot {experiment.slot}" if len(state.slots) > 1 else ""
        known = f"experiment {experiment.number}{where}, {experiment.phase}: {description(experiment)}"
        yield "open", Text(known)
    if state.session:
        session = state.session
        yield "agent", Text(clean_line(session.agent))
        yield "budget", Text(f"{session.budget_seconds:g} s on {clean_line(session.provenance.device)}")
        yield "worked", Text(f"{state.worked_seconds / 3600:.1f}{_most(state, 'hours')} hours")
    for slot in state.slots.values():
        if slot.noise:
            yield "waits", Text(conditions.waiting(slot.noise))
    for name, value in costs.lines(state, today):
        yield name, Text(value)
    for pause in (state.pause, *(slot.pause for slot in state.slots.values())):
        if pause:
            yield "pause", Text(conditions.paused(pause), style="yellow")
    for name, value in steering.lines(state):
        yield name, Text(value, style="yellow")
    if state.stopped:
        yield "stopped", Text(clean_line(state.stopped))
    yield "head", Text(state.head)


def _most(state: ResearchState, name: str) -> str:
    limit = state.limit(name)
    return f" of {limit:g}" if limit is not None else ""


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
            *((f"${state.spending.of(experiment.proposal.number).usd:.2f}",) if costly else ()),
            verdict_text(experiment),
            Text(clean_line(experiment.commit or "")[:_COMMIT]),
            Text(description(experiment)),
        )
    return table


def _details(state: ResearchState, experiment: Experiment) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    table.add_row("verdict", verdict_text(experiment))
    for name, value in detail_lines(state, experiment):
        table.add_row(name, Text(clean_text(value, TEXT_LIMIT)))
    return table


def detail_lines(state: ResearchState, experiment: Experiment) -> Iterable[tuple[str, str]]:
    """Names and values of what is known about one experiment; not yet safe to show."""
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
    if (spent := state.spending.of(experiment.proposal.number)).calls:
        yield "cost", f"{costs.money(spent)}, {spent.calls} requests, {costs.tokens(spent.usage)}"
    if proposal.fixes is not None:
        yield "repairs", f"experiment {proposal.fixes}"
    if proposal.merges is not None:
        yield "merges", f"experiment {proposal.merges}"
    if proposal.repeats is not None:
        yield "repeats", f"experiment {proposal.repeats}"
    yield "from", experiment.parent
    yield "seed", str(experiment.seed)
    if experiment.decision:
        yield "rule", experiment.decision.rule
    if score:
        change = effect(experiment)
        against = f" ({change:+.6f} against {experiment.frontier_bpb:.6f})" if change is not None else ""
        sure = "confirmed" if score.confirmed else "not confirmed, and not kept"
        yield "val_bpb", f"{score.val_bpb:.6f}{against}, {sure}"
        if score.isolation:
            yield "isolation", score.isolation
    if experiment.judgement:
        yield from zip(("first worker", "second worker"), map(_work, experiment.judgement.work), strict=False)
    if quarantine := experiment.quarantine:
        yield "quarantined", f"{quarantine.reason}; the first score was {quarantine.score.val_bpb:.6f}"
    if refused := refusal(experiment):
        yield "refused", f"{refused['cause']}: {refused['detail']}"
    if outcome:
        limit = f" of {experiment.budget_seconds:g} s" if experiment.budget_seconds else ""
        ended = f"exit code {outcome.exit_code}, attempt {experiment.attempt}"
        yield "ran", f"{outcome.seconds:.1f} s{limit}, {ended}"
        if (sent := outcome.kill_sent_seconds) is not None and experiment.budget_seconds:
            late, gone = sent - experiment.budget_seconds, outcome.seconds - sent
            yield "killed", f"{late:.3f} s after its limit, and gone {gone:.3f} s after that"
        if outcome.detail:
            yield "detail", outcome.detail
        claims = {key: value for key, value in outcome.claim.model_dump().items() if value is not None}
        if drawn := curves.sketch(outcome.curve):
            yield "training loss", drawn
        yield "claimed", ", ".join(f"{key} {value:g}" for key, value in claims.items()) or "nothing"
        yield from conditions.lines(outcome.conditions)
    if mismatch := experiment.claim_mismatch:
        yield "mismatch", f"val_bpb {mismatch.claim:g} was claimed; {mismatch.bound:.6f} off would be usual"
    if experiment.commit:
        yield "commit", experiment.commit
    if experiment.provenance:
        for key, value in experiment.provenance.model_dump().items():
            if value:
                yield key, str(value)


def _work(work: Work) -> str:
    """What a worker used and might use."""
    wall = _used(work.wall_seconds, work.allowed_wall_seconds)
    return f"{wall}, CPU time {_used(work.cpu_seconds, work.allowed_cpu_seconds)}"


def _used(seconds: float | None, allowed: float | None) -> str:
    used = "not known" if seconds is None else f"{seconds:.1f} s"
    return used if allowed is None else f"{used} (allowed {allowed:.1f} s)"


def _title(text: str) -> Rule:
    return Rule(Text(text, style="bold"), align="left", style="dim")
