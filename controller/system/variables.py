"""Catches misspelt settings in environment variables: a typo must not silently disable a limit."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable

_PREFIX, _DELIMITER = "glovebox_", "__"
#: From this similarity on, 0 to 1, a name counts as a misspelt setting.
_ALIKE = 0.8


def objection(names: Iterable[str], settings: Collection[str]) -> str | None:
    """One sentence about the first variable that was meant to be a setting, or None.

    The make targets have their own variables (`GLOVEBOX_WHEELS`): a name that resembles no setting and has
    no section counts as one of those.
    """
    for name in names:
        if not name.lower().startswith(_PREFIX):
            continue
        section, delimiter, _ = name.lower().removeprefix(_PREFIX).partition(_DELIMITER)
        meant = difflib.get_close_matches(section, settings, n=1, cutoff=_ALIKE)
        if section not in settings and (delimiter or meant):
            like = f", but there is {meant[0]}" if meant else ""
            return (
                f"The variable {name.upper()} sets nothing: there is no setting {section}{like}; "
                "docs/settings.md lists them all."
            )
    return None
