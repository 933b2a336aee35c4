"""The two notification channels: a command that reads a notice on stdin, and a webhook."""

from __future__ import annotations

import json
import math
import os
import shlex
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from pydantic import SecretStr

from controller.core.untrusted import clean_line
from controller.observers.notify import Undelivered

_SECONDS = 30.0
_GRACE_SECONDS = 5.0
"""How long a killed process may take to exit."""
#: HTTP statuses worth a retry; any other 4xx is permanent.
_TRANSIENT = frozenset({408, 425, 429})
#: Settings and keys are removed from the command's environment.
_OURS = ("GLOVEBOX_", "ANTHROPIC_")


def to_command(command: str, seconds: float = _SECONDS) -> Callable[[Mapping[str, Any]], None]:
    """Run the command for each notice, without a shell; it is killed after `seconds`."""
    arguments = shlex.split(command)

    def deliver(notice: Mapping[str, Any]) -> None:
        _run(arguments, _encode(notice), seconds)

    return deliver


def _run(arguments: Sequence[str], content: bytes, seconds: float) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(_OURS)}
    try:
        process = subprocess.Popen(
            arguments,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=environment,
            start_new_session=True,  # so that its whole group can be killed, and Ctrl-C does not reach it
        )
    except OSError as error:
        raise Undelivered(f"the command cannot be run: {error.strerror}") from error
    try:
        process.communicate(content, timeout=seconds)
    except subprocess.TimeoutExpired as error:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        with suppress(subprocess.TimeoutExpired):  # a process that changed its user cannot be killed
            process.communicate(timeout=_GRACE_SECONDS)
        raise Undelivered(f"the command did not end within {seconds:g} s") from error
    if process.returncode != 0:
        raise Undelivered(f"the command ended with status {process.returncode}")


def to_webhook(address: SecretStr, seconds: float = _SECONDS) -> Callable[[Mapping[str, Any]], None]:
    """POST each notice; a status from 200 to 299 counts as delivered. Redirects are not followed."""
    import httpx2  # takes half a second, needed only with a webhook

    def deliver(notice: Mapping[str, Any]) -> None:
        headers = {"content-type": "application/json", "user-agent": "glovebox"}
        try:
            with httpx2.stream(
                "POST", address.get_secret_value(), content=_encode(notice), headers=headers, timeout=seconds
            ) as response:
                status = response.status_code
        except (httpx2.HTTPError, httpx2.InvalidURL, OSError, ValueError) as error:
            # Drop its message and its chain: they may contain the address.
            raise Undelivered(f"the webhook cannot be reached: {type(error).__name__}") from None
        if not 200 <= status < 300:
            lasting = 300 <= status < 500 and status not in _TRANSIENT
            raise Undelivered(f"the webhook answered with status {status}", for_good=lasting)

    return deliver


def _encode(notice: Mapping[str, Any]) -> bytes:
    safe = {name: _safe(value) for name, value in notice.items()}
    return json.dumps(safe, allow_nan=False).encode("ascii") + b"\n"


def _safe(value: Any) -> Any:
    """Texts as one line each; null for a number that JSON cannot represent."""
    if isinstance(value, str):
        return clean_line(value, 1000)
    return None if isinstance(value, float) and not math.isfinite(value) else value
