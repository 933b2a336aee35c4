from __future__ import annotations

import errno
import subprocess
import tempfile
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from controller.store.run_log import RunLog, tail_text


@given(st.lists(st.binary(max_size=40)), st.integers(1, 30), st.integers(1, 30))
def test_head_tail_and_count_for_any_stream(blocks: list[bytes], head: int, tail: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run.log"
        log = RunLog(path, head_bytes=head, tail_bytes=tail)
        for block in blocks:
            log.write(block)
            assert path.stat().st_size <= head + 2 * tail + len(block) + 60
        log.close()
        written, everything = path.read_bytes(), b"".join(blocks).replace(b"\0", b"?")
    assert log.total == len(everything)
    if len(everything) <= head + tail:
        assert written == everything
    else:
        left_out = len(everything) - head - tail
        marker = f"\n[... {left_out} bytes left out ...]\n".encode()
        assert written == everything[:head] + marker + everything[-tail:]


def test_what_comes_after_the_end_is_dropped(tmp_path: Path) -> None:
    log = RunLog(tmp_path / "run.log", head_bytes=10, tail_bytes=10)
    log.write(b"seen")
    log.close()
    log.write(b"unseen")
    log.close()
    assert (tmp_path / "run.log").read_bytes() == b"seen"


def test_a_full_disk_is_remembered_and_not_raised() -> None:
    log = RunLog(Path("/dev/full"), head_bytes=10, tail_bytes=10)
    log.write(b"lost")
    log.close()
    assert log.failure is not None
    assert log.failure.errno == errno.ENOSPC
    assert log.total == 4


def test_tail_text(tmp_path: Path) -> None:
    path = tmp_path / "run.log"
    path.write_bytes(b"abc\xff\xfe")
    assert tail_text(path, 3) == "c\ufffd\ufffd"
    assert tail_text(path, 100) == "abc\ufffd\ufffd"


def test_a_nul_byte_does_not_hide_the_summary_from_grep(tmp_path: Path) -> None:
    log = RunLog(tmp_path / "run.log", head_bytes=1000, tail_bytes=1000)
    log.write(b"weights: \0\0\nval_bpb:          1.5\n")
    log.close()
    assert log.total == len(b"weights: \0\0\nval_bpb:          1.5\n")
    grep = subprocess.run(["grep", "^val_bpb:", tmp_path / "run.log"], capture_output=True, check=True)
    assert grep.stdout == b"val_bpb:          1.5\n"
