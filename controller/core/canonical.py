"""Canonical JSON: equal values have equal bytes.

Keys are sorted, there are no spaces, ASCII only: a line can be hashed, compared, and shown on any terminal.
JSON has no NaN or infinities; they become the strings "NaN", "Infinity" and "-Infinity", as pydantic reads
them.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from typing import Any

from pydantic import BaseModel, JsonValue

from controller.core.untrusted import REPLACEMENT

_SURROGATES = re.compile("[\ud800-\udfff]")


def plain(value: Any) -> Any:
    """`value` (models, dicts, lists, scalars) as plain JSON values."""
    match value:
        case BaseModel():
            return plain(value.model_dump())
        case dict():
            return {plain(key): plain(item) for key, item in value.items()}
        case list() | tuple():
            return [plain(item) for item in value]
        case float() if not math.isfinite(value):
            return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
        case str():
            return _SURROGATES.sub(REPLACEMENT, value)
    return value


def encode(value: dict[str, JsonValue]) -> bytes:
    """Canonical JSON of a plain value. Raises ValueError for NaN and infinities."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode("ascii")


def digest(value: dict[str, JsonValue]) -> str:
    """sha256 of `encode(value)`, in hexadecimal. Raises ValueError for NaN and infinities."""
    return hashlib.sha256(encode(value)).hexdigest()
