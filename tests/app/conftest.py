"""Some tests here ask the real engine: see tests/support/bench.py."""

from __future__ import annotations

from tests.support.bench import bench, make_bench

__all__ = ["bench", "make_bench"]
