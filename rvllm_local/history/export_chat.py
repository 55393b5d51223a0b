"""A chat out of the history, as Markdown or JSON."""

from __future__ import annotations

import json
import re
from dataclasses import asdict
from typing import Any

from rvllm_local.errors import HistoryError
from rvllm_local.history.store import ChatHistory
from rvllm_local.history.types import Chat, ChatMessage, MessageState


def to_markdown(history: ChatHistory, chat_id: str) -> str:
    """The chat from its root to its head as one Markdown document."""
    chat = _read(history, chat_id)
    parts = [f"# {chat.title or 'Untitled chat'}\n"]
    if chat.system:
        parts.append(f"## System\n\n{chat.system}\n")
    for message in history.thread(chat_id):
        parts.append(_section(message))
    return "\n".join(parts)


def to_json(history: ChatHistory, chat_id: str) -> str:
    """The chat with all its branches.

    `messages` is the current branch, in the form of the OpenAI API.
    """
    chat = _read(history, chat_id)
    messages: list[dict[str, Any]] = []
    if chat.system:
        messages.append({"role": "system", "content": chat.system})
    for message in history.thread(chat_id):
        messages.append({"role": message.role, "content": message.text})
    value = {
        "title": chat.title,
        "model": chat.model,
        "params": dict(chat.params),
        "messages": messages,
        "head_id": chat.head_id,
        "tree": [asdict(message) for message in history.all_messages(chat_id)],
    }
    return json.dumps(value, indent=2)


def _read(history: ChatHistory, chat_id: str) -> Chat:
    chat = history.chat(chat_id)
    if chat is None:
        raise HistoryError(
            "this chat is not in the history; a temporary chat is not kept"
        )
    return chat


def _section(message: ChatMessage) -> str:
    parts = [f"## {_speaker(message)}\n"]
    if message.reasoning:
        parts.append(
            "<details><summary>Reasoning</summary>\n\n"
            f"{message.reasoning}\n\n</details>\n"
        )
    for call in message.tool_calls:
        fence = _fence(call.arguments)
        parts.append(
            f"Called `{call.name}`:\n\n{fence}json\n{call.arguments}\n{fence}\n"
        )
    parts.append(f"{message.text}\n")
    if message.state is not MessageState.DONE:
        parts.append(f"*({message.state.value})*\n")
    return "\n".join(parts)


def _speaker(message: ChatMessage) -> str:
    if message.role == "user":
        return "You"
    if message.model:
        return f"Assistant ({message.model})"
    return "Assistant"


def _fence(text: str) -> str:
    """A fence longer than any run of backticks in the text."""
    runs = re.findall(r"`+", text)
    longest = max(map(len, runs), default=0)
    return "`" * max(3, longest + 1)
