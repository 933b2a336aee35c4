"""The `nvidia-smi` query for GPU telemetry, and how to parse its output. Pure.

None of this was captured on a real machine. Fields, units and the bits of the clock reasons are from NVIDIA's
documentation (nvidia-smi's manual page; NVML reference, nvmlClocksEventReasons), the messages for a lost GPU
from NVML's error list and users' reports.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

from controller.core.untrusted import clean_line

_MIB = 1024**2

FIELDS = ("index", "temperature.gpu", "clocks.sm", "power.draw", "utilization.gpu", "memory.used")
REASONS = ("clocks_event_reasons.active", "clocks_throttle_reasons.active")
"""Drivers before 535 know only the second name."""

#: Bits that mean a GPU is slower than its model should be. A power cap (0x4), idling and manually set clocks
#: are properties of the machine, not disturbances.
THROTTLED: Mapping[str, int] = {
    "hw_slowdown": 0x8,
    "sw_thermal_slowdown": 0x20,
    "hw_thermal_slowdown": 0x40,
    "hw_power_brake_slowdown": 0x80,
}

_LOST = re.compile(
    r"GPU is lost|fallen off the bus|GPU requires reset|requires a reset"
    r"|Unable to determine the device handle",
    re.IGNORECASE,
)
_SHOWN = 200


@dataclass(frozen=True)
class GpuSample:
    """One sample of one GPU. None: the driver does not report it."""

    index: int
    temperature: float | None = None
    """Degrees Celsius."""
    sm_clock: float | None = None
    """MHz."""
    power: float | None = None
    """Watts."""
    utilization: float | None = None
    """Share of the last sampling period in which a kernel ran, 0 to 1."""
    used_bytes: int | None = None
    throttled: frozenset[str] = frozenset()
    """Keys of `THROTTLED`."""


@dataclass(frozen=True)
class GpuLost:
    """The driver can no longer reach a GPU."""

    said: str


def command(every_seconds: int) -> tuple[str, ...]:
    """Prints one line per GPU at every interval, until it is killed or a GPU is lost."""

    def query(reasons: str) -> str:
        fields = ",".join((*FIELDS, reasons))
        return f"nvidia-smi --query-gpu={fields} --format=csv,noheader,nounits -l {every_seconds}"

    return "sh", "-c", " || ".join(query(reasons) for reasons in REASONS)


def parse(line: str) -> GpuSample | GpuLost | None:
    """Parse one line of `command`'s output; None if it is not about a GPU."""
    if _LOST.search(line):
        return GpuLost(clean_line(line, _SHOWN))
    values = [value.strip() for value in line.split(",")]
    if len(values) != len(FIELDS) + 1 or not values[0].isdecimal():
        return None
    temperature, clock, power, busy, used = (_number(value) for value in values[1:-1])
    return GpuSample(
        index=int(values[0]),
        temperature=temperature,
        sm_clock=clock,
        power=power,
        utilization=None if busy is None else busy / 100,
        used_bytes=None if used is None else int(used * _MIB),
        throttled=_throttled(values[-1]),
    )


def _number(value: str) -> float | None:
    """None for `[N/A]`, `[Not Supported]`, `[Unknown Error]` and anything else that is not a number."""
    try:
        number = float(value)
    except ValueError:
        return None
    return number if math.isfinite(number) and number >= 0 else None


def _throttled(mask: str) -> frozenset[str]:
    try:
        bits = int(mask, 16)
    except ValueError:
        return frozenset()
    return frozenset(name for name, bit in THROTTLED.items() if bits & bit)
