"""Templates: whatever they print is neutral text, and escaped."""

from __future__ import annotations

import datetime as dt
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from controller.core.untrusted import clean_text
from controller.views.costs import moment
from controller.views.facts import TEXT_LIMIT
from controller.web.assets import address_of

FOLDER = Path(__file__).parent

SHAPES = {
    "keep": "●",
    "discard": "○",
    "crash": "✕",
    "reject": "◆",
    "replicate": "◇",
    "open": "▸",
}
"""What stands before the word, and in charts: nothing is told by colour alone."""


@cache
def environment() -> Environment:
    """The templates of this folder."""
    made = Environment(
        loader=FileSystemLoader(FOLDER / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=neutral,
    )
    made.filters |= {"bpb": bpb, "signed": signed, "moment": short_moment, "clock": clock, "bytes": gigabytes}
    made.globals |= {"shapes": SHAPES, "static": address_of}
    return made


def neutral(value: Any) -> Any:
    """Clean every text that a template prints, wherever it comes from; its own markup stays."""
    if isinstance(value, Markup) or not isinstance(value, str):
        return "" if value is None else value
    return clean_text(value, 2 * TEXT_LIMIT)


def bpb(value: float | None) -> str:
    return "" if value is None else f"{value:.6f}"


def signed(value: float | None) -> str:
    """With a minus sign that is as wide as a plus."""
    return "" if value is None else f"{value:+.6f}".replace("-", "−")


def short_moment(time: str | None) -> str:
    return moment(time) if time else ""


def clock(seconds: float | None) -> str:
    """`4:07`, or `1:04:07`."""
    if seconds is None:
        return ""
    whole = dt.timedelta(seconds=round(seconds))
    hours, rest = divmod(int(whole.total_seconds()), 3600)
    return f"{hours}:{rest // 60:02}:{rest % 60:02}" if hours else f"{rest // 60}:{rest % 60:02}"


def gigabytes(value: float | None) -> str:
    return "" if value is None else f"{value / 1e9:,.1f} GB" if value >= 1e9 else f"{value / 1e6:,.1f} MB"
