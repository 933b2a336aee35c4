"""`show N --audit`: the whole story of one edit, in order, from the journal and the blobs it names."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

from controller.core.events import (
    AnyEvent,
    ApiAnswered,
    ApiFailed,
    ApiRequested,
    ExperimentOpened,
    ProposalAsked,
    ProposalRehearsed,
    Pruned,
    Record,
    Steered,
)
from controller.core.untrusted import clean_line, clean_text
from controller.views.costs import moment, tokens

HOLDOUT = {"holdout_bpb", "holdout_bytes", "fresh"}
"""Fields of a score that nobody may choose by, and that no account of one experiment names."""

_BLOBS = {"train_sha256", "diff_sha256"}
_FACT_LIMIT = 300

Json = Any
"""What `json.dumps` takes."""


def trail(records: Iterable[Record], number: int) -> list[Record]:
    """Everything that led to an experiment, happened to it and came of it, in order."""
    records = list(records)
    proposal = next(
        (r.data.proposal for r in records if isinstance(r.data, ExperimentOpened) and r.experiment == number),
        None,
    )
    return _story(records, number, proposal)


def trail_of_proposal(records: Iterable[Record], proposal: int) -> list[Record]:
    """Everything about a proposal, until it was opened as an experiment, dropped or refused. Empty if there
    is none of that number."""
    return _story(list(records), None, proposal)


def _story(records: Sequence[Record], number: int | None, proposal: int | None) -> list[Record]:
    calls = {r.data.call for r in records if isinstance(r.data, ApiRequested) and r.data.proposal == proposal}
    asked = next((r.data for r in records if _asks(r.data, proposal)), None)
    wishes = {asked.request, *asked.instructions} if isinstance(asked, ProposalAsked) else set()
    return [record for record in records if _belongs(record, number, proposal, calls, wishes)]


def _asks(event: AnyEvent, proposal: int | None) -> bool:
    return isinstance(event, ProposalAsked) and event.proposal == proposal


def _belongs(
    record: Record, number: int | None, proposal: int | None, calls: Collection[int], wishes: Collection[str]
) -> bool:
    """`wishes`: the requests of persons that went into the proposal."""
    match record.data:
        case Steered(verb="kill", target=target):
            return number is not None and target == number
        case Steered(request=request):
            return request in wishes
        case ApiAnswered(call=call) | ApiFailed(call=call):
            return call in calls
        case Pruned(what="logs", before=before):
            return number is not None and number < before  # the removal of texts that its records name
        case Pruned(before=before):
            return any(call < before for call in calls)
        case _:
            of = getattr(record.data, "proposal", None)
            return (number is not None and record.experiment == number) or (of is not None and of == proposal)


def as_json(records: Sequence[Record]) -> Json:
    """The trail, and its calls to a language model each in one piece."""
    return {
        "events": [record.model_dump(exclude={"data": {"score": HOLDOUT}}) for record in records],
        "calls": list(calls(records)),
    }


def calls(records: Sequence[Record]) -> Iterator[dict[str, Json]]:
    """Every call: what was asked of whom, what came back, what it cost, and where both are kept."""
    ends = {r.data.call: r.data for r in records if isinstance(r.data, (ApiAnswered, ApiFailed))}
    for record in records:
        sent = record.data
        if not isinstance(sent, ApiRequested):
            continue
        end = ends.get(sent.call)
        answer = end if isinstance(end, ApiAnswered) else None
        failure = end if isinstance(end, ApiFailed) else None
        yield {
            **sent.model_dump(exclude={"event", "request_sha256"}),
            "sent_at": record.time,
            "request": blob_name(sent.request_sha256),
            "ended": end.event if end else None,
            "reply": blob_name(answer.reply_sha256) if answer else None,
            "stop_reason": answer.stop_reason if answer else None,
            "status": failure.status if failure else None,
            "error": failure.error if failure else None,
            "usage": end.usage.model_dump() if end else None,
            "seconds": end.seconds if end else None,
            "cost_usd": end.cost_usd if end else None,
        }


def render(records: Sequence[Record]) -> Table:
    """The trail for people: one row for every record, with all it says."""
    table = Table.grid(padding=(0, 2))
    table.add_column(justify="right", style="dim", no_wrap=True)
    table.add_column(style="dim", no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for record in records:
        said = clean_text("\n".join(facts(record.data)), 20 * _FACT_LIMIT)
        table.add_row(str(record.seq), Text(moment(record.time)), Text(record.data.event), Text(said))
    return table


def facts(event: AnyEvent) -> Iterator[str]:
    """What one event says, line by line; not yet safe to print."""
    match event:
        case ApiRequested():
            mode = f", mode {event.mode}" if event.mode else ""
            most = f"up to ${event.reserved_usd:.4f}"
            yield f"call {event.call} to {event.model}{mode}; {most}"
            if given := _pairs(event.parameters):
                yield given
            yield f"request {blob_name(event.request_sha256)}"
        case ApiAnswered():
            yield f"call {event.call}: {event.stop_reason} after {event.seconds:.1f} s, ${event.cost_usd:.4f}"
            yield tokens(event.usage)
            yield f"reply {blob_name(event.reply_sha256)}"
        case ApiFailed():
            status = f"status {event.status}" if event.status is not None else "no status"
            yield f"call {event.call}: {status} after {event.seconds:.1f} s, ${event.cost_usd:.4f}"
            yield clean_line(event.error, _FACT_LIMIT)
        case ProposalRehearsed():
            yield f"{event.result} after {event.seconds:.1f} s, text {blob_name(event.train_sha256)}"
            yield from clean_text(event.detail, 4 * _FACT_LIMIT).splitlines()
        case _:
            said = event.model_dump(
                mode="json", exclude={"event": True, "experiment": True, "score": HOLDOUT}
            )
            yield from _lines(said)


def blob_name(sha256: str) -> str:
    """Where a blob lies in the home."""
    return f"blobs/{sha256[:2]}/{sha256}"


def _lines(fields: Mapping[str, Json], prefix: str = "") -> Iterator[str]:
    """One line for every field that says something; what is nested gets its name in front."""
    for name, value in fields.items():
        if isinstance(value, Mapping):
            yield from _lines(value, f"{prefix}{name}.")
        elif name in _BLOBS and value:
            yield f"{prefix}{name.removesuffix('_sha256')} {blob_name(str(value))}"
        elif value not in (None, "", [], ()):
            yield f"{prefix}{name} {clean_line(str(value), _FACT_LIMIT)}"


def _pairs(fields: Mapping[str, Json]) -> str:
    return ", ".join(f"{name} {value}" for name, value in fields.items() if value is not None)
