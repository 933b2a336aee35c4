"""Manifests for prepared data that a test has put together or changed, as harness/dataset.py writes them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def seal(data: Path, common: Mapping[str, Any], public: Mapping[str, Any] | None = None) -> None:
    """Write both manifests of data/public and data/judge: what both say, and what the public one adds."""
    files = {part: _facts(data / part) for part in ("public", "judge")}
    told = {**(public or {}), **common, "files": files["public"], "judge_files_sha256": _hash(files["judge"])}
    told["fingerprint"] = _hash({key: value for key, value in told.items() if key != "fingerprint"})
    kept = {**common, "files": files["judge"], "public_fingerprint": told["fingerprint"]}
    for part, manifest in (("public", told), ("judge", kept)):
        (data / part / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")


def _facts(folder: Path) -> dict[str, Any]:
    contents = {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "manifest.json"
    }
    return {
        name: {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        for name, content in contents.items()
    }


def _hash(content: object) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
