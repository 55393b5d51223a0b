"""Chats of a JSON file into the history.

Reads OpenAI-style messages, this program's own export, and the exports of ChatGPT and
Open WebUI. A file is checked whole before anything is written.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from rvllm_local.errors import HistoryError
from rvllm_local.history.foreign_trees import (
    ForeignTree,
    read_chatgpt,
    read_open_webui,
)
from rvllm_local.history.store import ChatHistory
from rvllm_local.history.types import (
    Chat,
    ChatMessage,
    MessageState,
    ToolCall,
    new_id,
)

MAX_IMPORT_BYTES = 64 * 2**20
TITLE_LENGTH = 60
_ROLES = ("user", "assistant", "system", "developer", "tool")


@dataclass(frozen=True, slots=True)
class ImportedChat:
    """A chat that was read, and its messages with parents before children."""

    chat: Chat
    messages: list[ChatMessage] = field(default_factory=list)


def import_json(history: ChatHistory, text: str) -> list[str]:
    """Add the chats of a JSON file and return their ids.

    Raises `HistoryError` that names what is wrong; then nothing was added.
    """
    if len(text) > MAX_IMPORT_BYTES:
        raise HistoryError(
            f"this file has {len(text)} characters;"
            f" at most {MAX_IMPORT_BYTES} can be imported"
        )
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise HistoryError(f"this is no JSON: {error}") from error
    values = _chat_values(value)
    chats = [_parse(item, f"chat {number}") for number, item in enumerate(values, 1)]
    if not chats:
        raise HistoryError("the list of chats is empty")
    for imported in chats:
        history.add_chat(imported.chat)
        for message in imported.messages:
            history.add_message(message)
        if imported.messages:
            history.set_chat(imported.chat.id, head_id=imported.chat.head_id)
    return [imported.chat.id for imported in chats]


def _chat_values(value: Any) -> list[Any]:
    """The chats of a file: a chat, a list of chats, or a bare list of messages."""
    if not isinstance(value, list):
        return [value]
    if value and all(isinstance(item, dict) and "role" in item for item in value):
        return [{"messages": value}]
    return value


def _parse(value: Any, where: str) -> ImportedChat:
    if isinstance(value, Mapping) and isinstance(value.get("mapping"), Mapping):
        return _parse_foreign(read_chatgpt(value), value.get("title"), where)
    if isinstance(value, Mapping) and isinstance(value.get("chat"), Mapping):
        inner = value["chat"]
        title = value.get("title") or inner.get("title")
        return _parse_foreign(read_open_webui(inner), title, where)
    if not isinstance(value, Mapping) or not isinstance(value.get("messages"), list):
        raise HistoryError(
            f"{where} is no chat: it needs"
            ' {"messages": [{"role": ..., "content": ...}]}'
        )
    title = value.get("title") or ""
    if not isinstance(title, str):
        raise HistoryError(f"{where}: title must be text")
    if isinstance(value.get("tree"), list):
        return _parse_tree(value, title, where)
    return _parse_messages(value["messages"], title, where)


def _parse_messages(values: list[Any], title: str, where: str) -> ImportedChat:
    chat_id = new_id()
    system: list[str] = []
    messages: list[ChatMessage] = []
    for number, value in enumerate(values, 1):
        role = _role(value, f"{where}, message {number}")
        text = _content(value, f"{where}, message {number}")
        if role in ("system", "developer"):
            system.append(text)
            continue
        if role == "tool":
            role, text = "user", f"[tool result]\n{text}"
        messages.append(
            ChatMessage(
                id=new_id(),
                chat_id=chat_id,
                parent_id=messages[-1].id if messages else None,
                role=role,
                text=text,
                tool_calls=_calls(value),
            )
        )
    return _imported(chat_id, title, messages, "\n\n".join(system))


def _imported(
    chat_id: str, title: str, messages: list[ChatMessage], system: str
) -> ImportedChat:
    """A chat that goes on at its last message, named after its first prompt."""
    if not title:
        prompts = [message.text for message in messages if message.role == "user"]
        title = prompts[0].strip()[:TITLE_LENGTH] if prompts else "Imported chat"
    head_id = messages[-1].id if messages else None
    chat = Chat(chat_id, title, head_id=head_id, system=system)
    return ImportedChat(chat, messages)


def _parse_foreign(tree: ForeignTree, title: Any, where: str) -> ImportedChat:
    """A tree of another program."""
    if not tree.nodes:
        raise HistoryError(f"{where} has no message with text")
    chat_id = new_id()
    ids: dict[str, str] = {}
    messages = []
    for node_id, node in tree.nodes.items():
        ids[node_id] = new_id()
        parent_id = None if node.parent is None else ids[node.parent]
        message = ChatMessage(ids[node_id], chat_id, parent_id, node.role, node.text)
        messages.append(message)
    head_id = ids[tree.head] if tree.head else messages[-1].id
    name = title if isinstance(title, str) else ""
    imported = _imported(chat_id, name, messages, "")
    return replace(imported, chat=replace(imported.chat, head_id=head_id))


def _parse_tree(value: Mapping[str, Any], title: str, where: str) -> ImportedChat:
    """A chat that `to_json` wrote.

    It gets fresh ids, so that it can be imported beside the original.
    """
    chat_id = new_id()
    ids: dict[str, str] = {}
    messages: list[ChatMessage] = []
    try:
        for node in value["tree"]:
            message = _tree_message(node, chat_id, ids, where)
            ids[node["id"]] = message.id
            messages.append(message)
        last = messages[-1].id if messages else None
        head_id = ids.get(value.get("head_id") or "", last)
        params = dict(value.get("params") or {})
        system = ""
        for turn in reversed(value["messages"]):
            if turn["role"] == "system":
                system = str(turn["content"])
    except (KeyError, TypeError, ValueError) as error:
        raise HistoryError(
            f"{where}: its tree cannot be read: {type(error).__name__} {error}"
        ) from error
    chat = Chat(chat_id, title, head_id=head_id, system=system, params=params)
    return ImportedChat(chat, messages)


def _tree_message(
    node: Mapping[str, Any], chat_id: str, ids: Mapping[str, str], where: str
) -> ChatMessage:
    role = node["role"]
    if role not in ("user", "assistant"):
        raise HistoryError(
            f"{where}: role {role!r} in the tree must be user or assistant"
        )
    calls = []
    for call in node.get("tool_calls", ()):
        calls.append(ToolCall(str(call["name"]), str(call["arguments"])))
    parent_id = node["parent_id"]
    return ChatMessage(
        id=new_id(),
        chat_id=chat_id,
        parent_id=None if parent_id is None else ids[parent_id],
        role=role,
        text=str(node["text"]),
        reasoning=str(node.get("reasoning", "")),
        tool_calls=tuple(calls),
        state=MessageState(node.get("state", "done")),
        model=str(node.get("model", "")),
        figures=dict(node.get("figures", {})),
    )


def _role(value: Any, where: str) -> str:
    role = value.get("role") if isinstance(value, Mapping) else None
    if role not in _ROLES:
        raise HistoryError(
            f"{where}: role is {role!r}; it must be one of {', '.join(_ROLES)}"
        )
    return str(role)


def _content(value: Mapping[str, Any], where: str) -> str:
    content = value.get("content")
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise HistoryError(f"{where}: content must be text or a list of parts")
    texts = []
    for part in content:
        if not isinstance(part, Mapping) or not isinstance(part.get("text"), str):
            kind = part.get("type") if isinstance(part, Mapping) else part
            raise HistoryError(
                f"{where}: only text parts can be imported, not {kind!r}"
            )
        texts.append(part["text"])
    return "\n".join(texts)


def _calls(value: Mapping[str, Any]) -> tuple[ToolCall, ...]:
    calls = []
    for call in value.get("tool_calls") or ():
        function = call.get("function") if isinstance(call, Mapping) else None
        if isinstance(function, Mapping):
            name = str(function.get("name", ""))
            arguments = str(function.get("arguments", ""))
            calls.append(ToolCall(name, arguments, str(call.get("id", ""))))
    return tuple(calls)
