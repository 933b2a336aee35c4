"""A5 and A6: finding the API key, and making git run or change something."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

from controller.store.repository import GitRepository
from tests.attacks.ground import PROJECT, Assault, Ending, Gained, Ground
from tests.cli.test_end_to_end import make_effort, train_py
from tests.cli.test_secret import KEY, Onlooker
from tests.store.test_repository import booby_trap, git
from tests.support.glovebox import remove_leftovers
from tests.support.messages_server import MessagesServer

NOWHERE, INERT = "nowhere", "inert"
_WHY_KEY = (
    "the agent takes it out of the environment before anything is started, and everything is cleaned of it"
)
_WHY_GIT = "commits are made with plumbing, from the journal's texts, by a git that reads no settings"

# --- A5: the key --------------------------------------------------------------------------------------------


def _with_key(ground: Ground) -> Mapping[str, str]:
    """Where the key is found that a controller has in its environment and the API quotes as it refuses."""
    with tempfile.TemporaryDirectory(dir=ground.bench.home.parent) as folder:
        command, run = make_effort(Path(folder), lambda home: _link(ground, home), train_py(), [])
        run[run.index("--agent") + 1], run[run.index("--experiments") + 1] = "claude", "2"
        onlooker = Onlooker(command.home)
        try:
            with MessagesServer(onlooker) as server:
                url = {"GLOVEBOX_CLAUDE__BASE_URL": server.url}
                said = command(*run, ANTHROPIC_API_KEY=KEY, **url, timeout=240)
        finally:
            remove_leftovers(command.home)
        if not server.received or server.received[0].headers["x-api-key"] != KEY:
            raise RuntimeError(f"the key was not used: {said}")
        if "trainer" not in onlooker.seen[-1]:
            raise RuntimeError("nobody looked while a run was under way")
        files = [path for path in command.home.rglob("*") if path.is_file() and not path.is_symlink()]
        return {
            "the home, its blobs and its logs": _holders(files),
            "what the command says and logs": "its output" if KEY in said.out + said.err else "",
            "other processes and descriptions": "there" if KEY in "".join(onlooker.seen) else "",
        }


def _link(ground: Ground, home: Path) -> None:
    for path in (path for path in (ground.bench.home / "data").rglob("*") if path.is_file()):
        target = home / path.relative_to(ground.bench.home)
        target.parent.mkdir(parents=True, exist_ok=True)
        os.link(path, target)


def _holders(files: list[Path]) -> str:
    return ", ".join(path.name for path in files if KEY.encode() in path.read_bytes())


_KEY_PLACES = (
    "the home, its blobs and its logs",
    "what the command says and logs",
    "other processes and descriptions",
)


def _looks(place: str) -> Assault:
    def attack(ground: Ground) -> Ending:
        if found := ground.once("key", lambda: _with_key(ground))[place]:
            raise Gained(f"the key is in {found}")
        return Ending(NOWHERE)

    return Assault("A5", f"looks for the key in {place}", NOWHERE, _WHY_KEY, attack)


def _layers(ground: Ground) -> Ending:
    """Everything that the images are built from, as a layer, with keys lying about in the tree."""
    with tempfile.TemporaryDirectory() as folder:
        context, image = Path(folder) / "tree", f"glovebox-attack-{os.getpid()}"
        tracked = subprocess.run(["git", "ls-files", "-z"], cwd=PROJECT, capture_output=True, check=True)
        for name in filter(None, tracked.stdout.decode().split("\0")):
            if (PROJECT / name).is_file():
                (context / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(PROJECT / name, context / name)
        for name in (".env", "key", "home/audit.jsonl", ".secrets/key", "home-demo/x", "glovebox.toml"):
            (context / name).parent.mkdir(parents=True, exist_ok=True)
            (context / name).write_text(KEY)
        (Path(folder) / "Dockerfile").write_text("FROM scratch\nCOPY . /\n")
        build = ["docker", "build", "-q", "-t", image, "-f", f"{folder}/Dockerfile", str(context)]
        subprocess.run(build, capture_output=True, check=True, env={**os.environ, "ANTHROPIC_API_KEY": KEY})
        try:
            content = subprocess.run(["docker", "save", image], capture_output=True, check=True).stdout
        finally:
            subprocess.run(["docker", "rmi", image], capture_output=True, check=True)
    if b"controller/cli.py" not in content:
        raise RuntimeError("the layer does not even hold the controller")
    if KEY.encode() in content:
        raise Gained("the key is in a layer of the image")
    return Ending(NOWHERE)


def _described_images(ground: Ground) -> Ending:
    """The image that is used: its description and how it was made."""
    name = ground.bench.config.image
    told = b"".join(
        subprocess.run(["docker", *verb, name], capture_output=True, check=True).stdout
        for verb in (("inspect",), ("history", "--no-trunc"))
    )
    if found := [
        word for word in (b"ANTHROPIC", b"API_KEY", b"PASSWORD", b"SECRET=", b"://user:") if word in told
    ]:
        raise Gained(f"the image speaks of {found}")
    return Ending(NOWHERE)


# --- A6: git ------------------------------------------------------------------------------------------------


def _submodule(repo: Path, _witness: Path) -> None:
    (repo / ".gitmodules").write_text('[submodule "x"]\n\tpath = x\n\turl = ext::sh -c touch% /tmp/x\n')
    (repo / "x").mkdir()
    git(repo / "x", "init", "--quiet")
    (repo / "x" / "file").write_text("x")
    git(repo / "x", "add", "file")
    git(repo / "x", "commit", "--quiet", "-m", "x")
    git(repo, "add", ".gitmodules", "x")


def _include(repo: Path, witness: Path) -> None:
    hooks = repo / ".git" / "mine"
    hooks.mkdir()
    for name in ("reference-transaction", "post-index-change", "pre-commit", "post-checkout"):
        (hooks / name).write_text(f"#!/bin/sh\ntouch {witness}\n")
        (hooks / name).chmod(0o755)
    (repo / ".git" / "more").write_text(f"[core]\n\thooksPath = {hooks}\n\tfsmonitor = touch {witness}\n")
    git(repo, "config", "include.path", "more")


def _links(repo: Path, witness: Path) -> None:
    for name in ("train.py", "program.md"):
        (repo / name).unlink(missing_ok=True)
        (repo / name).symlink_to(witness)


def _promise(repo: Path, witness: Path) -> None:
    for key, value in {
        "core.repositoryformatversion": "1",
        "extensions.partialClone": "origin",
        "remote.origin.url": f"ext::sh -c touch% {witness}",
        "remote.origin.promisor": "true",
        "core.sshCommand": f"touch {witness}",
        "protocol.ext.allow": "always",
    }.items():
        git(repo, "config", key, value)


def _index(repo: Path, _witness: Path) -> None:
    (repo / "train.py").write_text("staged by somebody\n")
    git(repo, "add", "train.py")
    (repo / ".git" / "index.lock").write_text("")


def _sparse(repo: Path, _witness: Path) -> None:
    git(repo, "config", "core.sparseCheckout", "true")
    (repo / ".git" / "info").mkdir(exist_ok=True)
    (repo / ".git" / "info" / "sparse-checkout").write_text("/nothing\n")
    (repo / ".git" / "info" / "exclude").write_text("*\n")
    git(repo, "update-index", "--skip-worktree", "--assume-unchanged", "train.py")


_TRAPS: Mapping[str, Callable[[Path, Path], None]] = {
    "hooks, filters and settings": booby_trap,
    "a submodule": _submodule,
    "an include of hooks": _include,
    "links for files": _links,
    "promised objects": _promise,
    "another index, and a lock,": _index,
    "ignored and sparse files": _sparse,
}


def _traps(name: str, trap: Callable[[Path, Path], None]) -> Assault:
    """Set the trap, keep an experiment, and look whether it went off or changed a byte."""

    def attack(ground: Ground) -> Ending:
        with tempfile.TemporaryDirectory() as folder:
            repo, witness = Path(folder) / "repo", Path(folder) / "witness"
            repository = GitRepository(repo)
            base = repository.begin("t", {"train.py": "A = 1\n", "program.md": "p\n"})
            trap(repo, witness)
            commit = repository.commit("A = 2\r\n$Id$\n", "two", {"Experiment": "1", "Val-Bpb": "1.0"})
            repository.reset()
            read = repository.read(commit, "train.py"), (repo / "train.py").read_bytes()
            known = [entry for entry, _ in repository.history()], sorted(repository.files(commit))
            left = {path.name for path in repo.iterdir()}
            if witness.exists():
                raise Gained("a program of the repository was run, or a file outside written to")
        if read != ("A = 2\r\n$Id$\n", b"A = 2\r\n$Id$\n"):
            raise Gained(f"train.py was changed: {read}")
        if known != ([base, commit], ["program.md", "train.py"]) or left != {
            ".git",
            "program.md",
            "train.py",
        }:
            raise Gained(f"the commits hold something else: {known} {left}")
        return Ending(INERT)

    return Assault("A6", f"puts {name} into the repository", INERT, _WHY_GIT, attack)


CASES = (
    *(_looks(place) for place in _KEY_PLACES),
    Assault(
        "A5", "looks for the key in layers of an image", NOWHERE, "what .dockerignore lets through", _layers
    ),
    Assault("A5", "looks for keys in the image's description", NOWHERE, _WHY_KEY, _described_images),
    *(_traps(name, trap) for name, trap in _TRAPS.items()),
)
