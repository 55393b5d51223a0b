"""What a history holds: chats, messages and search hits, as plain values."""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any


def new_id() -> str:
    """A fresh identifier for a chat or message."""
    return uuid.uuid4().hex


class MessageState(StrEnum):
    """Whether a message is whole.

    A reply that is being written is `partial`; after a crash it stays so.
    """

    DONE = "done"
    PARTIAL = "partial"
    STOPPED = "stopped"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call that the model asked for.

    `arguments` is the text it wrote, usually JSON.
    """

    name: str
    arguments: str
    id: str = ""


@dataclass(frozen=True, slots=True)
class ChatMessage:
    """One node of a chat's tree.

    `role` is user or assistant; `figures` are a reply's measurements.
    """

    id: str
    chat_id: str
    parent_id: str | None
    role: str
    text: str
    reasoning: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    state: MessageState = MessageState.DONE
    model: str = ""
    figures: Mapping[str, Any] = field(default_factory=dict)
    created: float = field(default_factory=time.time)


@dataclass(frozen=True, slots=True)
class Chat:
    """One conversation.

    `head_id` is the message that it goes on from; `params` are sampling parameters.
    """

    id: str
    title: str = ""
    created: float = field(default_factory=time.time)
    updated: float = field(default_factory=time.time)
    head_id: str | None = None
    system: str = ""
    params: Mapping[str, Any] = field(default_factory=dict)
    model: str = ""


@dataclass(frozen=True, slots=True)
class Hit:
    """A search result. `message_id` is None where the chat's title matched."""

    chat_id: str
    message_id: str | None
    title: str
    excerpt: str


@dataclass(frozen=True, slots=True)
class Deleted:
    """What a deletion took away, so that it can be undone.

    `chat` is None where the chat itself stays; `head_id` is its old head.
    """

    chat_id: str
    head_id: str | None
    messages: tuple[ChatMessage, ...]
    chat: Chat | None = None
