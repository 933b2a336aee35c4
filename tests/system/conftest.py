"""Some tests here run the real command: see tests/support/glovebox.py."""

from __future__ import annotations

from tests.support.glovebox import glovebox

__all__ = ["glovebox"]
