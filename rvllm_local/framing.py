"""Frames between processes: four bytes of length, and MessagePack of a known type.

Whatever does not decode is a `FrameError`, never an object.
"""

from __future__ import annotations

import socket
import struct
from typing import TypeVar

import msgspec

MAX_FRAME = 64 * 2**20  # bytes; a prompt of a million tokens takes a tenth
T = TypeVar("T")

_LENGTH = struct.Struct(">I")
_ENCODER = msgspec.msgpack.Encoder()


class FrameError(Exception):
    """The other side sent something that is no frame."""


def encode(frame: msgspec.Struct) -> bytes:
    """One frame with its length.

    Raises `FrameError` if it is too long or holds what MessagePack cannot.
    """
    try:
        body = _ENCODER.encode(frame)
    except (TypeError, OverflowError, ValueError) as error:
        # The error's text could quote a prompt.
        raise FrameError(
            f"a {type(frame).__name__} cannot be sent: {type(error).__name__}"
        ) from error
    if len(body) > MAX_FRAME:
        raise FrameError(f"a frame of {len(body)} bytes is longer than {MAX_FRAME}")
    return _LENGTH.pack(len(body)) + body


def decode(body: bytes, decoder: msgspec.msgpack.Decoder[T]) -> T:
    """The frame in `body`. Raises `FrameError`, which quotes nothing."""
    try:
        return decoder.decode(body)
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise FrameError(
            f"a frame of {len(body)} bytes does not decode: {type(error).__name__}"
        ) from error


def receive(connection: socket.socket, most: int = MAX_FRAME) -> bytes | None:
    """The body of the next frame; None at the end.

    Raises `FrameError` for one of more than `most` bytes, and for one that is cut.
    """
    head = receive_exactly(connection, _LENGTH.size)
    if head is None:
        return None
    (length,) = _LENGTH.unpack(head)
    if length > most:
        raise FrameError(f"a frame of {length} bytes is longer than {most}")
    body = receive_exactly(connection, length)
    if body is None:
        raise FrameError("the connection ended inside a frame")
    return body


def receive_exactly(connection: socket.socket, count: int) -> bytes | None:
    """`count` bytes; None if the connection ended before the first.

    Memory grows only with what has come. Raises `FrameError` if it ended in between.
    """
    parts: list[bytes] = []
    left = count
    while left:
        try:
            part = connection.recv(min(left, 2**20))
        except ConnectionError:
            part = b""
        if not part:
            if parts:
                raise FrameError("the connection ended inside a frame")
            return None
        parts.append(part)
        left -= len(part)
    return b"".join(parts)
