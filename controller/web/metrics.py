"""`/metrics` for Prometheus: counts, scores, money and health. The hold-out score is in none of it."""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Iterable, Iterator

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.registry import Collector

from controller import __version__
from controller.core.state import ResearchState
from controller.core.untrusted import clean_line
from controller.core.values import Verdict
from controller.store import verified
from controller.views import certificates
from controller.web.follower import Standing
from controller.web.now import Pulse

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


def render(standing: Standing, pulse: Pulse, streams: int) -> bytes:
    """In the text format; deterministic for the same input."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Once([*_server(standing, pulse, streams), *_effort(standing.state)]))
    return generate_latest(registry)


class _Once(Collector):
    def __init__(self, metrics: Iterable[Metric]) -> None:
        self._metrics = list(metrics)

    def collect(self) -> Iterable[Metric]:
        return self._metrics


def _server(standing: Standing, pulse: Pulse, streams: int) -> Iterator[Metric]:
    session = standing.state.session
    yield InfoMetricFamily(
        "glovebox",
        "What runs here.",
        value={
            "version": __version__,
            "tag": clean_line(standing.state.tag or ""),
            "agent": clean_line(session.agent) if session else "",
            "device": clean_line(session.provenance.device) if session else "",
        },
    )
    yield _gauge("controller_up", "Whether a controller is at work in the home.", float(pulse.running))
    yield _gauge(
        "heartbeat_overdue_seconds", "How long its heartbeat has been overdue.", pulse.overdue_seconds
    )
    yield _gauge("journal_intact", "Whether the journal could be followed.", float(standing.failure is None))
    yield _gauge("journal_bytes", "Size of the journal.", standing.archive.position.offset)
    yield _counter("journal_lines", "Lines of the journal.", standing.state.seq + 1)
    yield _gauge("web_streams", "Pages that are told of changes.", streams)
    if (found := verified.read(standing.home)) is not None:
        yield _gauge("verified_timestamp_seconds", "When `glovebox verify` last ended.", _seconds(found.at))
        yield _gauge("verified_problems", "How many contradictions it found.", found.problems)


def _effort(state: ResearchState) -> Iterator[Metric]:
    yield _by("experiments", "Finished experiments, replicates aside.", "verdict", _verdicts(state))
    yield _counter("replicates", "Finished replicates.", state.replicates)
    causes = [(str(cause), count) for cause, count in sorted(state.causes.items())]
    yield _by("experiments_not_kept", "Finished experiments that were not kept.", "cause", causes)
    yield from _scores(state)
    yield _gauge("provisional_keeps", "Keeps that are not certified yet.", len(state.chain))
    yield _gauge("open_experiments", "Experiments that are not finished.", len(state.open))
    yield _gauge("open_proposals", "Proposals that are no experiment yet.", len(state.proposals))
    faults = GaugeMetricFamily("glovebox_slot_faults", "Faults of the machine in a row.", labels=["slot"])
    for number, slot in sorted(state.slots.items()):
        faults.add_metric([str(number)], slot.faults)
    yield faults
    paused = state.pause is not None or any(slot.pause for slot in state.slots.values())
    yield _gauge("paused", "Whether nothing new begins on some slot for now.", float(paused))
    held = len(state.steering.held)
    yield _gauge("held_slots", "Slots that a person has paused by themselves.", held)
    yield _gauge("agent_absent", "Whether the agent cannot be reached.", float(state.absence is not None))
    yield _gauge("stopped", "Whether the last session has ended.", float(state.stopped is not None))
    yield _counter("worked_seconds", "How long controllers were at work.", state.worked_seconds)
    yield from _times(state)
    yield from _money(state)


def _verdicts(state: ResearchState) -> list[tuple[str, int]]:
    return [(str(verdict), state.count(verdict)) for verdict in Verdict]


def _scores(state: ResearchState) -> Iterator[Metric]:
    gained, spread, frontier = certificates.total(state), state.pool.spread, state.frontier
    known = (
        (
            "frontier_val_bpb",
            "Score that has to be beaten, bits per byte.",
            frontier.val_bpb if frontier else None,
        ),
        ("baseline_val_bpb", "Score of the baseline, bits per byte.", state.baseline_bpb),
        ("certified_gain_bpb", "Certified gain, bits per byte.", gained.gain if gained else None),
        ("sigma_bpb", "Standard deviation of single runs, bits per byte.", spread.sigma if spread else None),
    )
    for name, help_, value in known:
        if value is not None and math.isfinite(value):
            yield _gauge(name, help_, value)


def _times(state: ResearchState) -> Iterator[Metric]:
    if state.last_time is not None:
        yield _gauge(
            "last_event_timestamp_seconds", "Time of the journal's last line.", _seconds(state.last_time)
        )
    if state.finished and (last := state.finished[-1].finished_at) is not None:
        yield _gauge(
            "last_experiment_timestamp_seconds", "When an experiment was last finished.", _seconds(last)
        )


def _money(state: ResearchState) -> Iterator[Metric]:
    total = state.spending.total
    yield _counter("requests", "Requests to language models.", total.calls)
    yield _counter("spent_dollars", "Cost of those that have ended, US dollars.", total.usd)
    yield _gauge("in_flight_dollars", "Most that those on their way can cost.", total.in_flight_usd)
    usage = total.usage
    tokens = [
        ("input", usage.input_tokens),
        ("cache_write", usage.cache_write_tokens),
        ("cache_read", usage.cache_read_tokens),
        ("output", usage.output_tokens),
    ]
    yield _by("tokens", "Tokens of requests to language models.", "kind", tokens)


def _gauge(name: str, help_: str, value: float) -> Metric:
    return GaugeMetricFamily(f"glovebox_{name}", help_, value=value)


def _counter(name: str, help_: str, value: float) -> Metric:
    return CounterMetricFamily(f"glovebox_{name}", help_, value=value)


def _by(name: str, help_: str, label: str, values: Iterable[tuple[str, float]]) -> Metric:
    metric = CounterMetricFamily(f"glovebox_{name}", help_, labels=[label])
    for value, count in values:
        metric.add_metric([value], count)
    return metric


def _seconds(time: str) -> float:
    return dt.datetime.fromisoformat(time).timestamp()
