"""The seccomp profile of every container. Its source lies beside the image that it is made for."""

from __future__ import annotations

import json
from pathlib import Path

from controller.core.containers.config import SandboxConfig, SealedConfig

PROFILE = Path(__file__).resolve().parents[2] / "sandbox_image" / "seccomp.json"


def sealed(config: SandboxConfig) -> SealedConfig:
    """The settings of containers together with the profile that no setting can change."""
    profile = json.loads(PROFILE.read_text(encoding="utf-8"))
    return SealedConfig(**config.model_dump(), seccomp=json.dumps(profile, separators=(",", ":")))
