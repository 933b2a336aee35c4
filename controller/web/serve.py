"""Listening, and ending in time although pages are open."""

from __future__ import annotations

import socket
import threading

import uvicorn
from starlette.types import ASGIApp

from controller.core.errors import UserError

_GRACE_SECONDS = 1
_CHECK_SECONDS = 0.5
"""How soon it is noticed that uvicorn has ended by itself."""


def listen(host: str, port: int) -> socket.socket:
    """Raises UserError if that cannot be listened on."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except (OSError, OverflowError, UnicodeError) as error:
        why = getattr(error, "strerror", None) or "it is no address"
        raise UserError(
            f"Port {port} of {host} cannot be listened on ({why}); choose another with --host and --port."
        ) from error


def address(listening: socket.socket) -> str:
    """Where a browser on this machine finds it."""
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}/" if ":" in host else f"http://{host}:{port}/"


class Server:
    """uvicorn in a thread, without its access log: what people read is nobody's business."""

    def __init__(self, app: ASGIApp, stop: threading.Event) -> None:
        """`stop`: set when the end is wanted. Open streams have to end by themselves then."""
        config = uvicorn.Config(
            app,
            log_config=None,
            access_log=False,
            lifespan="off",
            server_header=False,
            proxy_headers=False,
            timeout_graceful_shutdown=_GRACE_SECONDS,
            ws="none",
        )
        self._server, self._stop = uvicorn.Server(config), stop

    def run(self, listening: socket.socket) -> None:
        """Serve until `stop` is set. In a thread uvicorn leaves signals alone: its own handlers come too late
        for a signal that arrives while it starts."""
        thread = threading.Thread(target=self._server.run, args=([listening],), name="server")
        thread.start()
        while thread.is_alive() and not self._stop.wait(_CHECK_SECONDS):
            pass
        self._server.should_exit = True
        thread.join()
