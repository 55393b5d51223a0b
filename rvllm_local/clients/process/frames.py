"""What crosses between an engine's process and its parent: typed frames, length-capped, in MessagePack.

A frame is four bytes of length and a tagged union. Whatever does not decode is a
`FrameError`, never an object.
"""

from __future__ import annotations

import socket
import struct
from typing import TypeVar

import msgspec

from rvllm_local.engine.limits import EngineLimits
from rvllm_local.errors import RvllmError, error_of
from rvllm_local.options import EngineOptions
from rvllm_local.types import EngineSnapshot, Request, RequestReport, StreamEvent

MAX_FRAME = 64 * 2**20  # bytes; a prompt of a million tokens takes a tenth
T = TypeVar("T")

_LENGTH = struct.Struct(">I")


class FrameError(Exception):
    """The other side sent something that is no frame."""


class Load(msgspec.Struct, tag=True, frozen=True):
    """First frame to the child: what to serve."""

    model: str
    options: EngineOptions


class Start(msgspec.Struct, tag=True, frozen=True):
    """Queue the choices of one request."""

    requests: tuple[Request, ...]


class Cancel(msgspec.Struct, tag=True, frozen=True):
    """End a request."""

    request_id: str


class Ask(msgspec.Struct, tag=True, frozen=True):
    """A question that gets one `Answer`: `what` is stats, snapshot or explain."""

    call_id: int
    what: str
    argument: str = ""


class Close(msgspec.Struct, tag=True, frozen=True):
    """End open requests, put away what is cached, and exit."""


class Loading(msgspec.Struct, tag=True, frozen=True):
    """Progress while a model is fetched or loaded."""

    message: str


class Ready(msgspec.Struct, tag=True, frozen=True):
    """The engine serves."""

    limits: EngineLimits


class Failed(msgspec.Struct, tag=True, frozen=True):
    """The engine could not be built: an error's class name, its text, and its parameter if it has one."""

    kind: str
    message: str
    parameter: str | None = None


class Events(msgspec.Struct, tag=True, frozen=True):
    """Stream events by request id, in order."""

    events: tuple[tuple[str, StreamEvent], ...]


class Answer(msgspec.Struct, tag=True, frozen=True):
    """The answer to an `Ask`; the field that was asked for is set, or the error."""

    call_id: int
    stats: dict[str, int | float | str] | None = None
    snapshot: EngineSnapshot | None = None
    reports: tuple[RequestReport, ...] | None = None
    error: Failed | None = None


class Beat(msgspec.Struct, tag=True, frozen=True):
    """A sign of life with the engine thread's own progress."""

    steps: int
    has_work: bool


Command = Load | Start | Cancel | Ask | Close
Event = Loading | Ready | Failed | Events | Answer | Beat

_ENCODER = msgspec.msgpack.Encoder()
_COMMANDS: msgspec.msgpack.Decoder[Command] = msgspec.msgpack.Decoder(Command)
_EVENTS: msgspec.msgpack.Decoder[Event] = msgspec.msgpack.Decoder(Event)


def error_in(failed: Failed) -> RvllmError:
    """The error that the other side met, as the class that it was."""
    return error_of(failed.kind, failed.message, failed.parameter)


def encode(frame: Command | Event) -> bytes:
    """One frame with its length.

    Raises `FrameError` if it is too long or holds what MessagePack cannot.
    """
    try:
        body = _ENCODER.encode(frame)
    except (
        TypeError,
        OverflowError,
        ValueError,
    ) as error:  # the error's text could quote a prompt
        raise FrameError(
            f"a {type(frame).__name__} cannot be sent: {type(error).__name__}"
        ) from error
    if len(body) > MAX_FRAME:
        raise FrameError(f"a frame of {len(body)} bytes is longer than {MAX_FRAME}")
    return _LENGTH.pack(len(body)) + body


def send(connection: socket.socket, frame: Command | Event) -> None:
    """Write one frame. Raises as `encode`, and OSError if the other side has gone."""
    connection.sendall(encode(frame))


def receive_command(connection: socket.socket) -> Command | None:
    """The next command; None at the end. Raises `FrameError`."""
    body = _receive(connection)
    return None if body is None else decode(body, _COMMANDS)


def receive_event(connection: socket.socket) -> Event | None:
    """The next event; None at the end. Raises `FrameError`."""
    body = _receive(connection)
    return None if body is None else decode(body, _EVENTS)


def decode(body: bytes, decoder: msgspec.msgpack.Decoder[T]) -> T:
    """The frame in `body`. Raises `FrameError`, which quotes nothing."""
    try:
        return decoder.decode(body)
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise FrameError(
            f"a frame of {len(body)} bytes does not decode: {type(error).__name__}"
        ) from error


def _receive(connection: socket.socket) -> bytes | None:
    head = _receive_exactly(connection, _LENGTH.size)
    if head is None:
        return None
    (length,) = _LENGTH.unpack(head)
    if length > MAX_FRAME:
        raise FrameError(f"a frame of {length} bytes is longer than {MAX_FRAME}")
    body = _receive_exactly(connection, length)
    if body is None:
        raise FrameError("the connection ended inside a frame")
    return body


def _receive_exactly(connection: socket.socket, count: int) -> bytes | None:
    """`count` bytes; None if the connection ended before the first.

    Memory grows only with what has come.
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
            return None if count else b""
        parts.append(part)
        left -= len(part)
    return b"".join(parts)
