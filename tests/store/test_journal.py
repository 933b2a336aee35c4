"""The chain holds, a torn end is mended, and no change of a single byte goes unseen."""

from __future__ import annotations

import json
import math
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from controller.core.errors import InfrastructureError, UserError, VerificationFailed
from controller.core.events import JournalRepaired, SessionStopped, TrainingFinished
from controller.core.values import Claim, RunOutcome
from controller.store.journal import GENESIS, NAME, Journal, blob_path, read_blob, read_records, sha256
from controller.store.lock import HomeLock, home_in_use
from tests.support.story import TickingClock


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    journal = Journal(tmp_path, TickingClock())
    for reason in ("one", "two", "three"):
        journal.append(SessionStopped(reason=reason))
    yield journal
    journal.close()


def torn_tail(home: Path) -> bytes:
    return (home / NAME).read_bytes().rpartition(b"\n")[2]


def reasons(home: Path) -> list[str]:
    return [r.data.reason for r in read_records(home) if isinstance(r.data, SessionStopped)]


def test_a_line_is_plain_json_and_names_the_line_before(journal: Journal, tmp_path: Path) -> None:
    lines = [json.loads(line) for line in (tmp_path / NAME).read_text().splitlines()]
    assert sorted(lines[0]) == ["data", "event", "experiment", "hash", "prev", "seq", "time"]
    assert lines[0]["prev"] == GENESIS
    assert [line["prev"] for line in lines[1:]] == [line["hash"] for line in lines[:-1]]
    assert journal.append(SessionStopped(reason="the next")).prev == lines[-1]["hash"]
    assert lines[0]["time"] == "2026-01-01T00:00:01.000000+00:00"


def test_the_hash_can_be_computed_by_somebody_else(journal: Journal, tmp_path: Path) -> None:
    """As an auditor would with nothing but the description of the format."""
    line = json.loads((tmp_path / NAME).read_text().splitlines()[1])
    claimed = line.pop("hash")
    canonical = json.dumps(line, sort_keys=True, separators=(",", ":")).encode()
    assert claimed == sha256(line["prev"].encode() + canonical)


def test_it_goes_on_where_the_last_process_stopped(journal: Journal, tmp_path: Path) -> None:
    journal.close()
    again = Journal(tmp_path, TickingClock())
    record = again.append(SessionStopped(reason="four"))
    assert record.seq == 3
    assert list(read_records(tmp_path))[-1] == record
    assert reasons(tmp_path) == ["one", "two", "three", "four"]


@given(st.text(st.characters(exclude_categories=()), max_size=100), st.floats(), st.integers())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_what_is_appended_is_what_a_replay_gives(
    journal: Journal, tmp_path: Path, text: str, number: float, size: int
) -> None:
    outcome = RunOutcome(seconds=1, exit_code=size, detail=text, claim=Claim(val_bpb=number, depth=-number))
    appended = journal.append(TrainingFinished(experiment=0, attempt=1, outcome=outcome))
    replayed = list(read_records(tmp_path))[-1]
    assert replayed.model_dump_json() == appended.model_dump_json()
    assert isinstance(replayed.data, TrainingFinished)
    read = replayed.data.outcome.claim.val_bpb
    assert read is not None and (read == number or (math.isnan(read) and math.isnan(number)))


def test_numbers_json_does_not_have_are_strings(journal: Journal, tmp_path: Path) -> None:
    outcome = RunOutcome(seconds=1, exit_code=0, claim=Claim(val_bpb=math.nan, depth=-math.inf))
    journal.append(TrainingFinished(experiment=0, attempt=1, outcome=outcome))

    def refuse(constant: str) -> float:
        raise AssertionError(f"{constant} is no JSON")

    line = json.loads((tmp_path / NAME).read_text().splitlines()[-1], parse_constant=refuse)
    claim = line["data"]["outcome"]["claim"]
    assert (claim["val_bpb"], claim["depth"]) == ("NaN", "-Infinity")


def test_no_changed_byte_goes_unseen(journal: Journal, tmp_path: Path) -> None:
    path = tmp_path / NAME
    content = path.read_bytes()
    for position in range(len(content)):
        changed = bytearray(content)
        changed[position] ^= 0x01
        path.write_bytes(changed)
        line = content[:position].count(b"\n") + 1
        try:
            read = len(list(read_records(tmp_path)))
        except VerificationFailed as error:
            assert f"line {line} " in str(error)
        else:  # only the newline that ends the file can go and leave a good chain before it
            assert (read, position) == (2, len(content) - 1)
            assert torn_tail(tmp_path)


@pytest.mark.parametrize("lines", [[1, 0, 2], [0, 2], [1, 2], [0, 0, 1, 2]])
def test_lines_cannot_be_moved_dropped_or_doubled(journal: Journal, tmp_path: Path, lines: list[int]) -> None:
    content = (tmp_path / NAME).read_bytes().splitlines(keepends=True)
    (tmp_path / NAME).write_bytes(b"".join(content[number] for number in lines))
    with pytest.raises(VerificationFailed):
        list(read_records(tmp_path))
    with pytest.raises(VerificationFailed):
        Journal(tmp_path, TickingClock())


def test_a_journal_of_an_earlier_version_is_refused_in_a_sentence(journal: Journal, tmp_path: Path) -> None:
    head = [record.hash for record in read_records(tmp_path)][-1]
    told = {"event": "proposed", "experiment": 0, "data": {"experiment": 0, "agent": "tuner"}}
    content = {"prev": head, "seq": 3, "time": "t", **told}
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
    content["hash"] = sha256(head.encode() + canonical.encode())
    with (tmp_path / NAME).open("a") as file:
        file.write(json.dumps(content, sort_keys=True, separators=(",", ":")) + "\n")
    with pytest.raises(UserError, match=r"written by Glovebox 0\.1, and only that version reads this home"):
        list(read_records(tmp_path))


@pytest.mark.parametrize(
    ("forged", "complaint"),
    [
        ({"event": "coup", "data": {}}, "line 4 holds no event"),
        ({"event": "session_stopped", "data": {}}, "line 4 holds no event"),
        ({"event": "committed", "data": {"experiment": 7, "commit": "c"}}, "line 4 contradicts itself"),
        ({"event": "session_stopped", "data": {"reason": "x"}, "experiment": 7}, "line 4 contradicts itself"),
    ],
)
def test_a_forged_line_with_a_good_hash_must_hold_an_event(
    journal: Journal, tmp_path: Path, forged: dict[str, object], complaint: str
) -> None:
    head = [record.hash for record in read_records(tmp_path)][-1]
    content = {"experiment": None, "prev": head, "seq": 3, "time": "t", **forged}
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":")).encode()
    line = json.dumps(
        content | {"hash": sha256(head.encode() + canonical)}, sort_keys=True, separators=(",", ":")
    )
    with (tmp_path / NAME).open("a") as file:
        file.write(line + "\n")
    with pytest.raises(VerificationFailed, match=complaint):
        list(read_records(tmp_path))


@pytest.mark.parametrize("torn", [b"{", b'{"data":{"reason":"fo', b"\x00" * 50, b"\xff\x1b[2J"])
def test_a_torn_last_line_is_cut_off_and_reported(journal: Journal, tmp_path: Path, torn: bytes) -> None:
    journal.close()
    with (tmp_path / NAME).open("ab") as file:
        file.write(torn)
    assert reasons(tmp_path) == ["one", "two", "three"]
    Journal(tmp_path, TickingClock()).close()
    last = list(read_records(tmp_path))[-1]
    assert isinstance(last.data, JournalRepaired)
    assert "\x1b" not in last.data.removed
    assert torn_tail(tmp_path) == b""
    Journal(tmp_path, TickingClock()).close()
    assert list(read_records(tmp_path))[-1] == last  # and only once


def test_any_prefix_of_the_file_is_a_good_start(journal: Journal, tmp_path: Path) -> None:
    """A process can die after any byte: here after every one of the last line and many before."""
    content = (tmp_path / NAME).read_bytes()
    journal.close()
    last_line = content.rindex(b"\n", 0, -1) + 1
    for length in [*range(0, last_line, 41), *range(last_line, len(content) + 1)]:
        (tmp_path / NAME).write_bytes(content[:length])
        again = Journal(tmp_path, TickingClock())
        again.append(SessionStopped(reason="after"))
        complete = ["one", "two", "three"][: content[:length].count(b"\n")]
        assert reasons(tmp_path) == [*complete, "after"]
        repaired = [r.data.removed for r in read_records(tmp_path) if isinstance(r.data, JournalRepaired)]
        torn = content[:length].rpartition(b"\n")[2].decode()
        assert repaired == ([torn] if torn else [])
        again.close()


@contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    """The kernel refuses to let any file grow beyond this, as a full disk would."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


def test_a_full_disk_leaves_the_journal_as_it_was(journal: Journal, tmp_path: Path) -> None:
    before = (tmp_path / NAME).read_bytes()
    with file_size_limit(len(before) + 100), pytest.raises(InfrastructureError, match="cannot be written"):
        journal.append(SessionStopped(reason="x" * 500))
    assert (tmp_path / NAME).read_bytes() == before
    journal.append(SessionStopped(reason="four"))
    assert reasons(tmp_path) == ["one", "two", "three", "four"]


def test_a_full_disk_leaves_no_half_blob(journal: Journal, tmp_path: Path) -> None:
    content = b"x" * 10_000
    with file_size_limit(100), pytest.raises(InfrastructureError):
        journal.put_blob(content)
    assert not [path for path in (tmp_path / "blobs").rglob("*") if path.is_file()]
    assert journal.get_blob(journal.put_blob(content)) == content


@given(st.binary(max_size=1000))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=20, deadline=None)
def test_blobs_come_back(journal: Journal, content: bytes) -> None:
    assert journal.get_blob(journal.put_blob(content)) == content


def test_a_damaged_blob_is_refused_and_mended_by_storing_it_again(journal: Journal, tmp_path: Path) -> None:
    name = journal.put_blob(b"content")
    blob_path(tmp_path, name).write_bytes(b"Content")
    with pytest.raises(VerificationFailed, match="not what its name says"):
        read_blob(tmp_path, name)
    assert journal.put_blob(b"content") == name
    assert read_blob(tmp_path, name) == b"content"


@pytest.mark.parametrize("name", ["", "../../etc/passwd", "0" * 63, "0" * 64])
def test_a_name_that_is_no_blob_is_refused(journal: Journal, name: str) -> None:
    with pytest.raises(VerificationFailed):
        journal.get_blob(name)


HOLD = "import sys; from pathlib import Path; from controller.store.lock import HomeLock\n"
HOLD += "with HomeLock(Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"


def test_a_home_has_one_writer(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        assert home_in_use(tmp_path)
        with pytest.raises(UserError, match=f"in use by process {other.pid} on"), HomeLock(tmp_path):
            raise AssertionError("two holders")
        other.kill()
        other.wait()
    assert not home_in_use(tmp_path)
    with HomeLock(tmp_path):
        assert home_in_use(tmp_path)
    assert not home_in_use(tmp_path)


def test_a_home_nobody_made_is_not_in_use(tmp_path: Path) -> None:
    assert not home_in_use(tmp_path / "none")
    assert list(read_records(tmp_path / "none")) == []


def test_a_home_that_cannot_be_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written to"), HomeLock(tmp_path / "file" / "home"):
        raise AssertionError("held")
    with pytest.raises(UserError, match="cannot be written to"):
        Journal(tmp_path / "file" / "home", TickingClock())


def test_the_journal_is_not_written_through_a_link(tmp_path: Path) -> None:
    os.symlink(tmp_path / "elsewhere", tmp_path / NAME)
    with pytest.raises(UserError):
        Journal(tmp_path, TickingClock())
    assert not (tmp_path / "elsewhere").exists()
