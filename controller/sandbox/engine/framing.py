"""The engine's framing of a container's output.

Source: "Stream format" of POST /containers/{id}/attach in the Docker Engine API reference. Stdout and
stderr share a connection as frames of an 8-byte header and a payload:

    offset 0  u8   1: stdout, 2: stderr
    offset 4  u32  length of the payload, big-endian
"""

from __future__ import annotations

import struct

_HEADER = struct.Struct(">BxxxI")


def split_frames(data: bytes) -> tuple[bytes, bytes]:
    """(payloads of all complete frames, the incomplete frame that follows)."""
    payloads = []
    start = 0
    while len(data) - start >= _HEADER.size:
        length = _HEADER.unpack_from(data, start)[1]
        end = start + _HEADER.size + length
        if end > len(data):
            break
        payloads.append(data[start + _HEADER.size : end])
        start = end
    return b"".join(payloads), data[start:]
