"""The workspace of an attempt, and the witness that nothing happened to it."""

from __future__ import annotations

from controller.core.containers.domains import Domain
from controller.core.containers.names import Place
from controller.core.errors import InfrastructureError
from controller.ports import Sandbox


def require(sandbox: Sandbox, place: Place) -> None:
    """Raises InfrastructureError if the workspace cannot be what T made it.

    It lives exactly as long as its holder, and no experiment can reach the holder: a dead one means that
    the engine or the machine went down, so neither T nor its checkpoint may be blamed.
    """
    if not sandbox.alive(place.name(Domain.HOLDER)):
        raise InfrastructureError("The workspace is gone: the engine or the machine restarted.")
