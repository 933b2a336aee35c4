"""Parse nvidia-smi's list of GPUs and choose the one for experiments. Pure.

Fields and values are from nvidia-smi's manual page and users' reports, not captured here.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from controller.core.errors import NotReady
from controller.core.untrusted import clean_line

ALL = "all"
"""The id with which engine and toolkit hand out every GPU."""

_MIB, _GB = 1024**2, 1e9
_MUCH = 1024**3
"""From this many bytes on, a GPU counts as in use; an idle driver holds less."""
_FIELDS = ("index", "uuid", "name", "memory.total", "memory.used", "display_active", "compute_mode")
_MIG = "mig.mode.current"
_SLICE = re.compile(r"^\s+MIG\b.*\(UUID: (MIG-[^)]+)\)")
_GPU = re.compile(r"^GPU (\d+): .*\(UUID: (GPU-[^)]+)\)")

COMMAND = (
    "sh",
    "-c",
    f"nvidia-smi --query-gpu={','.join((*_FIELDS, _MIG))} --format=csv,noheader,nounits && nvidia-smi -L",
)
"""Lists the GPUs, one per line, then GPUs and their MIG slices with UUIDs."""


@dataclass(frozen=True)
class ListedGpu:
    """One line of the list. None: the driver does not report it."""

    index: int
    uuid: str
    name: str
    total_bytes: int | None = None
    used_bytes: int | None = None
    display: bool = False
    """It drives a display."""
    compute_mode: str = "Default"
    mig: bool = False
    slices: tuple[str, ...] = field(default=())
    """UUIDs of its MIG slices."""


@dataclass(frozen=True)
class Choice:
    """The devices to give to containers."""

    ids: tuple[str, ...]
    notes: tuple[str, ...] = ()
    """Sentences for people."""


def parse(text: str) -> tuple[ListedGpu, ...]:
    """Parse the output of `COMMAND`; other lines are ignored."""
    slices: dict[str, list[str]] = {}
    uuid = ""
    for line in text.splitlines():
        if gpu := _GPU.match(line):
            uuid = gpu[2]
        elif (found := _SLICE.match(line)) and uuid:
            slices.setdefault(uuid, []).append(clean_line(found[1]))
    listed = (_gpu(line, slices) for line in text.splitlines())
    return tuple(gpu for gpu in listed if gpu is not None)


def _gpu(line: str, slices: dict[str, list[str]]) -> ListedGpu | None:
    values = [clean_line(value.strip()) for value in line.split(", ")]
    if len(values) != len(_FIELDS) + 1 or not values[0].isdecimal():
        return None
    index, uuid, name, total, used, display, mode, mig = values
    return ListedGpu(
        index=int(index),
        uuid=uuid,
        name=name,
        total_bytes=_bytes(total),
        used_bytes=_bytes(used),
        display=display in ("Enabled", "Yes"),
        compute_mode=mode,
        mig=mig == "Enabled",
        slices=tuple(slices.get(uuid, ())),
    )


def _bytes(value: str) -> int | None:
    return int(value) * _MIB if value.isdecimal() else None


def choose(gpus: Sequence[ListedGpu], wanted: Sequence[str]) -> Choice:
    """Which devices to hand out; `wanted` is the setting sandbox.gpu. Raises NotReady if none is fit.

    If nothing is wanted: of the GPUs that accept work and are not split, the one with the most memory, then
    one without a display, then the first. If nothing is listed, the setting is taken as it is.
    """
    if not gpus or ALL in wanted:
        return Choice(tuple(wanted) or ("0",))
    if not wanted:
        gpu = _best(gpus)
        return Choice((str(gpu.index),), (*_company(gpu, gpus), *_remarks(gpu)))
    found = [_find(gpus, name) for name in wanted]
    notes = tuple(note for gpu in found for note in _remarks(gpu))
    if len(wanted) > 1:
        notes = (f"{len(wanted)} devices are handed out; a program that asks for none uses the first", *notes)
    return Choice(tuple(wanted), notes)


def every(gpus: Sequence[ListedGpu]) -> tuple[str, ...]:
    """Ids of all devices that accept work: each slice of a GPU that is split, each other GPU as a whole."""
    ids: list[str] = []
    for gpu in gpus:
        if gpu.compute_mode != "Prohibited":
            ids += gpu.slices if gpu.mig else (str(gpu.index),)
    return tuple(ids)


def named_twice(gpus: Sequence[ListedGpu], ids: Sequence[str]) -> str | None:
    """The first id that means the same device as one before it, by number and by UUID for instance."""
    known = {str(gpu.index): gpu.uuid for gpu in gpus}
    known |= {f"{gpu.index}:{number}": uuid for gpu in gpus for number, uuid in enumerate(gpu.slices)}
    seen: set[str] = set()
    for name in ids:
        if known.get(name, name) in seen:
            return name
        seen.add(known.get(name, name))
    return None


def _best(gpus: Sequence[ListedGpu]) -> ListedGpu:
    fit = [gpu for gpu in gpus if not gpu.mig and gpu.compute_mode != "Prohibited"]
    if not fit:
        _require_fit(gpus[0])
    return min(fit, key=lambda gpu: (-(gpu.total_bytes or 0), gpu.display, gpu.index))


def _find(gpus: Sequence[ListedGpu], name: str) -> ListedGpu:
    """The GPU that a name in sandbox.gpu means: index, UUID, or UUID or number of a slice."""
    for gpu in gpus:
        if name in gpu.slices or re.fullmatch(rf"{gpu.index}:\d+", name):
            return gpu
        if name in (str(gpu.index), gpu.uuid):
            _require_fit(gpu)
            return gpu
    raise NotReady(
        f"There is no GPU {clean_line(name)!r} here; slots and sandbox.gpu may name {_offer(gpus)}."
    )


def _require_fit(gpu: ListedGpu) -> None:
    if gpu.mig and gpu.slices:
        raise NotReady(
            f"GPU {gpu.index} ({gpu.name}) is split (MIG): name one of its {len(gpu.slices)} slices in "
            f"sandbox.gpu, {gpu.slices[0]} for instance."
        )
    if gpu.mig:
        raise NotReady(
            f"GPU {gpu.index} ({gpu.name}) is in MIG mode and has no slice: make one with `nvidia-smi mig "
            f"-i {gpu.index} -cgi PROFILE -C`, or leave that mode with `nvidia-smi -i {gpu.index} -mig 0`."
        )
    if gpu.compute_mode == "Prohibited":
        raise NotReady(
            f"GPU {gpu.index} ({gpu.name}) takes no work (compute mode Prohibited): "
            f"run `nvidia-smi -i {gpu.index} -c 0`."
        )


def _offer(gpus: Sequence[ListedGpu]) -> str:
    names = [name for gpu in gpus for name in (gpu.slices or (f"{gpu.index} ({gpu.name})",))]
    return ", ".join(names)


def _company(gpu: ListedGpu, gpus: Sequence[ListedGpu]) -> tuple[str, ...]:
    """A note about the other GPUs."""
    if len(gpus) == 1:
        return ()
    if len({(other.name, other.total_bytes, other.mig) for other in gpus}) == 1:
        which = f"{len(gpus)} GPUs of a kind"
    else:
        which = f"{len(gpus)} GPUs ({_offer(gpus)})"
    return (f'{which}, GPU {gpu.index} is used; set sandbox.gpu to choose, or slots = "auto" for all',)


def _remarks(gpu: ListedGpu) -> tuple[str, ...]:
    """Notes about what else may use this GPU."""
    notes = []
    used = f"{gpu.used_bytes / _GB:.1f} GB" if gpu.used_bytes is not None else "some"
    if gpu.display:
        notes.append(
            f"GPU {gpu.index} drives a display: other programs use {used} of its memory and may disturb "
            "runs; more than noise.gpu_foreign_bytes of it counts as a disturbance"
        )
    elif (gpu.used_bytes or 0) >= _MUCH:
        notes.append(f"{used} of the memory of GPU {gpu.index} are in use")
    if gpu.compute_mode.startswith("Exclusive"):
        notes.append(
            f"GPU {gpu.index} takes one process at a time ({gpu.compute_mode}): "
            "whatever else uses it makes runs fail"
        )
    return tuple(notes)
