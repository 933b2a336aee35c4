from __future__ import annotations

import struct

from hypothesis import given
from hypothesis import strategies as st

from controller.sandbox.engine.framing import split_frames


@given(st.lists(st.tuples(st.sampled_from([1, 2]), st.binary(max_size=50))), st.lists(st.integers(1, 40)))
def test_payloads_survive_any_fragmentation(frames: list[tuple[int, bytes]], cuts: list[int]) -> None:
    wire = b"".join(struct.pack(">BxxxI", kind, len(data)) + data for kind, data in frames)
    received, pending = b"", b""
    for size in [*cuts, len(wire)]:
        payload, pending = split_frames(pending + wire[:size])
        wire = wire[size:]
        received += payload
    assert received == b"".join(data for _, data in frames)
    assert pending == b""


def test_an_unfinished_frame_is_handed_back() -> None:
    wire = struct.pack(">BxxxI", 1, 5) + b"hello" + struct.pack(">BxxxI", 2, 9) + b"half"
    assert split_frames(wire) == (b"hello", wire[13:])
