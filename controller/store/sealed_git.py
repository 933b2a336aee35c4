"""Git restricted to the objects and branches of one repository.

Every call gets its own temporary GIT_DIR that points at the repository's objects and references. Nothing else
in `.git` is read: settings and their includes, hooks (which newer versions of git also take from settings),
attributes, grafts, commit graphs. Nor is user or system configuration, or git's environment variables. The
alternative, a list of settings to override, would have to grow with git.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from controller.core.errors import InfrastructureError, NotReady
from controller.core.untrusted import clean_line
from controller.files import make_folder, sync_folder, write_atomic

_OURS = """\
[core]
	repositoryFormatVersion = 0
	bare = false
	fsync = all
	commitGraph = false
	multiPackIndex = false
"""
"""A commit that is journalled must survive a power cut, hence fsync. The last two are caches of objects."""

_THEIRS = """\
[core]
	repositoryformatversion = 0
	filemode = true
	bare = false
	logallrefupdates = true
"""
"""The configuration that a person's git finds in a new repository."""

_IDENTITY = {
    f"GIT_{role}_{part}": value
    for role in ("AUTHOR", "COMMITTER")
    for part, value in (("NAME", "Glovebox"), ("EMAIL", "glovebox@localhost"))
}


class SealedGit:
    """Git for the repository in the folder `path`. Raises NotReady if git is not installed."""

    def __init__(self, path: Path) -> None:
        self._path = path.absolute()
        self._theirs = self._path / ".git"
        if shutil.which("git") is None:
            raise NotReady("git is not installed; install it, for instance with `apt-get install git`.")

    def initialise(self, reference: str) -> None:
        """Create the repository, or what is missing of it. Raises OSError."""
        for folder in (self._theirs / "objects", (self._theirs / reference).parent):
            make_folder(folder)
        if not (self._theirs / "config").exists():
            write_atomic(self._theirs / "config", _THEIRS.encode())
        self.point_head(reference)

    def point_head(self, reference: str) -> None:
        """Point HEAD, which a person's git uses, at a branch. Raises OSError."""
        head, wanted = self._theirs / "HEAD", f"ref: {reference}\n".encode()
        if head.is_symlink() or not head.is_file() or head.read_bytes() != wanted:
            write_atomic(head, wanted)

    def sync_object(self, name: str) -> str:
        """Make the name of an object durable, as git does for its content; returns it. Raises OSError."""
        folder = self._theirs / "objects" / name[:2]
        if folder.is_dir():  # a person's `git gc` may have packed an older copy
            sync_folder(folder)
            sync_folder(folder.parent)
        return name

    def sync_reference(self, reference: str) -> None:
        """The same for a branch that was moved. Raises OSError."""
        sync_folder((self._theirs / reference).parent)

    def run(
        self,
        *arguments: str,
        stdin: BinaryIO | None = None,
        index: Path | None = None,
        references: bool = True,
        status: tuple[int, ...] = (0,),
    ) -> bytes:
        """Run git; returns its output. `index` replaces the repository's own; without `references`,
        git sees no branches.

        Raises InfrastructureError if git cannot be run or its exit status is not in `status`.
        """
        import git  # needs git, and is slow to import

        # GitPython can only add environment variables, not remove any.
        unset = (f"--unset={name}" for name in os.environ if name.startswith("GIT_"))
        try:
            with self._view(references) as folder:
                code, output, errors = git.Git(folder).execute(
                    [
                        "env",
                        *unset,
                        *self._environment(folder, index or self._theirs / "index"),
                        "git",
                        *arguments,
                    ],
                    istream=stdin or subprocess.DEVNULL,
                    with_extended_output=True,
                    with_exceptions=False,
                    stdout_as_string=False,
                    strip_newline_in_stdout=False,
                )
        except (OSError, git.GitCommandNotFound) as error:
            raise InfrastructureError(
                f"git {arguments[0]} cannot be run in {self._path}: {error}."
            ) from error
        if code not in status:
            raise InfrastructureError(
                f"git {arguments[0]} failed in {self._path} with status {code}: {clean_line(errors)}"
            )
        return output

    @contextmanager
    def _view(self, references: bool) -> Iterator[str]:
        """A temporary GIT_DIR with our settings and, if asked for, the repository's branches."""
        with tempfile.TemporaryDirectory(prefix="glovebox-git-") as folder:
            view = Path(folder)
            (view / "HEAD").write_text("ref: refs/heads/none\n", encoding="utf-8")
            (view / "config").write_text(_OURS, encoding="utf-8")
            if references:
                (view / "refs").symlink_to(self._theirs / "refs")
                with suppress(FileNotFoundError):  # a person's `git gc` creates one
                    shutil.copyfile(self._theirs / "packed-refs", view / "packed-refs")
            else:
                (view / "refs").mkdir()
            yield folder

    def _environment(self, folder: str, index: Path) -> list[str]:
        ours = {
            **_IDENTITY,
            "GIT_DIR": folder,
            "GIT_WORK_TREE": str(self._path),
            "GIT_OBJECT_DIRECTORY": str(self._theirs / "objects"),
            "GIT_INDEX_FILE": str(index),
            "GIT_CONFIG_NOSYSTEM": "1",
            "GIT_ATTR_NOSYSTEM": "1",
            "GIT_NO_REPLACE_OBJECTS": "1",
            "GIT_TERMINAL_PROMPT": "0",
            "HOME": folder,  # no ~/.gitconfig there
            "XDG_CONFIG_HOME": folder,
        }
        return [f"{name}={value}" for name, value in ours.items()]
