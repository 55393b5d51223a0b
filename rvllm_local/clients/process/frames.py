"""What crosses between an engine's process and its parent: a tagged union of frames."""

from __future__ import annotations

import socket

import msgspec

from rvllm_local import framing
from rvllm_local.engine.limits import EngineLimits
from rvllm_local.errors import RvllmError, error_of
from rvllm_local.options import EngineOptions
from rvllm_local.types import EngineSnapshot, Request, RequestReport, StreamEvent


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

_COMMANDS: msgspec.msgpack.Decoder[Command] = msgspec.msgpack.Decoder(Command)
_EVENTS: msgspec.msgpack.Decoder[Event] = msgspec.msgpack.Decoder(Event)


def error_in(failed: Failed) -> RvllmError:
    """The error that the other side met, as the class that it was."""
    return error_of(failed.kind, failed.message, failed.parameter)


def encode(frame: Command | Event) -> bytes:
    """One frame with its length. Raises as `framing.encode` does."""
    return framing.encode(frame)


def send(connection: socket.socket, frame: Command | Event) -> None:
    """Write one frame. Raises as `encode`, and OSError if the other side has gone."""
    connection.sendall(encode(frame))


def receive_command(connection: socket.socket) -> Command | None:
    """The next command; None at the end. Raises `FrameError`."""
    body = framing.receive(connection)
    return None if body is None else framing.decode(body, _COMMANDS)


def receive_event(connection: socket.socket) -> Event | None:
    """The next event; None at the end. Raises `FrameError`."""
    body = framing.receive(connection)
    return None if body is None else framing.decode(body, _EVENTS)
