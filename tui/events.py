"""What can happen to the chat: plain frozen values.

`at` is seconds of one monotonic clock. Nothing here knows Textual, HTTP or SQLite.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from rvllm_local.history.types import Chat, ChatMessage, ToolCall
from rvllm_local.tui.state import ConnectionState, EngineView, ModelInfo


@dataclass(frozen=True, slots=True)
class PromptSubmitted:
    """The person sent a prompt."""

    text: str
    prompt_id: str
    reply_id: str
    at: float
    figures: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class PromptUnqueued:
    """The person takes the last waiting prompt back to edit it."""


@dataclass(frozen=True, slots=True)
class CompactionAsked:
    """The person asked for a summary that the chat goes on from."""

    prompt_id: str
    reply_id: str
    at: float


@dataclass(frozen=True, slots=True)
class ReplyRegenerated:
    """Another reply to the prompt before (or at) this message."""

    message_id: str
    reply_id: str
    at: float


@dataclass(frozen=True, slots=True)
class PromptEdited:
    """A prompt was changed: a new branch beside it."""

    message_id: str
    text: str
    prompt_id: str
    reply_id: str
    at: float
    figures: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ReplyContinued:
    """A reply that ended early goes on where it ended."""

    message_id: str
    at: float


@dataclass(frozen=True, slots=True)
class ReplyBegan:
    """The server took the request; `request_id` is its name there, or empty."""

    reply_id: str
    request_id: str


@dataclass(frozen=True, slots=True)
class ReplyGrew:
    """More of the reply. A tool call with an empty name continues the last one."""

    reply_id: str
    at: float
    text: str = ""
    reasoning: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    num_chunks: int = 1  # parts of the stream that it was joined from


@dataclass(frozen=True, slots=True)
class UsageReceived:
    """The server's own counts. `cached_tokens` is None where the server does not say,
    and so is `speed`, in tokens a second by its clock.
    """

    reply_id: str
    prompt_tokens: int
    output_tokens: int
    cached_tokens: int | None
    accepted_drafts: int = 0
    rejected_drafts: int = 0
    speed: float | None = None


@dataclass(frozen=True, slots=True)
class ReplyFinished:
    """The reply ended by itself. `reason` is the server's finish reason."""

    reply_id: str
    reason: str
    at: float


@dataclass(frozen=True, slots=True)
class ReplyFailed:
    """The reply broke off. `is_server_gone`: nobody answers at the address."""

    reply_id: str
    error: str
    at: float
    is_server_gone: bool = False


@dataclass(frozen=True, slots=True)
class ReplyStopped:
    """The person stopped the reply."""

    at: float


@dataclass(frozen=True, slots=True)
class ClockTicked:
    """Time passed: write what has not been written for a second."""

    at: float


@dataclass(frozen=True, slots=True)
class ChatOpened:
    """A chat was read from the history; also after a change to its tree."""

    chat: Chat
    messages: tuple[ChatMessage, ...]
    siblings: Mapping[str, tuple[int, int]]
    is_temporary: bool


@dataclass(frozen=True, slots=True)
class ChatStarted:
    """A new, empty chat."""

    chat: Chat
    is_temporary: bool


@dataclass(frozen=True, slots=True)
class ChatChanged:
    """New values for the chat: title, system, params or model."""

    values: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class SavingFailed:
    """The history could not be written; the chat goes on unsaved."""

    error: str


@dataclass(frozen=True, slots=True)
class ConnectionChanged:
    """The server came, went, or tells what it is doing."""

    connection: ConnectionState
    text: str = ""
    at: float = 0.0


@dataclass(frozen=True, slots=True)
class ModelsListed:
    """The server's models."""

    models: tuple[ModelInfo, ...]


@dataclass(frozen=True, slots=True)
class EngineSeen:
    """A look at the engine."""

    view: EngineView


@dataclass(frozen=True, slots=True)
class SiblingsRead:
    """Each message's place among the messages with the same parent, and their count."""

    chat_id: str
    siblings: Mapping[str, tuple[int, int]]


Event = (
    PromptSubmitted
    | PromptUnqueued
    | CompactionAsked
    | ReplyRegenerated
    | PromptEdited
    | ReplyContinued
    | ReplyBegan
    | ReplyGrew
    | UsageReceived
    | ReplyFinished
    | ReplyFailed
    | ReplyStopped
    | ClockTicked
    | ChatOpened
    | ChatStarted
    | ChatChanged
    | SavingFailed
    | ConnectionChanged
    | ModelsListed
    | EngineSeen
    | SiblingsRead
)


@dataclass(frozen=True, slots=True)
class OtherChatChanged:
    """Something happened in a chat that is not the one shown. It is for listeners alone."""

    chat: Chat
    event: Event


Change = Event | OtherChatChanged
