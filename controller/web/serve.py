"""Listening, and ending in time although pages are open."""

from __future__ import annotations

import socket

import uvicorn
from starlette.types import ASGIApp

from controller.core.errors import UserError

_GRACE_SECONDS = 1


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
    """uvicorn, without its access log: what people read is nobody's business."""

    def __init__(self) -> None:
        self._server: uvicorn.Server | None = None

    def ended(self) -> bool:
        """Whether a signal has asked for the end; open streams then close by themselves."""
        return self._server is not None and self._server.should_exit

    def end(self) -> None:
        """Ask for the end as a signal does, from another thread."""
        if self._server is not None:
            self._server.should_exit = True

    def run(self, app: ASGIApp, listening: socket.socket) -> None:
        """Serve until SIGINT or SIGTERM. The caller must handle both: they are raised again at the end."""
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
        self._server = uvicorn.Server(config)
        self._server.run(sockets=[listening])
