"""What the prepared data says about itself. The controller reads its manifest, never its content."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ValidationError

from controller.core.model import NotReady, UserError

#: The version of the data folder this controller works with; `harness/prepare.py` writes it.
DATA_VERSION = 1

Scale = Literal["cpu", "gpu"]


class DataInfo(BaseModel):
    """The part of data/public/manifest.json that the controller uses."""

    version: int
    scale: Scale
    max_seq_len: int
    vocab_size: int
    fingerprint: str


def folder(home: Path) -> Path:
    return home / "data"


def read(home: Path) -> DataInfo:
    """Read the manifest. Raises NotReady without data, UserError with data of another version."""
    path = folder(home) / "public" / "manifest.json"
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise NotReady(
            f"There is no prepared data in {folder(home)}: run `glovebox prepare --home {home}` first."
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"The data's manifest {path} cannot be read: {error}.") from error
    try:
        info = DataInfo.model_validate_json(text)
    except ValidationError as error:
        raise UserError(
            f"The data's manifest {path} is not one of ours: "
            f"remove {folder(home)} and run `glovebox prepare` again."
        ) from error
    if info.version != DATA_VERSION:
        raise UserError(
            f"The data in {folder(home)} has version {info.version}, this Glovebox needs {DATA_VERSION}: "
            "prepare it again in a new home."
        )
    return info


def require_scale(info: DataInfo, scale: Scale, home: Path) -> None:
    """Raises UserError if the data was not made for the device experiments run on."""
    if info.scale != scale:
        raise UserError(
            f"The data in {folder(home)} was prepared at scale {info.scale} but experiments would run at "
            f"scale {scale}: pass --device {info.scale}, or prepare data for {scale} in another --home."
        )
