"""Chats and messages as rows of the history's tables, and back."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from rvllm_local.history.types import Chat, ChatMessage, MessageState, ToolCall

CHAT_COLUMNS = "id, title, created, updated, head_id, system, params, model"
MESSAGE_COLUMNS = (
    "id, chat_id, parent_id, role, text, reasoning, tool_calls, state,"
    " model, figures, created, seq"
)


def chat_row(chat: Chat) -> tuple[Any, ...]:
    """The values of `CHAT_COLUMNS`."""
    return (
        chat.id,
        chat.title,
        chat.created,
        chat.updated,
        chat.head_id,
        chat.system,
        encode_object(chat.params),
        chat.model,
    )


def message_row(message: ChatMessage) -> tuple[Any, ...]:
    """The values of `MESSAGE_COLUMNS` but the last, which SQLite gives."""
    return (
        message.id,
        message.chat_id,
        message.parent_id,
        message.role,
        *reply_row(message),
        message.created,
    )


def reply_row(message: ChatMessage) -> tuple[Any, ...]:
    """The columns from text to figures: what changes while a reply is written."""
    return (
        storable(message.text),
        storable(message.reasoning),
        _encode_calls(message.tool_calls),
        message.state,
        message.model,
        encode_object(message.figures),
    )


def read_chat(row: Sequence[Any]) -> Chat:
    """A chat from the values of `CHAT_COLUMNS`."""
    return Chat(
        id=row[0],
        title=row[1],
        created=row[2],
        updated=row[3],
        head_id=row[4],
        system=row[5],
        params=json.loads(row[6]),
        model=row[7],
    )


def read_message(row: Sequence[Any]) -> ChatMessage:
    """A message from the values of `MESSAGE_COLUMNS`."""
    return ChatMessage(
        id=row[0],
        chat_id=row[1],
        parent_id=row[2],
        role=row[3],
        text=row[4],
        reasoning=row[5],
        tool_calls=tuple(ToolCall(*call) for call in json.loads(row[6])),
        state=MessageState(row[7]),
        model=row[8],
        figures=json.loads(row[9]),
        created=row[10],
    )


def storable(text: str) -> str:
    """SQLite takes no lone surrogates; they become the replacement character."""
    if text.isascii():
        return text
    return text.encode("utf-8", "replace").decode("utf-8")


def encode_object(value: Mapping[str, Any]) -> str:
    """A mapping as compact JSON."""
    return json.dumps(dict(value), separators=(",", ":"))


def _encode_calls(calls: Sequence[ToolCall]) -> str:
    return json.dumps([[call.name, call.arguments, call.id] for call in calls])
