"""The copies of the harness that containers mount.

Experiments never see the installed files: an upgrade of Glovebox in the middle of an effort would change
them under its feet. A copy is named by its content, so what ran can be found and compared later.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from controller.core.containers.domains import HARNESS
from controller.core.errors import InfrastructureError, NotReady, UserError, VerificationFailed
from controller.files import PARTIAL, make_folder, sync_folder, write_atomic

NAMES = tuple(sorted({name for names in HARNESS.values() for name in names}))
"""Every file of the harness that is mounted anywhere."""


@dataclass(frozen=True)
class HarnessFiles:
    """One set of harness files in a folder of the home."""

    folder: Path
    hashes: Mapping[str, str]
    """sha256 of each file, by name."""

    @classmethod
    def find(cls, source: Path, home: Path) -> HarnessFiles:
        """The copies that a runner has made of the same files under `home`.

        Raises UserError if the files cannot be read, NotReady if the runner has made none of them.
        """
        _, files = cls._of(source, home)
        if not files.folder.exists():
            raise NotReady(
                f"The runner has no copy of this harness in {files.folder}: it is not running, or is of "
                "another version; `make up` starts it anew."
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

        Raises UserError if they cannot be read, InfrastructureError if the disk does not take them.
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
        """Raises VerificationFailed if a copy is not, or no longer, what it was made from."""
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
    """The folder appears complete or not at all. Readable by every user: containers have their own."""
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
