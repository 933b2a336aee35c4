"""web-token: the secret of whoever steers from a browser, or reads from beyond loopback."""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
from pathlib import Path

from controller.core.errors import UserError

NAME = "web-token"
_BYTES = 32
_LONGEST = 200
_SHORTEST = 32
"""Characters: nobody guesses such a token, even one that somebody wrote by hand."""


def ensure(home: Path) -> str:
    """The home's token, made if there is none. Raises UserError if that fails."""
    path = home / NAME
    try:
        return _read(path)
    except FileNotFoundError:
        pass
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        with open(descriptor, "w", encoding="ascii") as file:
            file.write(secrets.token_urlsafe(_BYTES) + "\n")
    except FileExistsError:
        pass  # another process was faster
    except OSError as error:
        raise UserError(f"The token {path} cannot be written: {error.strerror}.") from error
    return _read(path)


def _read(path: Path) -> str:
    """Raises FileNotFoundError, UserError."""
    try:
        with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW), encoding="ascii") as file:
            token = file.read(_LONGEST).strip()
            exposed = os.fstat(file.fileno()).st_mode & 0o077
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as error:
        raise UserError(f"The token {path} cannot be read; remove it, and a new one is made.") from error
    if exposed:
        raise UserError(f"The token {path} can be read by others: `chmod 600` it, or remove it.")
    if len(token) < _SHORTEST:
        raise UserError(f"The token {path} is too short; remove it, and a new one is made.")
    return token


class Token:
    """What a request can show to prove that its sender knows the token."""

    def __init__(self, token: str) -> None:
        self._token = token.encode()
        self.cookie = f"glovebox-{hashlib.sha256(self._token).hexdigest()[:8]}"
        """Name of the cookie: browsers share cookies among the ports of a host, so each home has its own."""
        self.session = hmac.new(self._token, b"glovebox web session", "sha256").hexdigest()
        """Its value, which does not give the token away."""

    def is_token(self, shown: str) -> bool:
        return hmac.compare_digest(shown.encode(), self._token)

    def is_session(self, shown: str) -> bool:
        return hmac.compare_digest(shown.encode(), self.session.encode())
