"""`glovebox web`: the server, put together."""

from __future__ import annotations

from pathlib import Path

from controller.app import liveness
from controller.settings import Settings
from controller.system import signals
from controller.system.clock import SystemClock


def serve(config: Settings) -> None:
    """Serve the home until a signal. Raises UserError."""
    # No other verb needs these, and loading them takes a quarter of a second.
    from controller.web import token as web_token
    from controller.web.follower import Follower
    from controller.web.now import Pulse
    from controller.web.security import is_loopback
    from controller.web.serve import Server, address, listen
    from controller.web.server import Site

    clock = SystemClock()

    def pulse() -> Pulse:
        seen = liveness.check(config.home, clock)
        return Pulse(seen.running, seen.silent_seconds, seen.sentence(config.home))

    with listen(config.web.host, config.web.port) as listening:
        is_local = is_loopback(listening.getsockname()[0])
        token = None if is_local else web_token.Token(web_token.ensure(config.home))
        stop = signals.stop_on_signals()
        with Follower(config.home) as follower:
            app = Site(follower, clock, pulse, token, stop.is_set).app()
            _announce(address(listening), config.home if token else None)
            Server(app, stop).run(listening)


def _announce(address: str, home: Path | None) -> None:
    token = f"; sign in with the token in {home}/web-token" if home else ""
    print(f"Listening on {address}{token}", flush=True)
