"""What must be done after an event, in order: plain frozen values.

The driver does them; nothing here knows how.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from rvllm_local.history.types import Chat, ChatMessage


@dataclass(frozen=True, slots=True)
class SaveChat:
    """Add the chat to the history."""

    chat: Chat


@dataclass(frozen=True, slots=True)
class SaveMessage:
    """Add a message to the history, durably, before the next effect."""

    message: ChatMessage


@dataclass(frozen=True, slots=True)
class UpdateMessage:
    """Write a reply's text again."""

    message: ChatMessage


@dataclass(frozen=True, slots=True)
class DeleteMessage:
    """Forget a message, because it was never answered."""

    message_id: str


@dataclass(frozen=True, slots=True)
class UpdateChat:
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
class CancelReply:
    """Close the request, which frees its blocks."""

    reply_id: str


@dataclass(frozen=True, slots=True)
class ReturnPrompt:
    """Put a prompt back into the composer."""

    text: str


@dataclass(frozen=True, slots=True)
class KeepDraft:
    """Keep a prompt as the draft of a chat that is not shown."""

    chat_id: str
    text: str


@dataclass(frozen=True, slots=True)
class MoveToMemory:
    """Go on with this chat in memory alone."""

    chat: Chat
    messages: tuple[ChatMessage, ...]


@dataclass(frozen=True, slots=True)
class ReadSiblings:
    """Look up the siblings of a chat's messages, which a new branch changed."""

    chat_id: str


@dataclass(frozen=True, slots=True)
class Notify:
    """Tell the person something. `severity` is information, warning or error."""

    text: str
    severity: Literal["information", "warning", "error"] = "information"


Effect = (
    SaveChat
    | SaveMessage
    | UpdateMessage
    | DeleteMessage
    | UpdateChat
    | Generate
    | CancelReply
    | ReturnPrompt
    | KeepDraft
    | MoveToMemory
    | ReadSiblings
    | Notify
)
