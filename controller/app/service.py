"""The loop for weeks: taken up again after trouble, with signs of life, and telling whom it should."""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Iterator

import structlog

from controller import retry as patience
from controller.app import agent as choose
from controller.app import run as effort
from controller.core.errors import GloveboxError, Interrupted, NotReady, Unfit, UserError, VerificationFailed
from controller.core.untrusted import clean_line
from controller.observers import channels, heartbeat
from controller.observers.heartbeat import Heartbeat
from controller.observers.notify import Notifier
from controller.settings import Settings
from controller.system.clock import SystemClock

log = structlog.stdlib.get_logger(__name__)

_SENTENCE = 2000
"""Characters of the longest sentence that is worth reading; a path may be in it."""
_STARTING_SECONDS = 600.0
"""To look at engine, GPU and data; the latter may be many gigabytes."""


def run(config: Settings, stop: threading.Event) -> str:
    """Work at the effort of a home until a limit is reached; return which. The caller holds the home's lock.

    Raises Interrupted, UserError, NotReady, VerificationFailed.
    """
    life = _heartbeat(config)

    def start() -> str:
        life.show("starting", _STARTING_SECONDS)
        agent, understudy = choose.make_agent(config), choose.make_understudy(config)
        return effort.run(config, agent, stop, understudy, [life, *told])

    def wait(reason: str, seconds: float) -> None:
        life.show(f"waiting to start again in {seconds:.0f} s: {reason}")
        if sys.stderr.isatty():
            sentence = f"{clean_line(reason)} Next try in {seconds:.0f} s. "
            print(f"\r\033[Kglovebox: {sentence}", end="", file=sys.stderr)

    with contextlib.ExitStack() as ears:
        told = [ears.enter_context(channel) for channel in _channels(config)]
        try:
            reason = patience.persist(start, config.patience, SystemClock(), stop, wait)
        except Interrupted as error:
            life.show(f"{heartbeat.ENDED}stopped by a person")
            raise Interrupted("Stopped by a person; the same command goes on from here.") from error
        except GloveboxError as error:
            life.show(f"{heartbeat.ENDED}{clean_line(str(error))}")
            raise
        life.show(f"{heartbeat.ENDED}{reason}")
        return reason


@contextlib.contextmanager
def staying(stop: threading.Event) -> Iterator[None]:
    """When the block has ended for good, wait for `stop`. What passes by itself is worth another start."""
    try:
        yield
    except (UserError, VerificationFailed) as error:
        if not isinstance(error, NotReady) or isinstance(error, Unfit):
            log.error("needs_a_person", reason=clean_line(str(error), _SENTENCE))
            stop.wait()
        raise
    log.info("nothing_left_to_do")
    stop.wait()


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
