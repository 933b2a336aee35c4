"""Tests here run the real command: see tests/support/glovebox.py."""

from __future__ import annotations

from tests.support.glovebox import glovebox, on_engine, prepared, with_data

__all__ = ["glovebox", "on_engine", "prepared", "with_data"]
