"""What the settings say about slots, and whether scores from different slots can be compared. Pure."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, field_validator

from controller.core.hardware.gpu_listing import ALL
from controller.core.hardware.gpu_probe import Gpu

MOST_SLOTS = 32
_MOST_CPUS = 4096
_RANGE = re.compile(r"([0-9]{1,4})(?:-([0-9]{1,4}))?")

GpuId = Annotated[str, Field(pattern=r"^[^,\s]{1,100}$")]


class SlotConfig(BaseModel):
    """One slot: the GPU or the CPUs that its experiments run on."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    gpu: tuple[GpuId, ...] = ()
    """Ids of its GPUs: numbers or UUIDs, also of a slice (MIG)."""
    cpus: str = ""
    """Numbers of its CPUs, like `0-3,8`; none means all. Slots without a GPU need them."""

    @field_validator("cpus")
    @classmethod
    def _require_cpus(cls, value: str) -> str:
        """As an engine takes it: without spaces."""
        cpu_set(value)
        return ",".join(part.strip() for part in value.split(","))


def cpu_set(text: str) -> frozenset[int]:
    """The CPUs that a list like `0-3,8` names; empty for an empty one. Raises ValueError with a phrase."""
    found: set[int] = set()
    for part in text.split(",") if text else ():
        match = _RANGE.fullmatch(part.strip())
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if first > last or last >= _MOST_CPUS:
            raise ValueError(f"{text!r} is not a list of CPUs like 0-3,8")
        found.update(range(first, last + 1))
    return frozenset(found)


def objection(slots: Sequence[SlotConfig]) -> str | None:
    """Why these slots cannot be used side by side, as a phrase; None if they can."""
    if len(slots) > MOST_SLOTS:
        return f"there are {len(slots)}, and at most {MOST_SLOTS} are possible"
    if any(not slot.gpu and not slot.cpus for slot in slots):
        return "each slot has to name its GPU (gpu) or its CPUs (cpus)"
    if len(slots) > 1 and any(ALL in slot.gpu for slot in slots):
        return "one of several slots cannot have all GPUs"
    if twice := _twice(gpu for slot in slots for gpu in slot.gpu):
        return f"the GPU {twice} is named twice"
    sets = [cpu_set(slot.cpus) for slot in slots]
    if twice := _twice(cpu for cpus in sets for cpu in cpus):
        return f"the CPU {twice} is in two slots"
    if len({len(slot.gpu) for slot in slots}) > 1 or len({len(cpus) for cpus in sets}) > 1:
        return (
            "each slot needs as many GPUs and as many CPUs as the others, "
            "or their scores could not be compared"
        )
    return None


def _twice(named: Iterable[str | int]) -> str | None:
    """The first that is named more than once."""
    return next((str(name) for name, times in Counter(named).items() if times > 1), None)


def difference(gpus: Sequence[Gpu | None]) -> str | None:
    """Why scores from the slots with these GPUs could not be compared; None if they can be."""
    told = [_kind(gpu) for gpu in gpus]
    other = next((number for number, kind in enumerate(told) if kind != told[0]), None)
    if other is None:
        return None
    return (
        f"Slot 0 has {told[0]} and slot {other} has {told[other]}, so the scores of their experiments could "
        "not be compared; give each kind of device a home of its own."
    )


def _kind(gpu: Gpu | None) -> str:
    if gpu is None:
        return "no GPU"
    return f"{gpu.name} ({gpu.total_bytes / 1e9:.0f} GB, compute capability {gpu.capability})"
