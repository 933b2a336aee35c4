"""The live view in a terminal while the loop runs.

An observer must never harm the loop: a lost terminal, a full log disk or a bug in an observer ends that
observer, and the loop goes on.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Iterator, Sequence
from typing import TextIO

import structlog
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from controller.core.events import (
    Decided,
    Paused,
    ProposalRefused,
    Quarantined,
    Record,
    Resumed,
    RolledBack,
    SessionStarted,
    SlotDisturbed,
    Steered,
    SteeringRefused,
    Voided,
)
from controller.core.experiment import Experiment, Phase
from controller.core.state import ResearchState
from controller.core.untrusted import clean_line
from controller.core.values import Verdict
from controller.observers.log import OperationalLog
from controller.ports import Clock, Observer
from controller.views import certificates, costs, curves, steering
from controller.views.conditions import paused
from controller.views.facts import description, effect
from controller.views.tables import verdict_text

log = structlog.stdlib.get_logger(__name__)

_LAST = 5
_BAR_WIDTH = 30
_CURVE_WIDTH = 12


@contextlib.contextmanager
def observer(stream: TextIO, clock: Clock, others: Sequence[Observer] = ()) -> Iterator[Observer]:
    """Observe until the block ends: always through structlog, and in `stream` if it is a terminal."""
    watchers: list[Observer] = [*others, OperationalLog()]
    terminal = None
    if stream.isatty():
        with contextlib.suppress(Exception):
            terminal = Terminal(stream, clock)
            watchers.append(terminal)
    try:
        yield ObserverGroup(watchers)
    finally:
        if terminal:
            with contextlib.suppress(Exception):
                terminal.close()


class ObserverGroup:
    """Forwards events to each observer; removes an observer that raises."""

    def __init__(self, watchers: Sequence[Observer]) -> None:
        self._watchers = list(watchers)

    def recorded(self, record: Record, state: ResearchState) -> None:
        self._each(lambda watcher: watcher.recorded(record, state))

    def training(self, experiment: int, elapsed: float, limit: float) -> None:
        self._each(lambda watcher: watcher.training(experiment, elapsed, limit))

    def alive(self) -> None:
        self._each(lambda watcher: watcher.alive())

    def _each(self, tell: Callable[[Observer], None]) -> None:
        for watcher in list(self._watchers):
            try:
                tell(watcher)
            except Exception:
                self._watchers.remove(watcher)
                with contextlib.suppress(Exception):
                    log.warning("watching_ended", watcher=type(watcher).__name__, exc_info=True)


class Terminal:
    """Verdicts scroll by; below them are the best score so far and the running experiment.

    Drawn from the loop's own thread on every event, and once a second during training: in a separate thread,
    nobody would catch an exception.
    """

    def __init__(self, stream: TextIO, clock: Clock, state: ResearchState | None = None) -> None:
        """`state`: where the effort stands already, for one that is watched from the middle on."""
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # an arrow must not break the view in a Latin-1 terminal
        self._clock = clock
        self._state = state or ResearchState()
        self._since = clock.now()
        self._progress: dict[int, tuple[float, float]] = {}
        """By experiment: seconds of its training, and their limit."""
        self._console = Console(file=stream, highlight=False)
        self._live = Live(
            console=self._console,
            get_renderable=self._view,
            auto_refresh=False,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        for experiment in self._state.finished[-_LAST:]:
            self._print(_verdict_line(experiment))
        self._live.start()
        self._console.show_cursor(True)  # if we are killed, a hidden cursor would stay hidden

    def close(self) -> None:
        self._live.stop()

    def recorded(self, record: Record, state: ResearchState) -> None:
        self._state, self._since = state, self._clock.now()
        for line in self._news(record):
            self._print(line)
        self._live.refresh()

    def _print(self, line: Text) -> None:
        line.no_wrap, line.overflow = True, "ellipsis"
        self._console.print(line)

    def training(self, experiment: int, elapsed: float, limit: float) -> None:
        self._progress[experiment] = (elapsed, limit)
        self._live.refresh()

    def alive(self) -> None:
        self._live.refresh()

    def _news(self, record: Record) -> Iterator[Text]:
        """Lines that scroll by and stay."""
        match record.data:
            case SessionStarted() as event:
                tag = clean_line(self._state.tag or "")
                agent, device = clean_line(event.agent), clean_line(event.provenance.device)
                yield Text(
                    f"autoresearch/{tag}: {agent}, {event.budget_seconds:g} s each on {device}", "bold"
                )
                yield from map(_verdict_line, self._state.finished[-_LAST:])
            case Decided() as event:
                self._progress.pop(event.experiment, None)
                yield _verdict_line(self._state.experiments[event.experiment])
            case ProposalRefused() as event:
                yield Text(f"refused {clean_line(event.cause)}: {clean_line(event.detail)}", "yellow")
            case Quarantined() as event:
                yield Text(
                    f"experiment {event.experiment} is scored again: {clean_line(event.reason)}", "yellow"
                )
            case Voided(cause="killed"):
                return  # its verdict follows
            case Voided() as event:
                yield Text(f"experiment {event.experiment} is repeated: {clean_line(event.reason)}", "yellow")
            case Paused(why=why, reason=reason, by=by):
                yield Text(f"paused, {why} {clean_line(by)}: {clean_line(reason, 500)}", "yellow")
            case Resumed(why=why, by=by):
                yield Text(f"resumed, {why} {clean_line(by)}", "yellow")
            case SlotDisturbed() as event:
                yield Text(
                    f"experiment {event.experiment} waits: {clean_line(event.disturbance.detail)}", "yellow"
                )
            case Steered() | SteeringRefused() | RolledBack() as event:
                yield Text(steering.sentence(event) or "", "yellow")
            case _:
                return

    def _view(self) -> RenderableType:
        lines = [Text(), _standing(self._state)]
        if facts := [*_worth(self._state)]:
            lines.append(Text(", ".join(facts), style="dim", no_wrap=True, overflow="ellipsis"))
        return Group(*lines, self._current())

    def _current(self) -> RenderableType:
        """A line for each experiment that is open, or what is waited for."""
        experiments, pause = self._state.open, self._state.pause
        for slot in self._state.slots.values():
            pause = pause or slot.pause
        if pause is not None and not any(experiment.under_way for experiment in experiments):
            return Text(paused(pause), style="yellow")
        if not experiments:
            agent = clean_line(self._state.session.agent) if self._state.session else "the agent"
            return Text(f"waiting for a proposal by {agent} {self._last_change()}", style="dim")
        lines = Table.grid(padding=(0, 1))
        lines.add_column(no_wrap=True)
        for experiment in experiments:
            lines.add_row(*self._line(experiment))
        return lines

    def _line(self, experiment: Experiment) -> Iterator[RenderableType]:
        yield Text(f"experiment {experiment.number} {experiment.phase}", style="cyan")
        progress = self._progress.get(experiment.number)
        if experiment.phase is Phase.TRAINING and progress is not None:
            elapsed, limit = progress
            bar = Table.grid(padding=(0, 1))
            bar.add_row(
                ProgressBar(total=limit, completed=min(elapsed, limit), width=_BAR_WIDTH),
                Text(f"{elapsed:.0f}/{limit:.0f} s"),
            )
            yield bar
        else:
            yield Text(self._last_change(), style="dim")
        yield Text(description(experiment), no_wrap=True, overflow="ellipsis")

    def _last_change(self) -> str:
        return f"since {self._since.astimezone():%H:%M:%S}"


def _standing(state: ResearchState) -> Text:
    """Best so far, baseline, counts."""
    line = Text(no_wrap=True, overflow="ellipsis")
    frontier, baseline = state.frontier, state.baseline_bpb
    if frontier and frontier.val_bpb is not None:
        line.append(f"best {frontier.val_bpb:.6f}", style="bold green")
        line.append(f" (experiment {frontier.experiment})  ")
        if baseline is not None:
            line.append(f"baseline {baseline:.6f}  ", style="dim")
    counts = ", ".join(f"{state.count(v)} {v}" for v in Verdict if state.count(v))
    line.append(counts or "no verdict yet", style="dim")
    return line


def _worth(state: ResearchState) -> Iterator[str]:
    """What the gains are worth, and what they cost."""
    if (spread := state.pool.spread) is not None:
        yield f"σ {spread.sigma:.6f}"
    if (gained := certificates.total(state)) is not None:
        yield f"certified gain {gained.gain:.6f}"
    if (spent := state.spending.total).calls:
        yield costs.money(spent)


def _verdict_line(experiment: Experiment) -> Text:
    score, change, outcome = experiment.score, effect(experiment), experiment.outcome
    line = Text(f"{experiment.number:>5}  ")
    line.append(f"{score.val_bpb:.6f}" if score else " " * 8)
    line.append(f" {change:+.6f}" if change is not None else " " * 10, style="dim")
    line.append(f" {outcome.seconds:6.1f} s  " if outcome else " " * 11, style="dim")
    words = verdict_text(experiment)
    words.pad_right(max(0, 17 - len(words)))
    line.append_text(words)
    if outcome and (bars := curves.shape(outcome.curve, _CURVE_WIDTH)):
        line.append(f" {bars}", style="dim")
    return line.append(f" {description(experiment)}")
