"""What crosses between a server and the process in which a model's prompts are made.

A frame is four bytes of length and MessagePack. Calls are JSON inside of it, since
their tools may hold numbers of any size. What does not decode is a `FrameError`.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from pathlib import Path

import msgspec

from rvllm_local.conversation.calls import ChatCall, TextCall
from rvllm_local.conversation.prompts import Prepared
from rvllm_local.engine.limits import EngineLimits
from rvllm_local.errors import (
    ContextOverflowError,
    ParameterError,
    RvllmError,
    error_of,
)
from rvllm_local.framing import FrameError
from rvllm_local.models.locate import ModelFiles, ModelKind
from rvllm_local.text.read_inputs import EncodedInput, Input
from rvllm_local.text.token_table import TokenTable

LENGTH = struct.Struct(">I")
PID = struct.Struct(">I")  # what a new process begins with
# What is said to the process that makes the others: a socket comes with the first, the
# id of a process follows the second.
NEW, END = b"n", b"e"
MAX_FRAME = 256 * 2**20  # bytes; token ids of the largest body take a half


class OfModel(msgspec.Struct, frozen=True):
    """What every frame that names a model's files begins with."""

    kind: ModelKind
    path: str
    name: str

    @property
    def files(self) -> ModelFiles:
        """The model's files."""
        return ModelFiles(self.kind, Path(self.path), self.name)


class Load(OfModel, frozen=True):
    """First frame to the process: where the model is, and what reading it may take."""

    cpu_s: float
    num_bytes: int


class TextFacts(msgspec.Struct, frozen=True):
    """What a server knows of a model's tokenizer without asking it."""

    tokens: TokenTable
    vocab_size: int
    bos_token_id: int | None
    adds_bos: bool
    chat_template: str | None


class Work(msgspec.Struct, frozen=True):
    """One piece of work, and the processor and wall time that it may take.

    Set is a call in JSON with the limits of the engine, a text to tokenize, or the inputs
    of a model that reads alone.
    """

    cpu_s: float
    wall_s: float
    chat: bytes | None = None
    text_call: bytes | None = None
    limits: EngineLimits | None = None
    text: str | None = None
    with_bos: bool = True
    inputs: tuple[Input, ...] | None = None
    most_tokens: int | None = None


class Refused(msgspec.Struct, frozen=True):
    """An error as the name of its class, its text, its parameter and its numbers.

    An error that is nobody's fault but ours has no class; its text says where it was.
    """

    kind: str | None
    message: str
    parameter: str | None = None
    overflow: tuple[int, int] | None = None

    @classmethod
    def of(cls, error: RvllmError) -> Refused:
        """The frame of an error of the project's own."""
        overflow = None
        if isinstance(error, ContextOverflowError):
            overflow = error.tokens_and_limit
        parameter = getattr(error, "parameter", None)
        return cls(type(error).__name__, str(error), parameter, overflow)

    def error(self) -> RvllmError:
        """The error again."""
        error = error_of(self.kind, self.message, self.parameter)
        if isinstance(error, ContextOverflowError):
            error.tokens_and_limit = self.overflow
        return error


class Loaded(msgspec.Struct, frozen=True):
    """The answer to `Load`: the facts, or why there are none."""

    facts: TextFacts | None = None
    refused: Refused | None = None


class TokenIds(msgspec.Struct, frozen=True):
    """Token ids as JSON: millions of them are not made objects on the way to a client."""

    json: bytes
    count: int

    @classmethod
    def of(cls, token_ids: Sequence[int]) -> TokenIds:
        """The frame of some ids."""
        return cls(json.dumps(list(token_ids)).encode(), len(token_ids))


class Done(msgspec.Struct, frozen=True):
    """The answer to `Work`: the field that was asked for, or why it could not be."""

    prepared: Prepared | None = None
    token_ids: TokenIds | None = None
    encoded: tuple[EncodedInput, ...] | None = None
    refused: Refused | None = None


def call_work(
    call: ChatCall | TextCall, limits: EngineLimits, cpu_s: float, wall_s: float
) -> bytes:
    """The frame of a call. Raises `ParameterError` for text that is not Unicode."""
    try:
        data = msgspec.json.encode(call)
    except UnicodeEncodeError as error:
        raise _not_unicode("messages") from error
    if isinstance(call, ChatCall):
        return encode(Work(cpu_s, wall_s, chat=data, limits=limits))
    return encode(Work(cpu_s, wall_s, text_call=data, limits=limits))


def text_work(text: str, with_bos: bool, cpu_s: float, wall_s: float) -> bytes:
    """The frame of a text to tokenize. Raises as `call_work` does."""
    try:
        return encode(Work(cpu_s, wall_s, text=text, with_bos=with_bos))
    except UnicodeEncodeError as error:
        raise _not_unicode("prompt") from error


def inputs_work(
    inputs: Sequence[Input], most_tokens: int | None, cpu_s: float, wall_s: float
) -> bytes:
    """The frame of texts or pairs to encode. Raises as `call_work` does."""
    work = Work(cpu_s, wall_s, inputs=tuple(inputs), most_tokens=most_tokens)
    try:
        return encode(work)
    except UnicodeEncodeError as error:
        raise _not_unicode("input") from error


def _not_unicode(parameter: str) -> ParameterError:
    return ParameterError(
        parameter, "a text holds half a surrogate pair; it is not Unicode"
    )


def encode(frame: msgspec.Struct) -> bytes:
    """One frame with its length. Raises `FrameError` if it is too long."""
    body = _ENCODER.encode(frame)
    if len(body) > MAX_FRAME:
        raise FrameError(f"a frame of {len(body)} bytes is longer than {MAX_FRAME}")
    return LENGTH.pack(len(body)) + body


def length_of(head: bytes) -> int:
    """How long a frame is. Raises `FrameError` if it is too long."""
    (length,) = LENGTH.unpack(head)
    if length > MAX_FRAME:
        raise FrameError(f"a frame of {length} bytes is longer than {MAX_FRAME}")
    return int(length)


LOAD = msgspec.msgpack.Decoder(Load)
LOADED = msgspec.msgpack.Decoder(Loaded)
WORK = msgspec.msgpack.Decoder(Work)
DONE = msgspec.msgpack.Decoder(Done)
CHAT_CALL = msgspec.json.Decoder(ChatCall)
TEXT_CALL = msgspec.json.Decoder(TextCall)
_ENCODER = msgspec.msgpack.Encoder()
