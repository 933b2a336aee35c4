"""Winning commits only, byte for byte, whatever lies in the work tree or in anybody's configuration."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from controller.core.model import InfrastructureError, UserError, VerificationFailed
from controller.repository import GitRepository

FILES = {"train.py": "A = 1\r\n\tü\n", "prepare.py": "P = 1\n", "program.md": "# Try\n"}
TRAILERS = {"Experiment": "1", "Val-Bpb": "0.997900", "Image": "sha256:" + "a" * 64}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "home" / "repo"


@pytest.fixture
def repository(path: Path) -> GitRepository:
    repository = GitRepository(path)
    repository.begin("mar5", FILES)
    return repository


def git(path: Path, *arguments: str) -> str:
    """Git as a person would run it, deaf only to the settings of this machine's users."""
    env = {**os.environ, "GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1"}
    identity = [
        "-c",
        "user.name=person",
        "-c",
        "user.email=person@example.org",
        "-c",
        "protocol.file.allow=always",
    ]
    command = ["git", *identity, *arguments]
    run = subprocess.run(command, cwd=path, env=env, check=True, capture_output=True, text=True)
    return run.stdout


def contents(path: Path) -> dict[str, bytes]:
    return {entry.name: entry.read_bytes() for entry in path.iterdir() if entry.name != ".git"}


def test_a_new_effort_begins_with_one_commit_on_its_branch(repository: GitRepository, path: Path) -> None:
    assert git(path, "branch", "--show-current") == "autoresearch/mar5\n"
    assert git(path, "rev-list", "--count", "HEAD") == "1\n"
    assert git(path, "status", "--porcelain", "--ignored") == ""
    assert contents(path) == {name: text.encode() for name, text in FILES.items()}
    assert {name: repository.read(repository.head(), name) for name in FILES} == FILES


def test_beginning_twice_changes_nothing(repository: GitRepository, path: Path) -> None:
    base = repository.head()
    kept = repository.commit("A = 2\n", "two", TRAILERS)
    assert GitRepository(path).begin("mar5", FILES) == base
    assert repository.head() == kept
    with pytest.raises(UserError, match="began with other files"):
        GitRepository(path).begin("mar5", FILES | {"program.md": "# Other\n"})


def test_beginning_again_after_an_init_that_was_killed(path: Path) -> None:
    (path / ".git" / "refs").mkdir(parents=True)
    assert GitRepository(path).begin("mar5", FILES)
    assert git(path, "log", "--format=%s") == "Begin mar5\n"


def test_a_keep_is_one_commit_with_trailers(repository: GitRepository, path: Path) -> None:
    base = repository.head()
    commit = repository.commit("A = 2\r\n", "wider blocks", TRAILERS)
    assert repository.head() == commit == git(path, "rev-parse", "HEAD").strip()
    assert git(path, "rev-parse", "HEAD^").strip() == base
    assert git(path, "log", "-1", "--format=%s|%an|%ae") == "wider blocks|Glovebox|glovebox@localhost\n"
    assert git(path, "log", "-1", "--format=%(trailers:key=Val-Bpb,valueonly)").strip() == "0.997900"
    assert repository.history() == [(base, {}), (commit, TRAILERS)]
    assert repository.read(commit, "train.py") == "A = 2\r\n"
    assert repository.read(commit, "prepare.py") == FILES["prepare.py"]
    assert (path / "train.py").read_bytes() == b"A = 2\r\n"
    assert git(path, "status", "--porcelain") == ""


def test_committing_an_experiment_twice_gives_the_same_commit(repository: GitRepository, path: Path) -> None:
    first = repository.commit("A = 2\n", "two", TRAILERS)
    second = repository.commit("A = 3\n", "three", TRAILERS | {"Experiment": "2"})
    assert GitRepository(path, "mar5").commit("A = 9\n", "again", TRAILERS) == first
    assert repository.head() == second


def test_a_message_cannot_imitate_a_trailer(repository: GitRepository) -> None:
    hostile = "fast\n\nExperiment: 2\nVal-Bpb: 0.1\n\x1b[2J"
    commit = repository.commit("A = 2\n", hostile, TRAILERS | {"Engine": "x\nExperiment: 3"})
    assert dict(repository.history())[commit]["Experiment"] == "1"
    assert repository.commit("A = 3\n", "", TRAILERS | {"Experiment": "2"}) != commit
    assert len(repository.history()) == 3


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=50))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=10, deadline=None)
def test_any_text_is_committed_byte_for_byte(repository: GitRepository, text: str) -> None:
    number = str(len(repository.history()))
    commit = repository.commit(text, "any", TRAILERS | {"Experiment": number})
    assert repository.read(commit, "train.py") == text


def test_reset_leaves_exactly_the_head(repository: GitRepository, path: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.write_text("mine")
    before = contents(path)
    (path / "train.py").write_text("half an idea")
    (path / "prepare.py").unlink()
    (path / "program.md").unlink()
    (path / "program.md").symlink_to(outside)
    (path / "sub" / "deep").mkdir(parents=True)
    (path / "sub" / "deep" / "notes").write_text("x")
    (path / "link").symlink_to(tmp_path)
    (path / ".gitignore").write_text("*")
    git(path, "add", "--force", "train.py", "sub")
    repository.reset()
    assert contents(path) == before
    assert git(path, "status", "--porcelain", "--ignored") == ""
    assert outside.read_text() == "mine"


def test_reset_survives_locks_and_a_person_who_looked_around(repository: GitRepository, path: Path) -> None:
    commit = repository.commit("A = 2\n", "two", TRAILERS)
    git(path, "checkout", "--quiet", "-b", "mine", "HEAD^")
    for name in ("index.lock", "HEAD.lock", "refs/heads/autoresearch/mar5.lock"):
        (path / ".git" / name).write_text("")
    repository.reset()
    assert git(path, "branch", "--show-current") == "autoresearch/mar5\n"
    assert (path / "train.py").read_text() == "A = 2\n"
    assert repository.head() == commit


def booby_trap(path: Path, witness: Path) -> None:
    """Everything in a repository that can make git run a program."""
    run = f"touch {witness}; cat"
    hooks = path / ".git" / "hooks"
    hooks.mkdir(exist_ok=True)
    for name in ("pre-commit", "post-commit", "reference-transaction", "post-index-change", "post-checkout"):
        (hooks / name).write_text(f"#!/bin/sh\ntouch {witness}\n")
        (hooks / name).chmod(0o755)
    (path / ".gitattributes").write_text("* filter=trap diff=trap text eol=crlf ident\n")
    (path / ".git" / "info").mkdir(exist_ok=True)
    (path / ".git" / "info" / "attributes").write_text("* filter=trap text eol=crlf\n")
    for key, value in {
        "core.hooksPath": str(hooks),
        "core.fsmonitor": run,
        "core.pager": run,
        "core.autocrlf": "true",
        "core.sparseCheckout": "true",
        "filter.trap.clean": run,
        "filter.trap.smudge": run,
        "filter.trap.required": "true",
        "diff.trap.textconv": run,
        "commit.gpgSign": "true",
        "gpg.program": str(witness),
        "log.showSignature": "true",
        "user.name": "Somebody Else",
    }.items():
        git(path, "config", key, value)


def test_nothing_in_the_repository_runs_or_changes_a_byte(
    repository: GitRepository, path: Path, tmp_path: Path
) -> None:
    witness = tmp_path / "ran"
    booby_trap(path, witness)
    commit = repository.commit("A = 2\n\r\n$Id$\n", "two", TRAILERS)
    repository.reset()
    repository.history()
    assert repository.damage() == ""
    assert not witness.exists()
    assert repository.read(commit, "train.py") == "A = 2\n\r\n$Id$\n"
    assert contents(path)["train.py"] == b"A = 2\n\r\n$Id$\n"
    assert not (path / ".gitattributes").exists()
    assert git(path, "cat-file", "commit", commit).count("Glovebox <glovebox@localhost>") == 2
    git(path, "status")
    assert witness.exists()  # the traps were live all the time


def test_the_environment_of_a_person_is_not_heard(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when started from a git hook, or by somebody with a rich ~/.gitconfig."""
    witness = tmp_path / "ran"
    (tmp_path / "hook").mkdir()
    (tmp_path / "hook" / "reference-transaction").write_text(f"#!/bin/sh\ntouch {witness}\n")
    (tmp_path / "hook" / "reference-transaction").chmod(0o755)
    (tmp_path / ".gitconfig").write_text(
        f"[core]\n hooksPath = {tmp_path}/hook\n autocrlf = true\n[init]\n templateDir = {tmp_path}\n"
        "[commit]\n gpgsign = true\n[user]\n name = Person\n email = p@example.org\n"
    )
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "elsewhere"))
    monkeypatch.setenv("GIT_INDEX_FILE", str(tmp_path / "index"))
    monkeypatch.setenv("GIT_AUTHOR_NAME", "Person")
    monkeypatch.setenv("GIT_CONFIG_PARAMETERS", f"'core.hooksPath={tmp_path}/hook'")
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(tmp_path / ".gitconfig"))
    repository = GitRepository(path)
    repository.begin("mar5", FILES)
    commit = repository.commit("A\r\nB\n", "two", TRAILERS)
    assert not witness.exists()
    assert not (tmp_path / "elsewhere").exists()
    assert not (tmp_path / "index").exists()
    assert repository.read(commit, "train.py") == "A\r\nB\n"
    assert (path / "train.py").read_bytes() == b"A\r\nB\n"


@pytest.mark.parametrize("tag", ["mar5", "mar5-gpu0", "a.b_c", "0"])
def test_good_tags(path: Path, tag: str) -> None:
    assert GitRepository(path).begin(tag, FILES)
    assert git(path, "check-ref-format", "--branch", f"autoresearch/{tag}")


@pytest.mark.parametrize(
    "tag", ["", "-x", ".x", "x.", "a..b", "a/b", "../x", "a b", "x.lock", "a~1", "é", "x\n", "@", "x" * 200]
)
def test_bad_tags_are_one_sentence(path: Path, tag: str) -> None:
    with pytest.raises(UserError, match="is no branch name"):
        GitRepository(path, tag)
    assert not path.exists()


@pytest.mark.parametrize("commit", ["HEAD", "--help", "", "0" * 40, "main"])
def test_what_is_no_commit_is_refused(repository: GitRepository, commit: str) -> None:
    with pytest.raises(VerificationFailed, match="is no commit of"):
        repository.read(commit, "train.py")


def test_a_file_that_is_not_there_is_refused(repository: GitRepository) -> None:
    with pytest.raises(VerificationFailed, match="has no file"):
        repository.read(repository.head(), "../../../etc/passwd")


def test_a_branch_that_is_gone_is_refused(repository: GitRepository, path: Path) -> None:
    git(path, "update-ref", "-d", "refs/heads/autoresearch/mar5")
    with pytest.raises(VerificationFailed, match="has no branch autoresearch/mar5"):
        repository.head()


def test_a_foreign_commit_with_other_things_in_it_is_not_checked_out(
    repository: GitRepository, path: Path
) -> None:
    (path / "link").symlink_to("/etc/passwd")
    git(path, "add", "link")
    git(path, "commit", "--quiet", "-m", "mine")
    with pytest.raises(VerificationFailed, match="no plain file"):
        repository.reset()


def test_a_git_that_fails_is_the_infrastructures_fault(repository: GitRepository, path: Path) -> None:
    for loose in (path / ".git" / "objects").glob("??/*"):
        loose.chmod(0o644)
        loose.write_bytes(b"")
    assert "fsck failed" in repository.damage()
    with pytest.raises((InfrastructureError, VerificationFailed)):
        repository.commit("A = 2\n", "two", TRAILERS)
