"""`python -m controller.app.runner_settings`: what a runner has to know of the settings, and nothing else.

Settings may hold secrets, such as the address of a webhook. `make up` therefore has this print the sections
that shape containers, wherever they stand, as lines of an environment file, and shows the runner only those.
"""

from __future__ import annotations

import json
import sys

from controller import settings
from controller.core.errors import GloveboxError
from controller.settings import Settings

SECTIONS = ("budget", "sandbox", "judge", "rehearsal")


def lines(config: Settings) -> str:
    """One variable a line, in single quotes, within which nothing is expanded."""
    told = {name: json.dumps(getattr(config, name).model_dump(mode="json")) for name in SECTIONS}
    slots = config.slots
    told["device"] = config.device
    told["slots"] = slots if slots == "auto" else json.dumps([slot.model_dump() for slot in slots])
    return "".join(_line(f"GLOVEBOX_{name.upper()}", value) for name, value in told.items())


def _line(name: str, value: str) -> str:
    quoted = value.replace("'", "\\u0027")  # JSON's own way to write one
    return f"{name}='{quoted}'\n"


def main() -> int:
    try:
        sys.stdout.write(lines(settings.load()))
    except GloveboxError as error:
        print(f"glovebox: {error}", file=sys.stderr)
        return error.exit_status
    return 0


if __name__ == "__main__":
    sys.exit(main())
