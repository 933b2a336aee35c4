"""The exchange: what one side writes the other reads, and nothing in a slot hangs the reader."""

import fcntl
import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from exchange import (
    HEADER_BYTES,
    SLOTS,
    Closed,
    ExchangeError,
    Header,
    SlotReader,
    SlotWriter,
    usable_cpus,
)
from hypothesis import example, given
from hypothesis import strategies as st

HEADER = Header(2, 3, 4, 5)
HEADER_LENGTH = 24  # two bytes, two of padding, five numbers of four


def read(reader: SlotReader, number: int, size: int, start: int = 0) -> bytes:
    content = bytearray(size)
    reader.read(number, start, memoryview(content))
    return bytes(content)


def test_messages_arrive_in_turn_through_the_same_few_files(tmp_path: Path) -> None:
    writer, reader = SlotWriter(tmp_path), SlotReader(tmp_path)
    for number in range(600):  # twice around the one-byte mark
        assert reader.poll(number) is None
        payload = number.to_bytes(4, "little")
        writer.write(number, HEADER._replace(rows=number), memoryview(payload))
        assert reader.poll(number) == HEADER._replace(rows=number)
        assert read(reader, number, 4) == payload
        assert reader.payload_bytes(number) == 4
    assert len(list(tmp_path.iterdir())) == SLOTS


def test_memory_of_a_slot_is_its_file(tmp_path: Path) -> None:
    writer, reader = SlotWriter(tmp_path), SlotReader(tmp_path)
    for turn, payload in enumerate((b"long", b"longer", b"so", b"longest of all")):
        number = turn * SLOTS
        space = writer.space(number, len(payload))
        assert len(space) == len(payload)
        space[:] = payload
        assert turn == 0 or reader.poll(number) is None
        writer.publish(number, HEADER)
        assert reader.poll(number) == HEADER
        assert reader.payload_bytes(number) >= len(payload)
        assert read(reader, number, len(payload)) == payload


def test_memory_of_a_slot_is_refused_where_there_is_no_room(tmp_path: Path) -> None:
    """A mapping without pages behind it would end the writer with SIGBUS."""
    with pytest.raises(OSError):
        SlotWriter(tmp_path).space(0, 1 << 60)


def test_some_messages_can_be_under_way(tmp_path: Path) -> None:
    writer, reader = SlotWriter(tmp_path), SlotReader(tmp_path)
    for number in range(SLOTS):
        writer.write(number, HEADER, memoryview(bytes([number] * 8)))
    assert [read(reader, number, 8) for number in range(SLOTS) if reader.poll(number)] == [
        bytes([number] * 8) for number in range(SLOTS)
    ]


def test_parts_of_a_payload(tmp_path: Path) -> None:
    SlotWriter(tmp_path).write(0, HEADER, memoryview(b"abcdefgh"))
    reader = SlotReader(tmp_path)
    assert reader.poll(0) == HEADER
    assert read(reader, 0, 3, start=2) == b"cde"
    with pytest.raises(ExchangeError, match="cut short"):
        read(reader, 0, 3, start=6)


def test_other_users_can_read_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        SlotWriter(tmp_path).write(0, HEADER, memoryview(b""))
    finally:
        os.umask(before)
    assert (tmp_path / "slot-0").stat().st_mode & 0o777 == 0o644


def _lease(path: Path) -> None:
    path.touch()
    signal.signal(
        signal.SIGIO, signal.SIG_IGN
    )  # what the holder of a lease gets when somebody opens the file
    fcntl.fcntl(os.open(path, os.O_RDWR), fcntl.F_SETLEASE, fcntl.F_WRLCK)


def _socket(path: Path) -> None:
    here = os.getcwd()
    os.chdir(path.parent)  # a socket's path must be short
    try:
        socket.socket(socket.AF_UNIX).bind(path.name)
    finally:
        os.chdir(here)


@pytest.mark.timeout(10)
@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.parametrize(
    "make",
    [
        Path.mkdir,
        os.mkfifo,
        _socket,
        _lease,
        lambda path: path.symlink_to("/etc/hostname"),
        lambda path: path.symlink_to("/dev/zero"),
        lambda path: path.symlink_to(path),
    ],
    ids=["directory", "fifo", "socket", "lease", "link", "link to a device", "loop"],
)
def test_a_slot_must_be_a_regular_file(make: Callable[[Path], object], tmp_path: Path) -> None:
    make(tmp_path / "slot-0")
    with pytest.raises(ExchangeError):
        SlotReader(tmp_path).poll(0)


@given(content=st.binary(max_size=40))
@example(content=b"\x01" + bytes(HEADER_LENGTH - 2))
@example(content=b"\x01" + bytes(HEADER_LENGTH - 1))
def test_any_header_is_waited_for_refused_or_taken_at_its_word(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    folder = tmp_path_factory.mktemp("slots")
    (folder / "slot-0").write_bytes(content)
    try:
        header = SlotReader(folder).poll(0)
    except ExchangeError:
        assert content[0] != 1 or len(content) < HEADER_LENGTH
    else:
        assert (header is None) == (content[:1] in (b"", b"\0", bytes([1 + -SLOTS % 255])))


def test_sparse_payload_is_read_as_zeros(tmp_path: Path) -> None:
    SlotWriter(tmp_path).write(0, HEADER, memoryview(b""))
    os.truncate(tmp_path / "slot-0", HEADER_BYTES + (1 << 40))
    reader = SlotReader(tmp_path)
    assert reader.poll(0) == HEADER
    assert reader.payload_bytes(0) == 1 << 40
    assert read(reader, 0, 100, start=1 << 39) == bytes(100)


def test_waiting_ends_with_the_message_the_close_or_the_deadline(tmp_path: Path) -> None:
    writer, reader = SlotWriter(tmp_path), SlotReader(tmp_path)
    started = time.monotonic()
    with pytest.raises(TimeoutError):
        reader.wait(0, started + 0.05)
    assert time.monotonic() >= started + 0.05
    sender = threading.Timer(0.02, writer.write, (0, HEADER, memoryview(b"")))
    sender.start()
    assert reader.wait(0, started + 60) == HEADER
    sender.join()
    writer.close()
    assert reader.wait(0, started) == HEADER  # what was sent before is not lost
    with pytest.raises(Closed):
        reader.wait(1, started + 60)


def test_usable_cpus() -> None:
    assert 1 <= usable_cpus() <= len(os.sched_getaffinity(0))
