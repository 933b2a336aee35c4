"""The protocol between runner and client: frames of a 4-byte big-endian length and a payload.

It runs over a unix socket; a connection carries one request. The client sends it as JSON
(`core.containers.orders`), a `start` followed by the text of train.py. The runner answers in JSON:

    {"value": ...}                           done
    {"refused": "a sentence"}                not a valid request
    {"error": kind, "message": "a sentence"} it failed; `kind` names a class in core.errors
    {"waiting": true}                        about once a second while the client waits for a container

The answer to `follow` is {"value": null}, then the container's output, one frame per block, then an empty
frame; the answer to `output` is {"value": null} and one frame.
"""

from __future__ import annotations

import json
import select
import socket
import struct
import time
from typing import Any

_LENGTH = struct.Struct(">I")

ANSWER_BYTES = 256 * 1024
BLOCK_BYTES = 1024**2


class Broken(Exception):
    """The peer hung up, fell silent or violated the protocol; the connection is unusable."""


def send(connection: socket.socket, payload: bytes) -> None:
    """Raises Broken. The socket's time-out applies to each chunk, not to the whole."""
    try:
        connection.sendall(_LENGTH.pack(len(payload)) + payload)
    except OSError as error:
        raise Broken(f"it cannot be written to: {error}") from error


def send_json(connection: socket.socket, value: Any) -> None:
    send(connection, json.dumps(value, allow_nan=False).encode("ascii"))


def receive(connection: socket.socket, limit: int, seconds: float) -> bytes:
    """One frame of at most `limit` bytes, which must arrive within `seconds`. Raises Broken."""
    deadline = time.monotonic() + seconds
    (length,) = _LENGTH.unpack(_exactly(connection, _LENGTH.size, deadline))
    if length > limit:
        raise Broken(f"a frame has {length} bytes, more than {limit}")
    return _exactly(connection, length, deadline)


def receive_json(connection: socket.socket, seconds: float) -> dict[str, Any]:
    """One answer from the runner. Raises Broken."""
    try:
        answer = json.loads(receive(connection, ANSWER_BYTES, seconds))
    except ValueError:
        raise Broken("an answer is not JSON") from None
    if not isinstance(answer, dict):
        raise Broken("an answer is not an object")
    return answer


def readable(connection: socket.socket, seconds: float) -> bool:
    """True as soon as there is data or end of file to receive; False after `seconds`."""
    poll = select.poll()  # unlike select(), it takes any file descriptor
    poll.register(connection, select.POLLIN)
    return bool(poll.poll(max(seconds, 0.0) * 1000))


def _exactly(connection: socket.socket, size: int, deadline: float) -> bytes:
    received = bytearray()
    while len(received) < size:
        try:
            connection.settimeout(max(deadline - time.monotonic(), 0.001))
            piece = connection.recv(min(size - len(received), 65536))
        except OSError as error:
            raise Broken(f"it cannot be read: {error}") from error
        if not piece:
            raise Broken("the connection was closed")
        received += piece
    return bytes(received)
