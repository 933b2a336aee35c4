"""Winning commits only, byte for byte, whatever lies in the work tree or in anybody's configuration."""

from __future__ import annotations

import importlib
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from controller.core.errors import InfrastructureError, UserError, VerificationFailed
from controller.store.repository import GitRepository

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


def test_a_chain_is_taken_back_by_one_commit(repository: GitRepository, path: Path) -> None:
    base = repository.head()
    kept = repository.commit("A = 2\n", "two", TRAILERS)
    back = repository.take_back(base, "Back to the base", {"Certificate": "0", "Outcome": "failed"})
    assert repository.head() == back and git(path, "rev-parse", "HEAD^").strip() == kept
    assert repository.files(back) == repository.files(base)
    assert (path / "train.py").read_bytes().decode() == FILES["train.py"]
    assert repository.take_back(base, "Back to the base", {"Certificate": "0"}) == back
    again = repository.commit("A = 3\n", "three", TRAILERS | {"Experiment": "2"})
    assert repository.commit("A = 9\n", "again", TRAILERS) == kept and repository.head() == again


def test_a_certified_head_has_a_reference_and_a_note(repository: GitRepository, path: Path) -> None:
    assert repository.certified() is None
    first = repository.commit("A = 2\n", "two", TRAILERS)
    repository.certify(first, "ü: 1\n")
    assert repository.certified() == (first, "ü: 1\n")
    repository.certify(first, "ü: 1\n")
    assert git(path, "rev-list", "--count", "refs/notes/glovebox").strip() == "1"
    second = repository.commit("A = 3\n", "three", TRAILERS | {"Experiment": "2"})
    repository.certify(second, "2\n")
    assert git(path, "rev-parse", "refs/glovebox/certified/mar5").strip() == second
    notes = [git(path, "notes", "--ref", "glovebox", "show", commit) for commit in (first, second)]
    assert notes == ["ü: 1\n", "2\n"]


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
    for name in ("index.lock", "HEAD.lock", "refs/heads/autoresearch/mar5.lock", ".HEAD.x.partial"):
        (path / ".git" / name).write_text("")
    repository.reset()
    assert git(path, "branch", "--show-current") == "autoresearch/mar5\n"
    assert (path / "train.py").read_text() == "A = 2\n"
    assert repository.head() == commit
    assert not list((path / ".git").glob("*.lock")) and not list((path / ".git").glob(".*.partial"))


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
        "hook.trap.event": "reference-transaction",  # from git 2.54 on
        "hook.trap.command": run,
        "core.fsmonitor": run,
        "core.pager": run,
        "core.editor": run,
        "core.sshCommand": run,
        "core.alternateRefsCommand": run,
        "credential.helper": f"!{run}",
        "alias.log": f"!{run}",
        "diff.external": run,
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


def as_a_person_sees_it(path: Path) -> str:
    try:
        return git(path, "log", "--format=%H") + git(path, "status", "--porcelain")
    except subprocess.CalledProcessError:
        return "refused"


def another_history(path: Path) -> str:
    """A commit of somebody else's, on no branch."""
    tree = git(path, "rev-parse", "HEAD^{tree}").strip()
    return git(path, "commit-tree", tree, "-m", "mine").strip()


def set_config(text: str) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        with (path / ".git" / "config").open("a") as file:
            file.write(text)

    return change


def put(name: str, text: str) -> Callable[[Path], None]:
    """Puts a file into .git, with the hash of the head in the place of HEAD, of a foreign one of OTHER."""

    def change(path: Path) -> None:
        file = path / ".git" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        words = text.replace("HEAD", git(path, "rev-parse", "HEAD").strip())
        file.write_text(words.replace("OTHER", another_history(path)))

    return change


def replace_head(path: Path) -> None:
    git(path, "replace", git(path, "rev-parse", "HEAD").strip(), another_history(path))


def give_away(path: Path) -> None:
    """To somebody else, whose repositories git does not trust without being told to (safe.directory)."""
    if os.getuid() != 0:
        pytest.skip("only root can give files away")
    for entry in [path, *path.rglob("*")]:
        os.chown(entry, 12345, 12345)


@pytest.mark.parametrize(
    "change",
    [
        set_config("[core]\n\tbare = true\n\tworktree = /nowhere\n"),
        set_config("[core]\n\trepositoryFormatVersion = 99\n"),
        set_config("[core]\n\trepositoryFormatVersion = 1\n[extensions]\n\tobjectFormat = sha256\n"),
        set_config("[core]\n\trepositoryFormatVersion = 1\n[extensions]\n\tnoSuchThing = true\n"),
        set_config("[include]\n\tpath = /dev/fd/none/such\n[core\n"),
        put("info/grafts", "HEAD\n"),
        put("shallow", "HEAD\n"),
        put("commondir", "/nowhere\n"),
        replace_head,
        give_away,
    ],
    ids=[
        "bare and elsewhere",
        "an unknown format",
        "other hashes",
        "an unknown extension",
        "no configuration at all",
        "grafts",
        "shallow",
        "commondir",
        "replaced",
        "somebody else's",
    ],
)
def test_what_git_would_go_by_is_not_gone_by(
    repository: GitRepository, path: Path, change: Callable[[Path], None]
) -> None:
    base = repository.head()
    first = repository.commit("A = 2\n", "two", TRAILERS)
    unharmed = as_a_person_sees_it(path)
    change(path)
    assert as_a_person_sees_it(path) != unharmed  # it does change what git does
    second = repository.commit("A = 3\n", "three", TRAILERS | {"Experiment": "2"})
    repository.reset()
    assert [commit for commit, _ in repository.history()] == [base, first, second]
    assert repository.damage() == ""
    assert contents(path)["train.py"] == b"A = 3\n"


def test_branches_that_a_person_has_packed_are_found(repository: GitRepository, path: Path) -> None:
    base = repository.head()
    first = repository.commit("A = 2\n", "two", TRAILERS)
    git(path, "gc", "--quiet")
    assert not list((path / ".git" / "refs" / "heads").rglob("mar5"))
    assert repository.damage() == ""
    second = repository.commit("A = 3\n", "three", TRAILERS | {"Experiment": "2"})
    assert [commit for commit, _ in repository.history()] == [base, first, second]
    assert git(path, "rev-parse", "HEAD").strip() == second


def test_the_environment_of_a_person_is_not_heard(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when started from a git hook, or by somebody with a rich ~/.gitconfig."""
    importlib.import_module("git")  # asks for the version of git when it is first imported
    witness, theirs = tmp_path / "ran", tmp_path / "theirs"
    (theirs / "hooks").mkdir(parents=True)
    for name in ("reference-transaction", "post-index-change"):
        (theirs / "hooks" / name).write_text(f"#!/bin/sh\ntouch {witness}\n")
        (theirs / "hooks" / name).chmod(0o755)
    (theirs / ".gitconfig").write_text(
        f"[core]\n hooksPath = {theirs}/hooks\n autocrlf = true\n[init]\n templateDir = {theirs}\n"
        " defaultRefFormat = reftable\n defaultObjectFormat = sha256\n[commit]\n gpgsign = true\n"
        f"[gpg]\n program = {theirs}/hooks/post-index-change\n[log]\n showSignature = true\n"
        "[user]\n name = Person\n email = p@example.org\n[i18n]\n commitEncoding = ISO-8859-1\n"
    )
    (theirs / "git").mkdir()
    shutil.copy(theirs / ".gitconfig", theirs / "git" / "config")  # where XDG_CONFIG_HOME leads
    hook = {"KEY_0": "core.hooksPath", "VALUE_0": str(theirs / "hooks"), "COUNT": "1"}
    for name, value in {
        "HOME": str(theirs),
        "XDG_CONFIG_HOME": str(theirs),
        "GIT_DIR": str(tmp_path / "elsewhere"),
        "GIT_COMMON_DIR": str(tmp_path / "elsewhere"),
        "GIT_OBJECT_DIRECTORY": str(tmp_path / "elsewhere"),
        "GIT_WORK_TREE": str(tmp_path / "elsewhere"),
        "GIT_INDEX_FILE": str(tmp_path / "index"),
        "GIT_SHALLOW_FILE": str(tmp_path / "shallow"),
        "GIT_QUARANTINE_PATH": str(tmp_path / "quarantine"),
        "GIT_TEMPLATE_DIR": str(theirs),
        "GIT_DEFAULT_REF_FORMAT": "reftable",
        "GIT_DEFAULT_HASH": "sha256",
        "GIT_ATTR_SOURCE": "no such tree",
        "GIT_NAMESPACE": "theirs",
        "GIT_TRACE": str(tmp_path / "trace"),
        "GIT_AUTHOR_NAME": "Person",
        "GIT_AUTHOR_DATE": "1999-12-31T12:00:00Z",
        "GIT_COMMITTER_DATE": "1999-12-31T12:00:00Z",
        "GIT_CONFIG_PARAMETERS": f"'core.hooksPath={theirs}/hooks'",
        "GIT_CONFIG_GLOBAL": str(theirs / ".gitconfig"),
        "GIT_CONFIG_SYSTEM": str(theirs / ".gitconfig"),
        **{f"GIT_CONFIG_{key}": value for key, value in hook.items()},
    }.items():
        monkeypatch.setenv(name, value)
    repository = GitRepository(path)
    base = repository.begin("mar5", FILES)
    commit = repository.commit("A\r\nB\n", "zwölf", TRAILERS)
    assert [made for made, _ in repository.history()] == [base, commit]
    assert repository.read(commit, "train.py") == "A\r\nB\n"
    assert (path / "train.py").read_bytes() == b"A\r\nB\n"
    monkeypatch.undo()
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["home", "theirs"]
    told = git(path, "log", "-1", "--format=%an %cn %as %cs %s").split()
    assert (told[:2], told[-1]) == (["Glovebox", "Glovebox"], "zwölf")
    assert not any(date.startswith("1999") for date in told)
    assert git(path, "cat-file", "commit", commit).count("gpgsig") == 0


@pytest.mark.parametrize("tag", ["mar5", "mar5-gpu0", "a.b_c", "0"])
def test_good_tags(path: Path, tag: str) -> None:
    assert GitRepository(path).begin(tag, FILES)
    assert git(path, "check-ref-format", "--branch", f"autoresearch/{tag}")


@pytest.mark.parametrize(
    "tag", ["", "-x", ".x", "x.", "a..b", "a/b", "../x", "a b", "x.lock", "a~1", "é", "x\n", "@", "x" * 200]
)
def test_bad_tags_are_one_sentence(path: Path, tag: str) -> None:
    with pytest.raises(UserError, match="is not a valid branch name"):
        GitRepository(path, tag)
    assert not path.exists()


@pytest.mark.parametrize("commit", ["HEAD", "--help", "", "0" * 40, "main"])
def test_what_is_no_commit_is_refused(repository: GitRepository, commit: str) -> None:
    with pytest.raises(VerificationFailed, match="is not a commit of"):
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
    with pytest.raises(VerificationFailed, match="not a plain file"):
        repository.reset()


def test_a_git_that_fails_is_the_infrastructures_fault(repository: GitRepository, path: Path) -> None:
    for loose in (path / ".git" / "objects").glob("??/*"):
        loose.chmod(0o644)
        loose.write_bytes(b"")
    assert "fsck failed" in repository.damage()
    with pytest.raises((InfrastructureError, VerificationFailed)):
        repository.commit("A = 2\n", "two", TRAILERS)
