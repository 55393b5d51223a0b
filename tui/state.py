"""What the chat is at one moment: plain frozen values.

Nothing here knows Textual, HTTP or SQLite.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from rvllm_local.history.types import Chat, ChatMessage, ToolCall


class ConnectionState(StrEnum):
    """Where the chat stands with its server."""

    CONNECTING = "connecting"
    LOADING = "loading"
    READY = "ready"
    LOST = "lost"


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """A model that can be chosen; sizes in bytes.

    `fits` is None where the memory plan is not known. `needed` is what the plan takes,
    `room` what models may take here, `read` what one token reads of the weights.
    """

    id: str
    context_length: int | None = None
    served: bool = True
    installed: bool = True
    size: int | None = None
    fits: bool | None = None
    note: str = ""
    needed: int | None = None
    room: int | None = None
    read: int | None = None
    parameters: str = ""
    license: str = ""
    abilities: tuple[str, ...] = ()


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
    """The engine at work.

    `block_map` has one letter a block: f free, u used, s shared, c cached.
    """

    blocks: Mapping[str, int] = field(default_factory=dict)
    block_map: str = ""
    requests: tuple[RunningRequest, ...] = ()
    stats: Mapping[str, int | float | str] = field(default_factory=dict)
    memory: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ReplyStats:
    """What is told of a reply. Times in seconds, counts in tokens."""

    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    output_tokens: int | None = None
    tokens_per_second: float | None = None
    ttft: float | None = None
    accepted_drafts: int | None = None
    rejected_drafts: int | None = None

    @property
    def drafts(self) -> str:
        """Drafted tokens that were accepted, of all; empty where none were drafted."""
        accepted = self.accepted_drafts or 0
        drafted = accepted + (self.rejected_drafts or 0)
        return f"drafts {accepted}/{drafted}" if drafted else ""


@dataclass(frozen=True, slots=True)
class TokenCounts:
    """The server's counts of one reply, and its tokens a second.

    `cached` and `speed` are None where it does not say.
    """

    prompt: int
    output: int
    cached: int | None
    accepted_drafts: int = 0
    rejected_drafts: int = 0
    speed: float | None = None


@dataclass(frozen=True, slots=True)
class LiveReply:
    """The reply that is being written. Times are seconds of one monotonic clock."""

    reply_id: str
    prompt: ChatMessage
    is_new_prompt: bool  # False for a regenerated reply, whose prompt was there before
    before: tuple[ChatMessage, ...]  # the thread as it was, should nothing come
    began: float
    first_at: float | None = None
    last_at: float | None = None
    thought_until: float | None = None
    text: str = ""
    reasoning: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    num_chunks: int = 0
    progress: tuple[int, int] | None = None  # prompt tokens computed, and all of them
    usage: TokenCounts | None = None
    saved_at: float | None = None
    saved_size: int = -1
    model: str = ""  # where it is not the chat's
    request_id: str = ""  # the server's name for it

    @property
    def size(self) -> int:
        """Characters that have come, of all kinds."""
        return (
            len(self.text)
            + len(self.reasoning)
            + sum(len(call.arguments) + len(call.name) for call in self.tool_calls)
        )


@dataclass(frozen=True, slots=True)
class QueuedPrompt:
    """A prompt that waits for its turn."""

    text: str
    prompt_id: str
    reply_id: str
    figures: Mapping[str, Any] = field(default_factory=dict)

    @property
    def typed(self) -> str:
        """What was typed, before files were read."""
        return str(self.figures.get("typed", self.text))


@dataclass(frozen=True, slots=True)
class ChatSession:
    """The whole of a chat's state.

    `messages` run from the root of the tree to its head, without the live reply.
    """

    chat: Chat
    messages: tuple[ChatMessage, ...] = ()
    siblings: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    live: LiveReply | None = None
    queue: tuple[QueuedPrompt, ...] = ()
    is_kept: bool = False  # whether the chat's row exists
    is_temporary: bool = False
    connection: ConnectionState = ConnectionState.CONNECTING
    connection_text: str = ""
    model: str = ""
    models: tuple[ModelInfo, ...] = ()
    stats: ReplyStats = ReplyStats()
    engine: EngineView | None = None

    @property
    def context_length(self) -> int | None:
        """The chosen model's context in tokens, if the server told it."""
        for info in self.models:
            if info.id == self.model:
                return info.context_length
        return None
