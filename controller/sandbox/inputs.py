"""What containers are given from the host's disk: copies of the harness, the prepared data, the seccomp
profile.

Experiments never see the installed harness: an upgrade of Glovebox during an effort would change it while
they run. They get a copy whose folder is named by its content, so what ran can be found and compared later.

The journal names the data by its fingerprint, a hash over the public manifest. That manifest holds a hash of
each public file and one of the list of the judge's files, so no file can be changed or added without being
noticed.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from controller.core.containers.config import SandboxConfig, SealedConfig
from controller.core.containers.domains import HARNESS
from controller.core.errors import InfrastructureError, NotReady, UserError, VerificationFailed
from controller.files import PARTIAL, make_folder, sync_folder, write_atomic
from controller.store import data

NAMES = tuple(sorted({name for names in HARNESS.values() for name in names}))
"""Every file of the harness that is mounted into any container."""
SECCOMP_PROFILE = Path(__file__).resolve().parents[2] / "sandbox_image" / "seccomp.json"
"""Kept beside the image that it is made for."""
_MANIFEST = "manifest.json"


def sealed(config: SandboxConfig) -> SealedConfig:
    """The settings of containers together with the seccomp profile, which no setting can change."""
    profile = json.loads(SECCOMP_PROFILE.read_text(encoding="utf-8"))
    return SealedConfig(**config.model_dump(), seccomp=json.dumps(profile, separators=(",", ":")))


@dataclass(frozen=True)
class HarnessFiles:
    """One set of harness files in a folder of the home."""

    folder: Path
    hashes: Mapping[str, str]
    """sha256 of each file, by name."""

    @classmethod
    def find(cls, source: Path, home: Path) -> HarnessFiles:
        """The copies of the same files that a runner has made under `home`.

        Raises UserError if the files cannot be read, NotReady if the runner has no copy of them.
        """
        _, files = cls._of(source, home)
        if not files.folder.exists():
            raise NotReady(
                f"The runner has no copy of this harness in {files.folder}: it is not running, or has "
                "another version; `make up` starts it again."
            )
        files.verify()
        return files

    @classmethod
    def _of(cls, source: Path, home: Path) -> tuple[dict[str, bytes], HarnessFiles]:
        try:
            contents = {name: (source / name).read_bytes() for name in NAMES}
        except OSError as error:
            raise UserError(f"A file of the harness cannot be read: {error}.") from error
        hashes = {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}
        return contents, cls(home / "harness" / _digest(hashes)[:16], hashes)

    @classmethod
    def materialise(cls, source: Path, home: Path) -> HarnessFiles:
        """Copy the files from `source` to `home`/harness/<hash>/, or find them there.

        Raises UserError if they cannot be read, InfrastructureError if they cannot be written.
        """
        contents, files = cls._of(source, home)
        if not files.folder.exists():
            try:
                _write(files.folder, contents)
            except OSError as error:
                raise InfrastructureError(f"{files.folder} cannot be written: {error.strerror}.") from error
        files.verify()
        return files

    @property
    def digest(self) -> str:
        """sha256 over the names and hashes of all files."""
        return _digest(self.hashes)

    def verify(self) -> None:
        """Raises VerificationFailed if a copy differs from the file it was made from."""
        for name, expected in self.hashes.items():
            path = self.folder / name
            try:
                actual = hashlib.sha256(path.read_bytes()).hexdigest()
            except OSError as error:
                raise VerificationFailed(f"A file of the harness cannot be read: {error}.") from error
            if actual != expected:
                raise VerificationFailed(f"{path} was changed; restore it or remove {self.folder}.")


def _digest(hashes: Mapping[str, str]) -> str:
    lines = "".join(f"{hashes[name]}  {name}\n" for name in sorted(hashes))
    return hashlib.sha256(lines.encode()).hexdigest()


def _write(folder: Path, contents: Mapping[str, bytes]) -> None:
    """Write the whole folder or nothing, readable by every user: containers run as users of their own."""
    make_folder(folder.parent)
    partial = Path(tempfile.mkdtemp(PARTIAL, ".", folder.parent))
    try:
        for name, content in contents.items():
            write_atomic(partial / name, content, 0o444)
        partial.chmod(0o755)
        partial.rename(folder)
        sync_folder(folder.parent)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


class _Stamp(NamedTuple):
    """Changes whenever a file does.

    Hashing gigabytes before and after every run would take longer than scoring it. The kernel updates ctime
    at every change of content or metadata. Unlike mtime, nobody can set it without setting the machine's
    clock or writing to the disk beneath the file system.
    """

    size: int
    mtime_ns: int
    ctime_ns: int
    inode: int

    @classmethod
    def of(cls, path: Path) -> _Stamp:
        status = os.stat(path)
        return cls(status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)


class DataFiles:
    """Every file of a home's prepared data. Each is hashed when first verified and again if it changes."""

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
        """Raises VerificationFailed naming a file that was changed, is missing, or was added."""
        there = {path for path in self._folder.rglob("*") if not path.is_dir()}
        if added := sorted(there - set(self._expected)):
            raise VerificationFailed(f"{added[0]} does not belong to the prepared data; remove it.")
        for path, expected in self._expected.items():
            try:
                stamp = _Stamp.of(path)
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
            self._verified[path] = stamp  # taken before hashing: a change during it is seen next time

    def _manifest(self, part: str) -> dict[str, Any]:
        path = self._folder / part / _MANIFEST
        try:
            content = path.read_bytes()
            manifest = json.loads(content)
        except (OSError, ValueError) as error:
            raise VerificationFailed(f"The data's manifest {path} cannot be read: {error}.") from error
        self._expected[path] = hashlib.sha256(content).hexdigest()
        if not isinstance(manifest, dict) or not isinstance(manifest.get("files"), dict):
            raise VerificationFailed(f"The data's manifest {path} is not in our format.")
        return manifest

    def _require_chain(self, public: Mapping[str, Any], judge: Mapping[str, Any]) -> None:
        """Check each hash against what it covers; harness/dataset.py makes them."""
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
        raise _changed(self._folder / broken / _MANIFEST)


def _changed(path: Path) -> VerificationFailed:
    return VerificationFailed(f"{path} was changed; restore it, or prepare the data in a new home.")


def _sha256_of_json(content: object) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
