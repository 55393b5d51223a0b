"""What the chat is at one moment, what can happen to it, and what must then be done: plain frozen values.

Nothing here knows Textual, HTTP or SQLite.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from rvllm_local.history.types import Chat, Message, ToolCall


class Link(StrEnum):
    """Where the chat stands with its server."""

    CONNECTING = "connecting"
    LOADING = "loading"
    READY = "ready"
    LOST = "lost"


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """A model that can be chosen. `fits` is None where the memory plan is not known; sizes in bytes."""

    id: str
    context_length: int | None = None
    served: bool = True
    installed: bool = True
    size: int | None = None
    fits: bool | None = None
    note: str = ""


@dataclass(frozen=True, slots=True)
class RunningRequest:
    """One open request as the engine panel shows it."""

    id: str
    state: str
    prompt_tokens: int
    computed_tokens: int
    output_tokens: int
    cached_tokens: int


@dataclass(frozen=True, slots=True)
class EngineView:
    """The engine at work. `block_map` has one letter a block: f free, u used, s shared, c cached."""

    blocks: Mapping[str, int] = field(default_factory=dict)
    block_map: str = ""
    requests: tuple[RunningRequest, ...] = ()
    stats: Mapping[str, int | float | str] = field(default_factory=dict)
    memory: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Figures:
    """What the status line tells of the last reply. Times in seconds, counts in tokens."""

    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    output_tokens: int | None = None
    tokens_per_second: float | None = None
    ttft: float | None = None


@dataclass(frozen=True, slots=True)
class Live:
    """The reply that is being written. `at` values are seconds of one monotonic clock."""

    reply_id: str
    prompt: Message
    is_new_prompt: bool  # False for a regenerated reply, whose prompt was there before
    before: tuple[Message, ...]  # the thread as it was, should nothing come
    began: float
    first_at: float | None = None
    last_at: float | None = None
    thought_until: float | None = None
    text: str = ""
    reasoning: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    num_chunks: int = 0
    progress: tuple[int, int] | None = None  # prompt tokens computed, and all of them
    usage: tuple[int, int, int | None] | None = None  # prompt, output, cached tokens
    saved_at: float | None = None
    saved_size: int = -1

    @property
    def size(self) -> int:
        """Characters that have come, of all kinds."""
        return (
            len(self.text)
            + len(self.reasoning)
            + sum(len(call.arguments) + len(call.name) for call in self.tool_calls)
        )


@dataclass(frozen=True, slots=True)
class Session:
    """The whole of the chat's state. `messages` run from the root of the tree to its head, without the live reply."""

    chat: Chat
    messages: tuple[Message, ...] = ()
    siblings: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    live: Live | None = None
    is_kept: bool = False  # whether the chat's row exists
    is_temporary: bool = False
    link: Link = Link.CONNECTING
    link_text: str = ""
    model: str = ""
    models: tuple[ModelInfo, ...] = ()
    figures: Figures = Figures()
    engine: EngineView | None = None

    @property
    def context_length(self) -> int | None:
        """The chosen model's context in tokens, if the server told it."""
        return next(
            (one.context_length for one in self.models if one.id == self.model), None
        )


# Events: what happened. `at` is seconds of one monotonic clock.


@dataclass(frozen=True, slots=True)
class Submitted:
    """The person sent a prompt."""

    text: str
    prompt_id: str
    reply_id: str
    at: float


@dataclass(frozen=True, slots=True)
class Regenerated:
    """Another reply to the prompt before (or at) this message."""

    message_id: str
    reply_id: str
    at: float


@dataclass(frozen=True, slots=True)
class Edited:
    """A prompt was changed: a new branch beside it."""

    message_id: str
    text: str
    prompt_id: str
    reply_id: str
    at: float


@dataclass(frozen=True, slots=True)
class Delta:
    """More of the reply. A tool call with an empty name continues the last one."""

    reply_id: str
    at: float
    text: str = ""
    reasoning: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    num_chunks: int = 1  # parts of the stream that it was joined from


@dataclass(frozen=True, slots=True)
class UsageTold:
    """The server's own counts. `cached_tokens` is None where the server does not say."""

    reply_id: str
    prompt_tokens: int
    output_tokens: int
    cached_tokens: int | None


@dataclass(frozen=True, slots=True)
class Finished:
    """The reply ended by itself. `reason` is the server's finish reason."""

    reply_id: str
    reason: str
    at: float


@dataclass(frozen=True, slots=True)
class Failed:
    """The reply broke off."""

    reply_id: str
    error: str
    at: float


@dataclass(frozen=True, slots=True)
class Stopped:
    """The person stopped the reply."""

    at: float


@dataclass(frozen=True, slots=True)
class Ticked:
    """Time passed: write what has not been written for a second."""

    at: float


@dataclass(frozen=True, slots=True)
class ChatOpened:
    """A chat was read from the history; also after a change to its tree."""

    chat: Chat
    messages: tuple[Message, ...]
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
class LinkChanged:
    """The server came, went, or tells what it is doing."""

    link: Link
    text: str = ""


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
    Submitted
    | Regenerated
    | Edited
    | Delta
    | UsageTold
    | Finished
    | Failed
    | Stopped
    | Ticked
    | ChatOpened
    | ChatStarted
    | ChatChanged
    | SavingFailed
    | LinkChanged
    | ModelsListed
    | EngineSeen
    | SiblingsRead
)


# Effects: what must be done, in order.


@dataclass(frozen=True, slots=True)
class KeepChat:
    """Add the chat to the history."""

    chat: Chat


@dataclass(frozen=True, slots=True)
class KeepMessage:
    """Add a message to the history, durably, before the next effect."""

    message: Message


@dataclass(frozen=True, slots=True)
class UpdateMessage:
    """Write a reply's text again."""

    message: Message


@dataclass(frozen=True, slots=True)
class DropMessage:
    """Forget a message, because it was never answered."""

    message_id: str


@dataclass(frozen=True, slots=True)
class ChangeChat:
    """Write new values of the chat."""

    chat_id: str
    values: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Generate:
    """Ask the server for a reply."""

    reply_id: str
    model: str
    messages: tuple[Mapping[str, str], ...]
    params: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Abort:
    """Close the request, which frees its blocks."""

    reply_id: str


@dataclass(frozen=True, slots=True)
class ReturnPrompt:
    """Put a prompt back into the composer."""

    text: str


@dataclass(frozen=True, slots=True)
class KeepInMemory:
    """Go on with this chat in memory alone."""

    chat: Chat
    messages: tuple[Message, ...]


@dataclass(frozen=True, slots=True)
class ReadSiblings:
    """Look up the siblings of a chat's messages, which a new branch changed."""

    chat_id: str


@dataclass(frozen=True, slots=True)
class Tell:
    """Tell the person something. `severity` is information, warning or error."""

    text: str
    severity: str = "information"


Effect = (
    KeepChat
    | KeepMessage
    | UpdateMessage
    | DropMessage
    | ChangeChat
    | Generate
    | Abort
    | ReturnPrompt
    | KeepInMemory
    | ReadSiblings
    | Tell
)
