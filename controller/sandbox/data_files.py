"""The prepared data that containers mount, held against the hashes made when it was prepared.

The journal names the data by its fingerprint, a hash over the public manifest. That manifest names every
public file by its hash, and the list of the judge's files by one; so from the fingerprint on nothing can be
exchanged, nor added, without being noticed.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from controller.core.errors import VerificationFailed
from controller.store import data

MANIFEST = "manifest.json"


class _Stamp(NamedTuple):
    """What changes when a file does.

    Hashing gigabytes before and after every run would cost more than scoring it. The kernel moves ctime at
    every change of a file's content or metadata; unlike mtime nobody can set it, short of setting the
    machine's clock or writing to the disk under the file system.
    """

    size: int
    mtime_ns: int
    ctime_ns: int
    inode: int


class DataFiles:
    """Every file of the prepared data of one home. Hashed when first verified and whenever it changes."""

    def __init__(self, home: Path) -> None:
        """Raises VerificationFailed if the manifests contradict each other or their fingerprint."""
        self._folder = data.folder(home)
        self._expected: dict[Path, str] = {}
        self._verified: dict[Path, _Stamp] = {}
        public, judge = self._manifest("public"), self._manifest("judge")
        self._require_chain(public, judge)
        for part, manifest in (("public", public), ("judge", judge)):
            for name, facts in manifest["files"].items():
                self._expected[self._folder / part / name] = str(facts["sha256"])

    def verify(self) -> None:
        """Raises VerificationFailed naming a file that is not what was prepared, is missing, or was added."""
        there = {path for path in self._folder.rglob("*") if not path.is_dir()}
        if added := sorted(there - set(self._expected)):
            raise VerificationFailed(f"{added[0]} is not of the prepared data; remove it.")
        for path, expected in self._expected.items():
            try:
                stamp = _stamp(path)
                if self._verified.get(path) == stamp:
                    continue
                with path.open("rb") as file:
                    actual = hashlib.file_digest(file, "sha256").hexdigest()
            except OSError as error:
                raise VerificationFailed(
                    f"A file of the prepared data cannot be read: {path}: {error.strerror}."
                ) from error
            if actual != expected:
                raise _changed(path)
            self._verified[path] = stamp  # taken before hashing: a change meanwhile is seen next time

    def _manifest(self, part: str) -> dict[str, Any]:
        path = self._folder / part / MANIFEST
        try:
            content = path.read_bytes()
            manifest = json.loads(content)
        except (OSError, ValueError) as error:
            raise VerificationFailed(f"The data's manifest {path} cannot be read: {error}.") from error
        self._expected[path] = hashlib.sha256(content).hexdigest()
        if not isinstance(manifest, dict) or not isinstance(manifest.get("files"), dict):
            raise VerificationFailed(f"The data's manifest {path} is not one of ours.")
        return manifest

    def _require_chain(self, public: Mapping[str, Any], judge: Mapping[str, Any]) -> None:
        """See that each hash is that of what it speaks of; harness/dataset.py makes them."""
        named = {key: value for key, value in public.items() if key != "fingerprint"}
        common = {key: value for key, value in judge.items() if key not in ("files", "public_fingerprint")}
        if _sha256_of_json(named) != public.get("fingerprint"):
            broken = "public"
        elif (
            _sha256_of_json(judge["files"]) != public.get("judge_files_sha256")
            or judge.get("public_fingerprint") != public.get("fingerprint")
            or any(public.get(key) != value for key, value in common.items())
        ):
            broken = "judge"
        else:
            return
        raise _changed(self._folder / broken / MANIFEST)


def _changed(path: Path) -> VerificationFailed:
    return VerificationFailed(f"{path} was changed; restore it, or prepare the data in a new home.")


def _stamp(path: Path) -> _Stamp:
    status = os.stat(path)
    return _Stamp(status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)


def _sha256_of_json(content: object) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
