"""Classify failures of the container engine by status code and message.

Pure: `connection` catches what the SDK raises and asks here what it means. The messages were captured from
real engines; `tests/sandbox/engine/test_failures.py` tests them next to look-alikes.
"""

from __future__ import annotations

import re
from enum import StrEnum

from controller.core.errors import GloveboxError, InfrastructureError, NotReady
from controller.core.untrusted import clean_line


class EngineFault(StrEnum):
    # The machine is not ready; a person has to act.
    UNREACHABLE = "unreachable"
    FORBIDDEN = "forbidden"
    NO_IMAGE = "no-image"
    NO_RUNTIME = "no-runtime"
    NO_GPU = "no-gpu"
    # The request is moot: already done, or no longer possible.
    GONE = "gone"
    NOT_RUNNING = "not-running"
    # The engine failed; a retry may help.
    TIMEOUT = "timeout"
    BROKEN = "broken"


#: (fault, its status codes, pattern of its message). Status None: the engine never answered.
#: The code tells look-alikes apart: "permission denied" from the socket is not the one from an exec.
_RULES: tuple[tuple[EngineFault, frozenset[int | None], re.Pattern[str]], ...] = (
    (EngineFault.FORBIDDEN, frozenset({None}), re.compile(r"Permission ?denied", re.IGNORECASE)),
    (EngineFault.FORBIDDEN, frozenset({401, 403}), re.compile(r"")),
    (EngineFault.TIMEOUT, frozenset({None}), re.compile(r"timed? ?out", re.IGNORECASE)),
    (
        EngineFault.UNREACHABLE,
        frozenset({None}),
        re.compile(r"FileNotFoundError|NewConnectionError|ConnectionRefusedError|Connection refused"),
    ),
    (EngineFault.NO_IMAGE, frozenset({404}), re.compile(r"No such image")),
    (EngineFault.GONE, frozenset({404}), re.compile(r"No such container|no such volume", re.IGNORECASE)),
    (EngineFault.NOT_RUNNING, frozenset({409}), re.compile(r"is not running")),
    (
        EngineFault.NO_RUNTIME,
        frozenset({400, 500}),
        re.compile(r"unknown or invalid runtime name|Unknown runtime specified"),
    ),
    (
        EngineFault.NO_GPU,
        frozenset({400, 500}),
        re.compile(
            r'could not select device driver "(?:nvidia|cdi)?"|unresolvable CDI devices'
            r"|nvidia-container-cli: |nvidia-container-runtime(?:-hook)?: "
        ),
    ),
)

_READINESS = {
    EngineFault.UNREACHABLE: "The container engine does not answer; start it, "
    "or install one with `make engine`",
    EngineFault.FORBIDDEN: "This user may not use the container engine; add the user to the group `docker` "
    "and log in again, or run as root",
    EngineFault.NO_IMAGE: "The sandbox image is missing; build it with `make image`",
    EngineFault.NO_RUNTIME: "The engine does not know the runtime asked for; "
    "install it or change the setting sandbox.runtime",
    EngineFault.NO_GPU: "The engine cannot give a GPU to a container; install the NVIDIA container toolkit, "
    "change the setting sandbox.gpu_access, or use `--device cpu`",
}


def classify(status: int | None, message: str) -> EngineFault:
    """`status` is the HTTP status of the engine's answer; None if there was no answer."""
    for fault, statuses, words in _RULES:
        if status in statuses and words.search(message):
            return fault
    return EngineFault.BROKEN


def to_error(fault: EngineFault, doing: str, message: str, *, starting_up: bool = False) -> GloveboxError:
    """The exception for a failure while `doing` something ("start container x"); its message is one sentence.

    An engine that does not answer means NotReady when we start up, but InfrastructureError later: then it may
    be restarting.
    """
    said = clean_line(message)
    ready_later = fault in (EngineFault.UNREACHABLE, EngineFault.FORBIDDEN) and not starting_up
    if fault in _READINESS and not ready_later:
        return NotReady(f"{_READINESS[fault]} (the engine said: {said}).")
    if fault is EngineFault.TIMEOUT:
        return InfrastructureError(f"The container engine gave no answer in time to: {doing}.")
    return InfrastructureError(f"The container engine failed to {doing}: {said}.")
