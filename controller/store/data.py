"""The manifests of the prepared data. The controller reads these, never the content."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, TypeVar

from pydantic import BaseModel, ValidationError

from controller.core.errors import InfrastructureError, NotReady, UserError

#: The version of the data folder this controller works with; `harness/prepare.py` writes it.
DATA_VERSION = 1

Scale = Literal["cpu", "gpu"]
"""Where experiments run."""
Size = Literal["cpu", "small", "medium", "gpu"]
"""Values of `prepare --scale`; all but `cpu` are for a GPU. `harness/dataset.py` defines each."""

_MEDIUM_BYTES, _GPU_BYTES = 7_500_000_000, 22_000_000_000
"""Least GPU memory for each of these sizes; a card sold with 8 GB has 8.2e9 to 8.6e9."""
Manifest = TypeVar("Manifest", bound=BaseModel)


class DataVersion(BaseModel):
    """The field that every version of the manifest has."""

    version: int


class FileFacts(BaseModel):
    """A manifest's entry for one file."""

    bytes: int


class JudgeInfo(BaseModel):
    """The part of data/judge/manifest.json that the controller uses."""

    public_fingerprint: str
    files: dict[str, FileFacts]


class DataInfo(BaseModel):
    """The part of data/public/manifest.json that the controller uses."""

    version: int
    scale: Scale
    size: Size
    max_seq_len: int
    vocab_size: int
    fingerprint: str
    files: dict[str, FileFacts]


def folder(home: Path) -> Path:
    return home / "data"


def size_for(gpu_bytes: int | None) -> Size:
    """The size for a GPU with this much memory; None: for a CPU."""
    if gpu_bytes is None:
        return "cpu"
    if gpu_bytes < _MEDIUM_BYTES:
        return "small"
    return "medium" if gpu_bytes < _GPU_BYTES else "gpu"


def read(home: Path) -> DataInfo:
    """Read the manifests and check that every file exists with its size; contents are not hashed again.

    Returns the public one. Raises NotReady if there is no data, UserError if it is damaged or of another
    version.
    """
    public, judge = folder(home) / "public", folder(home) / "judge"
    version = _read_manifest(home, public, DataVersion).version
    if version != DATA_VERSION:
        raise UserError(
            f"The data in {folder(home)} has version {version}, this Glovebox needs {DATA_VERSION}: "
            "prepare it again in a new home."
        )
    info = _read_manifest(home, public, DataInfo)
    judged = _read_manifest(home, judge, JudgeInfo)
    if judged.public_fingerprint != info.fingerprint:
        raise UserError(f"The judge's data in {judge} belong to other data than {public}. {_again(home)}")
    _require_files(home, public, info.files)
    _require_files(home, judge, judged.files)
    return info


def _read_manifest(home: Path, part: Path, kind: type[Manifest]) -> Manifest:
    path = part / "manifest.json"
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise NotReady(f"There is no prepared data in {folder(home)}: run {_command(home)} first.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"The data's manifest {path} cannot be read: {error}.") from error
    try:
        return kind.model_validate_json(text)
    except ValidationError as error:
        raise UserError(f"The data's manifest {path} is not one of ours. {_again(home)}") from error


def _require_files(home: Path, part: Path, files: Mapping[str, FileFacts]) -> None:
    for name, facts in files.items():
        path = part / name
        if not path.is_file() or path.stat().st_size != facts.bytes:
            raise UserError(f"{path} is missing or not as it was prepared. {_again(home)}")


def _again(home: Path) -> str:
    return f"Remove {folder(home)} and run {_command(home)} again."


def _command(home: Path) -> str:
    return f"`glovebox prepare --home {shlex.quote(str(home))}`"


def row_tokens(prepared: Path) -> int:
    """Tokens per row: the context length of the prepared data. Raises InfrastructureError."""
    try:
        manifest = json.loads((prepared / "public" / "manifest.json").read_bytes())
        return int(manifest["max_seq_len"])
    except (OSError, ValueError, KeyError) as error:
        raise InfrastructureError(f"The data's manifest cannot be read: {error}.") from error


def require_scale(info: DataInfo, scale: Scale, home: Path) -> None:
    """Raises UserError if the data was not prepared for the device experiments run on."""
    if info.scale != scale:
        raise UserError(
            f"The data in {folder(home)} was prepared at scale {info.scale} but experiments would run at "
            f"scale {scale}: pass --device {info.scale}, or prepare data for {scale} in another --home."
        )
