"""The loop for weeks: restarted after a failure, with a heartbeat and notifications."""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

import structlog

from controller.app import agent as choose
from controller.app import run as effort
from controller.core import plan
from controller.core.backoff import backoff
from controller.core.errors import (
    GloveboxError,
    InfrastructureError,
    Interrupted,
    NotReady,
    Unfit,
    UserError,
    VerificationFailed,
)
from controller.core.rules import RetryConfig
from controller.core.untrusted import clean_line
from controller.observers import channels, heartbeat
from controller.observers.heartbeat import Heartbeat
from controller.observers.notify import Notifier
from controller.ports import Clock
from controller.settings import Settings
from controller.store import requests
from controller.system.clock import SystemClock

log = structlog.stdlib.get_logger(__name__)

_SENTENCE = 2000
"""Characters of the longest sentence that is worth reading; a path may be in it."""
_WAIT_SECONDS = 1.0
"""Between two looks whether a person asks to stop."""
_STARTING_SECONDS = 600.0
"""To look at engine, GPU and data; the latter may be many gigabytes."""


def run(config: Settings, stop: threading.Event) -> str:
    """Work at the effort of a home until a limit is reached; return which. The caller holds the home's lock.

    Raises Interrupted, UserError, NotReady, VerificationFailed.
    """
    beat = _heartbeat(config)

    def start() -> str:
        beat.show("starting", _STARTING_SECONDS)
        agent, understudy = choose.make_agent(config), choose.make_understudy(config)
        return effort.run(config, agent, stop, understudy, [beat, *told])

    def wait(reason: str, seconds: float) -> None:
        beat.show(f"waiting to start again in {seconds:.0f} s: {reason}")
        if sys.stderr.isatty():
            sentence = f"{clean_line(reason)} Next try in {seconds:.0f} s. "
            print(f"\r\033[Kglovebox: {sentence}", end="", file=sys.stderr)

    with contextlib.ExitStack() as ears:
        told = [ears.enter_context(channel) for channel in _channels(config)]
        try:
            reason = retried(start, config.retry, SystemClock(), stop, wait)
        except Interrupted as error:
            beat.show(f"{heartbeat.ENDED}stopped by a person")
            raise Interrupted("Stopped by a person; the same command goes on from here.") from error
        except GloveboxError as error:
            beat.show(f"{heartbeat.ENDED}{clean_line(str(error))}")
            raise
        beat.show(f"{heartbeat.ENDED}{reason}")
        return reason


def stay(work: Callable[[], str], home: Path, stop: threading.Event) -> str:
    """Work; when that has ended for good, wait for `stop` or for a person's request, and work again.

    What passes by itself is worth another start of the service. Raises what `work` does.
    """
    while True:
        before = _asked(home)
        try:
            reason = work()
        except (UserError, VerificationFailed) as error:
            if isinstance(error, NotReady) and not isinstance(error, Unfit):
                raise
            log.error("needs_a_person", reason=clean_line(str(error), _SENTENCE))
            if not _wait_for_request(home, before, stop):
                raise
        else:
            log.info("nothing_left_to_do")
            if not _wait_for_request(home, before, stop):
                return reason


def _wait_for_request(home: Path, before: Collection[str], stop: threading.Event) -> bool:
    """False if it is time to stop. `before`: those that a whole session has not answered. The next would not
    either.
    """
    while _asked(home) <= set(before):
        if stop.wait(_WAIT_SECONDS):
            return False
    return True


def _asked(home: Path) -> set[str]:
    return {request.id for request in requests.read(home)}


def _channels(config: Settings) -> Iterator[Notifier]:
    """Who is told of what happens."""
    told, home, clock = config.notify, config.home, SystemClock()
    if told.command is not None:
        yield Notifier("command", home, told, clock, channels.to_command(told.command))
    if told.webhook is not None:
        yield Notifier("webhook", home, told, clock, channels.to_webhook(told.webhook))


def _heartbeat(config: Settings) -> Heartbeat:
    """A confirmation may take as long as a scoring; between two requests an agent may rehearse."""
    return Heartbeat(
        config.home,
        SystemClock(),
        scoring_seconds=2 * config.judge.total_seconds,
        asking_seconds=config.claude.answer_seconds
        + config.claude.patience_seconds
        + config.rehearsal.seconds,
    )


def retried(
    attempt: Callable[[], str],
    config: RetryConfig,
    clock: Clock,
    stop: threading.Event,
    tell: Callable[[str, float], None],
) -> str:
    """Call `attempt` until it returns; after an InfrastructureError, wait and call it again.

    What fails outside an experiment takes the whole effort with it, which is begun anew as after a crash. If
    the first attempt finds out that the machine is not fit, that is the end. `tell` hears why there is a wait
    and what is left of it, about once a second. Raises what `attempt` does, Interrupted, NotReady.
    """
    faults = 0
    while True:
        began = clock.monotonic()
        try:
            return attempt()
        except Unfit:
            raise
        except (InfrastructureError, NotReady) as error:
            if isinstance(error, NotReady) and (faults == 0 or config.stop_after is not None):
                raise
            if clock.monotonic() - began > config.max_seconds:
                faults = 0  # it worked for long
            faults += 1
            if config.stop_after is not None and faults >= config.stop_after:
                raise NotReady(
                    f"There were {plan.faults(faults)}; the last was: {clean_line(str(error))} "
                    "Run `glovebox doctor`."
                ) from error
            seconds = backoff(
                max(1, faults - plan.FAULTS_AT_ONCE + 1), config.first_seconds, config.max_seconds
            )
            end = clock.monotonic() + seconds
            log.warning("effort_failed", error=clean_line(str(error)), faults=faults)
            while not stop.is_set() and (left := end - clock.monotonic()) > 0:
                tell(clean_line(str(error)), left)
                stop.wait(min(left, _WAIT_SECONDS))
            if stop.is_set():
                raise Interrupted("stopped by a person") from error
