"""The research git repository. Its history is linear: the base, then winning commits only.

Commits are made with git's plumbing commands, from text that the journal vouches for. The work tree is
written for people and never read, so nothing in it (attributes, filters, submodules, ignore files) can change
what is committed. Git reads no configuration either: see `sealed_git`.
"""

from __future__ import annotations

import itertools
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from controller.core.errors import InfrastructureError, UserError, VerificationFailed
from controller.core.untrusted import clean_line
from controller.failpoints import reach
from controller.files import PARTIAL, make_folder, write_atomic
from controller.store.sealed_git import SealedGit

_TAG = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9_-]|\.(?=[A-Za-z0-9_-])){0,99}")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_NOTHING = "0" * 40
#: Left behind by a killed git, or by us. The holder of the home's lock is the repository's only user.
_STALE = ("index.lock", "HEAD.lock", "refs/**/*.lock", f".*{PARTIAL}")
NOTES = "refs/notes/glovebox"
"""Notes of certified commits, `git notes --ref glovebox show COMMIT`."""


class GitRepository:
    """Implements `ports.Repository`. `tag` names the effort's branch; `begin` sets it as well.

    Every method raises InfrastructureError if git or the disk fails.
    """

    def __init__(self, path: Path, tag: str | None = None) -> None:
        """Raises UserError for a tag that is not a valid branch name, NotReady if git is not installed."""
        self._path = path
        self._branch = _branch(tag) if tag is not None else None
        self._git = SealedGit(path)

    def begin(self, tag: str, files: Mapping[str, str]) -> str:
        """Create the branch with `files` as its first commit and return that commit.

        Idempotent. Raises UserError if the branch began with other files.
        """
        self._branch = _branch(tag)
        self._initialise()
        tree = self._tree({name: self._store(text) for name, text in files.items()})
        head = self._resolve(self._branch)
        if head is None:
            base = self._commit_tree(tree, None, f"Begin {tag}\n")
            reach("base-made")
            self._move(base, _NOTHING)
        else:
            base, _ = self._log(head)[-1]
            if self._resolve(f"{base}^{{tree}}") != tree:
                raise UserError(
                    f"The effort {tag} began with other files than these; choose another --tag and --home."
                )
        self.reset()
        return base

    def head(self) -> str:
        """Full hash of the branch's last commit. Raises VerificationFailed if the branch is gone."""
        head = self._resolve(self._reference)
        if head is None:
            raise VerificationFailed(
                f"{self._path} has no branch {self._reference.removeprefix('refs/heads/')}"
            )
        return head

    def read(self, commit: str, name: str) -> str:
        """Text of one file at one commit. Raises VerificationFailed if there is no such file."""
        blob = self.files(commit).get(name)
        if blob is None:
            raise VerificationFailed(f"commit {commit[:7]} has no file {name}")
        return self.content(blob).decode("utf-8")

    def commit(self, train_py: str, message: str, trailers: Mapping[str, str]) -> str:
        """Commit a kept train.py on top of the branch and return the full hash.

        Idempotent for each `Experiment` trailer.
        """
        head = self.head()
        if (commit := self._committed(head, trailers["Experiment"])) is not None:
            return commit
        tree = self._tree({**self.files(head), "train.py": self._store(train_py)})
        subject = clean_line(message) or f"Experiment {trailers['Experiment']}"
        return self._advance(head, tree, subject, trailers)

    def take_back(self, commit: str, message: str, trailers: Mapping[str, str]) -> str:
        """Commit the files of an earlier commit on top of the branch and return the full hash.

        Idempotent for each first trailer: nothing is committed before the journal has heard of it.
        """
        head = self.head()
        (_, newest), *_ = self._log(head, "--no-walk")
        name, value = next(iter(trailers.items()))
        if newest.get(name) == value:
            return head
        return self._advance(head, self._tree(self.files(commit)), message, trailers)

    def certify(self, commit: str, note: str) -> None:
        """Move the certified head to a commit and attach a note to it. Idempotent."""
        before = self._resolve(NOTES)
        notes = self.files(before) if before is not None else {}
        blob = self._store(note)
        if before is None or notes.get(commit) != blob:
            tree = self._tree({**notes, commit: blob})
            self._move(self._commit_tree(tree, before, "Certificates\n"), before or _NOTHING, NOTES)
            reach("note-made")
        reference = self._certified
        if (now := self._resolve(reference)) != commit:
            self._move(commit, now or _NOTHING, reference)
            reach("certified-moved")

    def certified(self) -> tuple[str, str] | None:
        """The certified head and its note; None if no chain was certified yet."""
        commit, notes = self._resolve(self._certified), self._resolve(NOTES)
        if commit is None:
            return None
        blob = self.files(notes).get(commit) if notes is not None else None
        return commit, self.content(blob).decode("utf-8", "replace") if blob is not None else ""

    def _advance(self, head: str, tree: str, subject: str, trailers: Mapping[str, str]) -> str:
        lines = "".join(f"{key}: {clean_line(value)}\n" for key, value in trailers.items())
        commit = self._commit_tree(tree, head, f"{subject}\n\n{lines}")
        reach("commit-made")
        self._move(commit, head)
        reach("branch-moved")
        self.reset()
        return commit

    def reset(self) -> None:
        """Make the work tree and the index match the head of the branch exactly."""
        try:
            for pattern in _STALE:
                for stale in (self._path / ".git").glob(pattern):
                    stale.unlink()
            files = {name: self.content(blob) for name, blob in self.files(self.head()).items()}
            self._git.point_head(self._reference)
            self._git.run("read-tree", self._reference)
            reach("index-read")
            _write_work_tree(self._path, files)
        except OSError as error:
            raise InfrastructureError(
                f"The work tree {self._path} cannot be reset: {error.strerror}."
            ) from error

    def merge(self, base: str, ours: str, theirs: str) -> str | None:
        """Three-way merge of texts, line by line: `ours` with what `theirs` changed in `base`.

        None if the two conflict. Raises InfrastructureError.
        """
        with tempfile.TemporaryDirectory() as folder, _disk(self._path):
            paths = [Path(folder) / name for name in ("ours", "base", "theirs")]
            for path, text in zip(paths, (ours, base, theirs), strict=True):
                path.write_bytes(text.encode("utf-8", "surrogatepass"))
            # Its status is the number of conflicts, 127 at most; without any, `--ours` changes nothing.
            merged = self._git.run("merge-file", "-p", *map(str, paths), status=tuple(range(128)))
            again = self._git.run("merge-file", "-p", "--ours", *map(str, paths))
        return merged.decode("utf-8", "surrogatepass") if merged == again else None

    def history(self) -> list[tuple[str, dict[str, str]]]:
        """(commit, its trailers) for the whole branch, base first."""
        return self._log(self.head())[::-1]

    def damage(self) -> str:
        """What `git fsck` complains about; empty if nothing."""
        try:
            head = self._resolve(self._reference)
            options = ("--full", "--strict", "--no-dangling", "--no-progress")
            # From git 2.50 on, fsck complains about references behind a symlink.
            self._git.run("fsck", *options, *([head] if head else []), references=False)
        except InfrastructureError as error:
            return str(error)
        return ""

    def files(self, commit: str) -> dict[str, str]:
        """{name: blob} of every file of a commit. Raises VerificationFailed if it is not one of ours."""
        if not _COMMIT.fullmatch(commit) or self._resolve(f"{commit}^{{commit}}") is None:
            raise VerificationFailed(f"{clean_line(commit)!r} is not a commit of {self._path}")
        files = {}
        listing = self._git.run("ls-tree", "-r", "-z", "--full-tree", commit).decode("utf-8")
        for line in listing.split("\0")[:-1]:
            (mode, _, blob), name = line.split("\t", 1)[0].split(" "), line.split("\t", 1)[1]
            if mode != "100644" or "/" in name:
                raise VerificationFailed(
                    f"commit {commit[:7]} holds {clean_line(name)!r}, which is not a plain file"
                )
            files[name] = blob
        return files

    def content(self, blob: str) -> bytes:
        return self._git.run("cat-file", "blob", blob)

    @property
    def _certified(self) -> str:
        return f"refs/glovebox/certified/{self._reference.removeprefix('refs/heads/autoresearch/')}"

    @property
    def _reference(self) -> str:
        if self._branch is None:
            raise AssertionError("an effort has a tag before its repository is used")
        return self._branch

    def _initialise(self) -> None:
        """Idempotent: also completes an initialisation that was cut short."""
        try:
            make_folder(self._path)
            self._git.initialise(self._reference)
        except OSError as error:
            raise UserError(f"{self._path} cannot be created: {error.strerror}.") from error

    def _store(self, text: str) -> str:
        """Write a blob, byte for byte; returns its hash."""
        with _as_input(text) as file:
            return self._made("hash-object", "-w", "--no-filters", "--stdin", stdin=file)

    def _tree(self, blobs: Mapping[str, str]) -> str:
        """Write a tree of plain files through a temporary index; returns its hash."""
        with tempfile.TemporaryDirectory() as folder:
            index = Path(folder) / "index"
            entries = [("--cacheinfo", f"100644,{blob},{name}") for name, blob in blobs.items()]
            self._git.run("update-index", "--add", *itertools.chain(*entries), index=index)
            return self._made("write-tree", index=index)

    def _commit_tree(self, tree: str, parent: str | None, message: str) -> str:
        parents = ("-p", parent) if parent else ()
        with _as_input(message) as file:
            return self._made("commit-tree", tree, *parents, "-F", "-", stdin=file)

    def _made(self, *arguments: str, stdin: BinaryIO | None = None, index: Path | None = None) -> str:
        """Have git write an object, durably; returns its hash."""
        name = self._git.run(*arguments, stdin=stdin, index=index).decode().strip()
        with _disk(self._path):
            return self._git.sync_object(name)

    def _move(self, commit: str, before: str, reference: str | None = None) -> None:
        """Move the branch, or another reference, to another commit, durably."""
        reference = reference or self._reference
        self._git.run("update-ref", reference, commit, before)
        with _disk(self._path):
            self._git.sync_reference(reference)

    def _resolve(self, name: str) -> str | None:
        found = self._git.run("rev-parse", "--verify", "--quiet", "--end-of-options", name, status=(0, 1))
        return found.decode().strip() or None

    def _committed(self, head: str, experiment: str) -> str | None:
        """The commit of an experiment, if there is one already."""
        (_, newest), *_ = self._log(head, "--no-walk")
        if "Experiment" in newest and _number(newest["Experiment"]) < _number(experiment):
            return None  # the usual case, in constant time
        found = (commit for commit, known in self._log(head) if known.get("Experiment") == experiment)
        return next(found, None)

    def _log(self, head: str, walk: str = "--topo-order") -> list[tuple[str, dict[str, str]]]:
        """(commit, its trailers) of everything reachable from `head`, newest first."""
        text = self._git.run("log", "-z", walk, "--no-color", "--format=%H%n%B", head)
        entries = [entry.partition("\n") for entry in text.decode("utf-8", "replace").split("\0")[:-1]]
        return [(commit, _trailers(message)) for commit, _, message in entries]


@contextmanager
def _as_input(text: str) -> Iterator[BinaryIO]:
    """A file for git to read `text` from; an argument would use the locale's encoding."""
    with tempfile.TemporaryFile() as file:
        file.write(text.encode("utf-8"))
        file.seek(0)
        yield file


@contextmanager
def _disk(path: Path) -> Iterator[None]:
    """Turns an OSError in the block into InfrastructureError."""
    try:
        yield
    except OSError as error:
        raise InfrastructureError(f"{path} cannot be written: {error.strerror}.") from error


def _branch(tag: str) -> str:
    if not _TAG.fullmatch(tag) or tag.endswith(".lock"):
        raise UserError(
            f"The tag {clean_line(tag, 60)!r} is not a valid branch name; "
            "use up to 100 letters, digits, '-', '_' and '.'."
        )
    return f"refs/heads/autoresearch/{tag}"


def _trailers(message: str) -> dict[str, str]:
    """The `Key: value` lines of a message's last paragraph, unless that is the subject."""
    _, separator, paragraph = message.rstrip("\n").rpartition("\n\n")
    lines = paragraph.split("\n") if separator else []
    return dict(line.split(": ", 1) for line in lines if ": " in line)


def _number(experiment: str) -> int:
    """The experiment's number; -1, out of order, for anything else."""
    return int(experiment) if experiment.isdecimal() else -1


def _write_work_tree(folder: Path, files: Mapping[str, bytes]) -> None:
    """Make `folder`, apart from .git, hold exactly `files`. Symlinks are removed, never followed."""
    for entry in folder.iterdir():
        if entry.name != ".git" and not _is_plain(entry, files.get(entry.name)):
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            else:
                entry.unlink()
    for name, content in files.items():
        if not (folder / name).exists():
            write_atomic(folder / name, content)


def _is_plain(entry: Path, content: bytes | None) -> bool:
    if content is None or entry.is_symlink() or not entry.is_file():
        return False
    return entry.stat().st_mode & 0o111 == 0 and entry.read_bytes() == content
