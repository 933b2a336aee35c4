"""The account of an effort: `report.md` and two pictures, from the journal alone.

The same journal gives the same report. Everything an agent or a run wrote is escaped, so that it stays text
wherever the Markdown is rendered.
"""

from __future__ import annotations

import datetime as dt
import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from controller.core.errors import UserError
from controller.core.events import (
    AgentFailed,
    AgentReturned,
    ApiFailed,
    ProposalDropped,
    ProposalRefused,
    ProposalRehearsed,
    Record,
    SessionStarted,
    Voided,
)
from controller.core.experiment import Experiment
from controller.core.keeps import keeps_of
from controller.core.state import ResearchState
from controller.core.statistics import replicates
from controller.core.untrusted import clean_line
from controller.core.values import Cause, Provenance, Verdict
from controller.files import drop_link
from controller.views import certificates, chart, costs, curves, html, spread, steering
from controller.views.facts import effect, marks
from controller.views.holdout import BothScores, both_scores
from controller.views.stairs import climb
from controller.views.tables import counts

REPORT, PAGE = "report.md", "report.html"
PICTURE, OVERFITTING, CURVES = "progress.svg", "holdout.svg", "curves.svg"

_NEAR_MISSES = 5
_COMMIT = 7
_SPECIAL = re.compile(r"[\\`*\[\]<>|~&$#]|://|www\.|(?<![^\W_])_|_(?![^\W_])")


def write(records: Sequence[Record], folder: Path) -> list[Path]:
    """Write the files and return their paths. Raises UserError if the folder cannot be written."""
    state, stairs = climb(records)
    paths = [folder / name for name in (REPORT, PAGE, PICTURE, OVERFITTING, CURVES)]
    report, page, picture, overfitting, losses = paths
    kept, drawn = _both_scores(state), curves.drawn(state)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path in paths:
            drop_link(path)
        chart.draw(state, stairs, picture)
        if kept:
            chart.draw_holdout(kept, state.next_number - 1, overfitting)
        if drawn:
            chart.draw_curves(drawn, losses)
        written = [picture, *([overfitting] if kept else []), *([losses] if drawn else [])]
        account = render(records, state)
        report.write_text(account, encoding="utf-8")
        pictures = {path.name: path.read_bytes() for path in written}
        page.write_text(html.page(account, pictures, _title(state)), encoding="utf-8")
    except OSError as error:
        raise UserError(f"The report cannot be written to {folder}: {error.strerror}.") from error
    return [report, page, *written]


def render(records: Sequence[Record], state: ResearchState) -> str:
    """The account as Markdown."""
    sections = [
        _summary(records, state),
        _picture(),
        _kept(state),
        _certificates(records, state),
        _replicates(state),
        _holdout(state),
        _training_loss(state),
        _near_misses(state),
        _odd(state),
        _failures(records, state),
        _cost(records, state),
        _agent(records, state),
        _steered(records),
        _time(records, state),
        _provenance(records),
    ]
    return "\n\n".join("\n".join(section) for section in map(list, sections) if section) + "\n"


def _title(state: ResearchState) -> str:
    return f"autoresearch/{clean_line(state.tag or 'nothing yet')}"


def escape(text: str, limit: int = 200) -> str:
    """One line of Markdown that renders as the cleaned text itself: no markup, no link, no new cell."""
    return _SPECIAL.sub(
        lambda match: "\\" + match[0] if match[0] != "www." else "www\\.", clean_line(text, limit)
    )


def _summary(records: Sequence[Record], state: ResearchState) -> Iterator[str]:
    yield f"# autoresearch/{escape(state.tag or 'nothing yet')}"
    yield ""
    agents = list(dict.fromkeys(r.data.agent for r in records if isinstance(r.data, SessionStarted)))
    if records:
        by = f" by {', '.join(map(escape, agents))}" if agents else ""
        yield f"From {_moment(records[0].time)} to {_moment(records[-1].time)}{by}."
    yield f"{len(state.finished) - state.replicates} experiments: {counts(state)}."
    for experiment in state.open:
        yield f"Experiment {experiment.number} is open ({experiment.phase})."
    kept = _verdicts(state, Verdict.KEEP)
    standing = [known for known in kept if known.score and known.number not in state.fallen]
    if kept and kept[0].score and standing:
        latest = min(standing, key=_score)
        first, best = kept[0].score.val_bpb, _score(latest)
        yield ""
        yield _certified(state)
        yield ""
        yield (
            f"Best single run of a keep: {best:.6f} bits per byte (experiment {latest.number}, commit "
            f"`{_short(latest)}`); baseline {first:.6f}; "
            f"change {best - first:+.6f} ({_percent(best - first, first)})."
        )
        yield _chance(state)


def _score(kept: Experiment) -> float:
    return kept.score.val_bpb if kept.score is not None else math.inf


def _certified(state: ResearchState) -> str:
    """What was found again in fresh runs. Anything else may be luck."""
    provisional = f" {len(state.chain)} keeps since are provisional." if state.chain else ""
    gain = certificates.total(state)
    if gain is None:
        return f"**Nothing is certified.**{provisional or ' No gain was kept.'}"
    interval = f" (95 % interval {gain.low:.6f} to {gain.high:.6f})" if gain.low is not None else ""
    head = state.certified.experiment if state.certified else None
    return (
        f"**Certified gain: {gain.gain:.6f} bits per byte{interval}**, up to experiment {head}, found again "
        f"in fresh runs.{provisional}"
    )


def _certificates(records: Sequence[Record], state: ResearchState) -> Iterator[str]:
    """Every certificate with its figures, computed again from the scores."""
    if not state.certificates:
        return
    agrees = certificates.recomputed(records)
    yield "## Certificates"
    yield ""
    yield (
        "The head of a chain of keeps and the last certified program ran in pairs, under fresh seeds. "
        "Evidence of 100 certifies a gain; a chain that does not hold is taken back. For this report each "
        "was computed again from the scores of its runs, as `glovebox verify` does."
    )
    yield ""
    yield "| # | experiments | outcome | gain | 95 % interval | evidence | pairs | on hold-out | again |"
    yield "|--:|---|---|--:|---|--:|--:|--:|---|"
    for decided in state.certificates:
        found = decided.evidence
        low, high = found.low, found.high
        interval = f"{low:+.6f} to {high:+.6f}" if low is not None and high is not None else ""
        holdout = f"{found.holdout_gain:+.4f}" if found.holdout_gain is not None else ""
        yield (
            f"| {decided.certificate} | {decided.base} → {decided.head} | {decided.outcome} "
            f"| {found.gain:+.6f} | {interval} | {found.e_value:.3g} | {found.pairs} | {holdout} "
            f"| {'the same' if agrees[decided.certificate] else '**DIFFERS**'} |"
        )


def _chance(state: ResearchState) -> str:
    """What a small difference is worth."""
    measured = state.pool.spread
    if measured is None:
        return "Each score is one run; how much of a small difference is chance was not measured."
    low, high = measured.interval()
    words = (
        f"Chance moves a score by {measured.sigma:.6f} (standard deviation of single runs, 95 % interval "
        f"{low:.6f} to {high:.6f}, {measured.df} degrees of freedom): a gain of less than "
        f"{2.0 * measured.sigma:.6f} may be luck."
    )
    if (drift := spread.drifted(state)) is not None:
        words += f" **{drift[0].upper()}{drift[1:]}.**"
    return words


def _replicates(state: ResearchState) -> Iterator[str]:
    """The runs of one program, side by side."""
    if state.pool.spread is None:
        return
    yield "## What chance does"
    yield ""
    yield (
        "Runs of one program that differ in their seed alone, and that nothing was selected by. What has to "
        "be beaten is their mean once there are two."
    )
    yield ""
    yield "| program of | runs | mean | lowest | highest | experiments |"
    yield "|--:|--:|--:|--:|--:|---|"
    for program, runs in sorted(state.runs.items()):
        scores = [run.val_bpb for run in runs]
        numbers = ", ".join(str(run.experiment) for run in runs)
        mean = replicates.mean(runs)
        yield f"| {program} | {len(runs)} | {mean:.6f} | {min(scores):.6f} | {max(scores):.6f} | {numbers} |"


def _picture() -> Iterator[str]:
    yield f"![Every experiment; what had to be beaten, and what is certified of it, as staircases]({PICTURE})"


def _kept(state: ResearchState) -> Iterator[str]:
    yield "## What was kept"
    yield ""
    yield "| # | commit | val_bpb | effect | of the baseline | | description |"
    yield "|--:|---|--:|--:|--:|---|---|"
    kept, keeps = _verdicts(state, Verdict.KEEP), keeps_of(state)
    baseline = kept[0].score.val_bpb if kept and kept[0].score else 0.0
    for experiment in kept:
        change = effect(experiment)
        gain, share = (f"{change:+.6f}", _percent(change, baseline)) if change is not None else ("", "")
        yield (
            f"| {experiment.number} | `{_short(experiment)}` | {_bpb(experiment)} | {gain} | {share} "
            f"|{keeps.mark(experiment.number)} | {_description(experiment)} |"
        )


def _both_scores(state: ResearchState) -> list[BothScores]:
    """Of every kept experiment."""
    return [pair for kept in _verdicts(state, Verdict.KEEP) if (pair := both_scores(kept)) is not None]


def _holdout(state: ResearchState) -> Iterator[str]:
    """Scored rows against fresh ones: a gap that opens means the effort fits the scored rows."""
    rows = _both_scores(state)
    if not rows:
        return
    yield "## Validation and hold-out"
    yield ""
    yield (
        "The hold-out are rows that no worker was given before, other ones in each scoring; the figure is "
        "what the score would be on them if they were as difficult as the scored rows. Nothing is chosen by "
        "it. A gap that widens by more than its error means fitting the scored rows."
    )
    yield ""
    yield f"![What validation and hold-out score gained since the first keep]({OVERFITTING})"
    yield ""
    yield "| # | val_bpb | on fresh rows | gap | standard error |"
    yield "|--:|--:|--:|--:|--:|"
    for number, validation, holdout, error in rows:
        yield f"| {number} | {validation:.6f} | {holdout:.4f} | {holdout - validation:+.4f} | {error:.4f} |"


def _training_loss(state: ResearchState) -> Iterator[str]:
    drawn = curves.drawn(state)
    if not drawn:
        return
    yield "## How they trained"
    yield ""
    yield (
        "The training loss that runs reported themselves, in nats per token: every keep, and the latest of "
        f"the replicates and of the others, {len(drawn)} runs. No run is ranked by it."
    )
    if ended := state.causes[Cause.HOPELESS]:
        yield ""
        yield (
            "Ended early, because the loss was not a number or far above that of every kept program: "
            f"{ended}. These have no score."
        )
    yield ""
    yield f"![Training loss by time]({CURVES})"


def _near_misses(state: ResearchState) -> Iterator[str]:
    discarded = [e for e in _verdicts(state, Verdict.DISCARD) if effect(e) is not None]
    if not discarded:
        return
    yield "## Near misses"
    yield ""
    yield "| # | val_bpb | short by | description |"
    yield "|--:|--:|--:|---|"
    for experiment in sorted(discarded, key=lambda e: effect(e) or 0.0)[:_NEAR_MISSES]:
        short = f"{effect(experiment) or 0.0:.6f}"
        yield f"| {experiment.number} | {_bpb(experiment)} | {short} | {_description(experiment)} |"


def _odd(state: ResearchState) -> Iterator[str]:
    """Scores that were measured twice, runs that said something else about themselves, runs that count
    although they were disturbed."""
    odd = [experiment for experiment in state.finished if marks(experiment)]
    if not odd:
        return
    yield "## Odd scores"
    yield ""
    yield "| # | val_bpb | first score | claimed | why it is here | verdict |"
    yield "|--:|--:|--:|--:|---|---|"
    for experiment in odd:
        quarantine, mismatch = experiment.quarantine, experiment.claim_mismatch
        first = f"{quarantine.score.val_bpb:.6f}" if quarantine else ""
        claimed = f"{mismatch.claim:.6f}" if mismatch else ""
        yield (
            f"| {experiment.number} | {_bpb(experiment)} | {first} | {claimed} "
            f"| {', '.join(marks(experiment))} | {experiment.verdict} |"
        )


def _failures(records: Sequence[Record], state: ResearchState) -> Iterator[str]:
    failed = Counter(
        (str(experiment.verdict), str(experiment.cause))
        for experiment in state.finished
        if experiment.verdict in (Verdict.CRASH, Verdict.REJECT)
    )
    refused = Counter(r.data.cause for r in records if isinstance(r.data, ProposalRefused))
    voided = Counter(r.data.cause for r in records if isinstance(r.data, Voided))
    if not failed and not refused and not voided:
        return
    yield "## What failed"
    yield ""
    yield "| verdict | cause | how often |"
    yield "|---|---|--:|"
    for (verdict, cause), count in failed.most_common():
        yield f"| {verdict} | {cause} | {count} |"
    for cause, count in refused.most_common():
        yield f"| refused before it ran | {escape(cause)} | {count} |"
    for void, count in voided.most_common():
        yield f"| void, repeated | {void} | {count} |"


def _cost(records: Sequence[Record], state: ResearchState) -> Iterator[str]:
    """Requests, tokens and dollars, in total and by UTC day."""
    total = state.spending.total
    if not total.calls:
        return
    failed = sum(isinstance(record.data, ApiFailed) for record in records)
    yield "## What it cost"
    yield ""
    yield f"{costs.money(total)} for {total.calls} requests to a language model, {failed} of them failed."
    proposed = [
        e for e in state.experiments if state.spending.of(e.proposal.number).calls and not _stood_in(e)
    ]
    if proposed:
        yield f"Experiments that came of them: {len(proposed)}, ${total.usd / len(proposed):.2f} for each."
    if state.spending.open:
        yield f"{len(state.spending.open)} have no end on record and are counted with the most they can cost."
    yield ""
    yield "| | requests | tokens in | from the cache | tokens out | dollars |"
    yield "|---|--:|--:|--:|--:|--:|"
    for name, spent in (*sorted(state.spending.by_day.items()), ("all", total)):
        share = costs.cache_share(spent.usage)
        yield (
            f"| {name} | {spent.calls} | {costs.tokens_in(spent.usage):,} "
            f"| {f'{share:.0%}' if share is not None else ''} | {spent.usage.output_tokens:,} "
            f"| {spent.committed_usd:.2f} |"
        )


def _agent(records: Sequence[Record], state: ResearchState) -> Iterator[str]:
    """How often the agent could not be reached, what was rehearsed and what came to nothing."""
    events = [record.data for record in records]
    away = [event.seconds for event in events if isinstance(event, AgentReturned)]
    rows: dict[str, int | str] = {
        "absences": len(away) + (state.absence is not None),
        "time away, the present absence not counted": _duration(sum(away)) if away else 0,
        "experiments by an understudy": sum(_stood_in(experiment) for experiment in state.experiments),
        "conversations without a proposal": sum(isinstance(event, AgentFailed) for event in events),
        "proposals dropped": sum(isinstance(event, ProposalDropped) for event in events),
    }
    rehearsed = Counter(event.result for event in events if isinstance(event, ProposalRehearsed))
    rows |= {f"rehearsals {result}": count for result, count in sorted(rehearsed.items())}
    if not any(rows.values()):
        return
    yield "## The agent at work"
    yield ""
    yield "| | |"
    yield "|---|--:|"
    for name, value in rows.items():
        if value:
            yield f"| {name} | {value} |"


def _steered(records: Sequence[Record]) -> Iterator[str]:
    """What persons asked for, and what was not granted."""
    told = [(record.time, words) for record in records if (words := steering.sentence(record.data))]
    if not told:
        return
    yield "## What persons asked for"
    yield ""
    for time, words in told:
        yield f"- {_moment(time)}: {escape(words, 500)}"


def _stood_in(experiment: Experiment) -> bool:
    return experiment.proposal.stands_in_for is not None


def _time(records: Sequence[Record], state: ResearchState) -> Iterator[str]:
    if not records:
        return
    span = (_parse(records[-1].time) - _parse(records[0].time)).total_seconds()
    slots = max(1, len(state.slots))
    whole = slots * span
    training = sum(e.outcome.seconds for e in state.experiments if e.outcome)
    scoring = sum(e.score.seconds for e in state.experiments if e.score)
    yield "## Where the time went"
    yield ""
    yield "| | time | share |"
    yield "|---|--:|--:|"
    rows = {
        "training": training,
        "scoring": scoring,
        "everything else, pauses included": max(whole - training - scoring, 0.0),
        "first to last entry of the journal" + (f", on {slots} slots" if slots > 1 else ""): whole,
    }
    for name, seconds in rows.items():
        yield f"| {name} | {_duration(seconds)} | {seconds / whole if whole else 0:.0%} |"


def _provenance(records: Sequence[Record]) -> Iterator[str]:
    """What ran, with every value a field ever had: two of them mean that scores may not compare."""
    sessions = [record.data for record in records if isinstance(record.data, SessionStarted)]
    if not sessions:
        return
    yield "## What ran"
    yield ""
    yield "| | |"
    yield "|---|---|"
    yield f"| budget | {_values([f'{session.budget_seconds:g} s' for session in sessions])} |"
    for name in Provenance.model_fields:
        values = [str(getattr(session.provenance, name)) for session in sessions]
        if any(values):
            yield f"| {name} | {_values(values)} |"
    yield f"| sessions | {len(sessions)} |"
    yield f"| journal | {len(records)} entries, head `{records[-1].hash}` |"


def _values(values: Sequence[str]) -> str:
    return " → ".join(escape(value) or "none" for value in dict.fromkeys(values))


def _verdicts(state: ResearchState, verdict: Verdict) -> list[Experiment]:
    return [experiment for experiment in state.finished if experiment.verdict is verdict]


def _bpb(experiment: Experiment) -> str:
    return f"{experiment.score.val_bpb:.6f}" if experiment.score else ""


def _short(experiment: Experiment) -> str:
    """The beginning of its commit's hash, fit to stand between backticks."""
    return re.sub(r"[`|\\]", "'", clean_line(experiment.commit or "")[:_COMMIT]) or "none"


def _description(experiment: Experiment) -> str:
    return escape(experiment.description)


def _percent(change: float, whole: float) -> str:
    return f"{change / whole:+.2%}" if whole else ""


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}"


def _parse(time: str) -> dt.datetime:
    return dt.datetime.fromisoformat(time)


def _moment(time: str) -> str:
    return f"{_parse(time):%Y-%m-%d %H:%M:%S} UTC"
