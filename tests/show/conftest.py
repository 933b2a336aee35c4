"""Data are prepared once for all efforts here."""

from __future__ import annotations

from tests.support.glovebox import prepared, with_data

__all__ = ["prepared", "with_data"]
