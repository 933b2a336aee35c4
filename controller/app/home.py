"""What can be known of a home, and removed for it, without taking it over."""

from __future__ import annotations

import shlex
from pathlib import Path

from controller import recovery
from controller.app.machine import sandbox_of
from controller.core.containers.names import REHEARSAL, SLOT
from controller.core.errors import UserError
from controller.core.events import Record
from controller.core.state import ResearchState, fold
from controller.settings import Settings
from controller.store.journal import NAME, read_records
from controller.store.lock import home_in_use
from controller.store.snapshot import Archive, standing


def require_effort(home: Path) -> None:
    """Raises UserError if nothing was ever run in this home, or if its journal may not be read."""
    try:
        with (home / NAME).open("rb") as file:
            begun = bool(file.read(1))
    except (FileNotFoundError, NotADirectoryError):
        begun = False
    except OSError as error:
        raise _unreadable(home, error) from error
    if not begun:
        command = f"glovebox run --home {shlex.quote(str(home))}"
        raise UserError(f"No effort was started in {home} yet: `{command}` starts one.")


def read_state(home: Path) -> tuple[list[Record], ResearchState]:
    """Every line of the journal and where it leaves the effort, without taking the home over."""
    require_effort(home)
    try:
        records = list(read_records(home))
    except OSError as error:
        raise _unreadable(home, error) from error
    return records, fold(records)


def read_standing(home: Path) -> tuple[ResearchState, Archive]:
    """Where the effort stands and where its past is; the beginning if there is none. Raises UserError,
    VerificationFailed."""
    try:
        return standing(home)
    except OSError as error:
        raise _unreadable(home, error) from error


def _unreadable(home: Path, error: OSError) -> UserError:
    return UserError(f"The journal in {home} cannot be read: {error.strerror}.")


def reap(config: Settings) -> list[str]:
    """Remove what belongs to no live experiment, whether or not a controller is at work."""
    state, _ = read_standing(config.home)
    keep = recovery.live(state)
    if home_in_use(config.home):
        keep |= {"try", "prepare", REHEARSAL, SLOT}
    return recovery.reap(sandbox_of(config), keep)
