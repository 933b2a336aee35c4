"""`glovebox web`: the server, put together."""

from __future__ import annotations

import secrets
from pathlib import Path

from controller.app import liveness
from controller.core.errors import UserError
from controller.settings import Settings
from controller.system import signals
from controller.system.clock import SystemClock


def serve(config: Settings) -> None:
    """Serve the home until a signal. Raises UserError."""
    # No other verb needs these, and loading them takes a quarter of a second.
    from controller.web.follower import Follower
    from controller.web.now import Pulse
    from controller.web.security import is_loopback
    from controller.web.serve import Server, address, listen
    from controller.web.server import Site
    from controller.web.token import Token

    clock = SystemClock()

    def pulse() -> Pulse:
        seen = liveness.check(config.home, clock)
        return Pulse(seen.running, seen.silent_seconds, seen.sentence(config.home))

    with listen(config.web.host, config.web.port) as listening:
        is_local = is_loopback(listening.getsockname()[0])
        secret, sentence = _secret(config.home, is_local)
        stop = signals.stop_on_signals()
        with Follower(config.home) as follower:
            app = Site(follower, clock, pulse, Token(secret), is_local, stop.is_set).app()
            print(f"{sentence} Listening on {address(listening)}", flush=True)
            Server(app, stop).run(listening)


def _secret(home: Path, is_local: bool) -> tuple[str, str]:
    """The token, and a sentence about it. On loopback a home that can have none is there for reading alone.

    Raises UserError.
    """
    from controller.web import token as web_token

    what = "To steer, sign in" if is_local else "Sign in"
    try:
        return web_token.ensure(home), f"{what} with the token in {home / web_token.NAME}."
    except UserError as error:
        if not is_local:
            raise
        return secrets.token_urlsafe(), f"Nobody can steer from a browser. {error}"
