"""Chats in and out of the history: Markdown and JSON out, OpenAI-style JSON in.

An import is checked whole before anything is written.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from rvllm_local.errors import HistoryError
from rvllm_local.history import ChatHistory
from rvllm_local.history.types import Chat, ChatMessage, MessageState, ToolCall, new_id

_ROLES = ("user", "assistant", "system", "developer", "tool")
MAX_IMPORT_BYTES = 64 * 2**20


def to_markdown(history: ChatHistory, chat_id: str) -> str:
    """The chat from its root to its head as one Markdown document."""
    chat = _known(history, chat_id)
    parts = [f"# {chat.title or 'Untitled chat'}\n"]
    if chat.system:
        parts.append(f"## System\n\n{chat.system}\n")
    for message in history.thread(chat_id):
        parts.append(_section(message))
    return "\n".join(parts)


def _section(message: ChatMessage) -> str:
    name = (
        "You"
        if message.role == "user"
        else f"Assistant{f' ({message.model})' if message.model else ''}"
    )
    parts = [f"## {name}\n"]
    if message.reasoning:
        parts.append(
            f"<details><summary>Reasoning</summary>\n\n{message.reasoning}\n\n</details>\n"
        )
    for call in message.tool_calls:
        fence = "`" * max(
            3,
            1 + max((len(run) for run in re.findall(r"`+", call.arguments)), default=0),
        )
        parts.append(
            f"Called `{call.name}`:\n\n{fence}json\n{call.arguments}\n{fence}\n"
        )
    parts.append(f"{message.text}\n")
    if message.state is not MessageState.DONE:
        parts.append(f"*({message.state.value})*\n")
    return "\n".join(parts)


def to_json(history: ChatHistory, chat_id: str) -> str:
    """The chat with all its branches. `messages` is the current branch, in the form of the OpenAI API."""
    chat = _known(history, chat_id)
    messages: list[dict[str, Any]] = (
        [{"role": "system", "content": chat.system}] if chat.system else []
    )
    messages += [
        {"role": one.role, "content": one.text} for one in history.thread(chat_id)
    ]
    tree = [asdict(one) for one in history.all_messages(chat_id)]
    value = {
        "title": chat.title,
        "model": chat.model,
        "params": dict(chat.params),
        "messages": messages,
    }
    return json.dumps({**value, "head_id": chat.head_id, "tree": tree}, indent=2)


def _known(history: ChatHistory, chat_id: str) -> Chat:
    chat = history.chat(chat_id)
    if chat is None:
        raise HistoryError(
            "this chat is not in the history; a temporary chat is not kept"
        )
    return chat


def import_json(history: ChatHistory, text: str) -> list[str]:
    """Add the chats of an OpenAI-style JSON: {"messages": [...]}, a list of messages, or a list of such chats.

    Returns the new chats' ids. Raises `HistoryError` that names what is wrong, and then nothing was added.
    """
    if len(text) > MAX_IMPORT_BYTES:
        raise HistoryError(
            f"this file has {len(text)} characters; at most {MAX_IMPORT_BYTES} can be imported"
        )
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise HistoryError(f"this is no JSON: {error}") from error
    if (
        isinstance(value, list)
        and value
        and all(isinstance(one, dict) and "role" in one for one in value)
    ):
        value = {"messages": value}
    chats = [
        _parse(one, number)
        for number, one in enumerate(value if isinstance(value, list) else [value])
    ]
    if not chats:
        raise HistoryError("the list of chats is empty")
    for chat, messages in chats:
        history.add_chat(chat)
        for message in messages:
            history.add_message(message)
        if messages:
            history.set_chat(chat.id, head_id=chat.head_id)
    return [chat.id for chat, _ in chats]


def _parse(value: Any, number: int) -> tuple[Chat, list[ChatMessage]]:
    where = f"chat {number + 1}"
    if not isinstance(value, Mapping) or not isinstance(value.get("messages"), list):
        raise HistoryError(
            f'{where} is no chat: it needs {{"messages": [{{"role": ..., "content": ...}}]}}'
        )
    title, chat_id = value.get("title") or "", new_id()
    if not isinstance(title, str):
        raise HistoryError(f"{where}: title must be text")
    if isinstance(value.get("tree"), list):
        return _parse_tree(value, chat_id, title, where)
    system: list[str] = []
    messages: list[ChatMessage] = []
    for place, one in enumerate(value["messages"]):
        role, content = (
            _role(one, f"{where}, message {place + 1}"),
            _content(one, f"{where}, message {place + 1}"),
        )
        if role in ("system", "developer"):
            system.append(content)
            continue
        parent = messages[-1].id if messages else None
        text = f"[tool result]\n{content}" if role == "tool" else content
        shown = "user" if role == "tool" else role
        messages.append(
            ChatMessage(new_id(), chat_id, parent, shown, text, tool_calls=_calls(one))
        )
    title = title or next(
        (one.text.strip()[:60] for one in messages if one.role == "user"),
        "Imported chat",
    )
    head = messages[-1].id if messages else None
    return Chat(chat_id, title, head_id=head, system="\n\n".join(system)), messages


def _parse_tree(
    value: Mapping[str, Any], chat_id: str, title: str, where: str
) -> tuple[Chat, list[ChatMessage]]:
    """A chat that `to_json` wrote, under fresh ids, so that it can be imported beside the original."""
    ids: dict[str, str] = {}
    messages = []
    try:
        for one in value["tree"]:
            if one["role"] not in ("user", "assistant"):
                raise HistoryError(
                    f"{where}: role {one['role']!r} in the tree must be user or assistant"
                )
            parent = None if one["parent_id"] is None else ids[one["parent_id"]]
            ids[one["id"]] = new_id()
            calls = tuple(
                ToolCall(str(call["name"]), str(call["arguments"]))
                for call in one.get("tool_calls", ())
            )
            texts = (str(one["text"]), str(one.get("reasoning", "")))
            state, model = (
                MessageState(one.get("state", "done")),
                str(one.get("model", "")),
            )
            messages.append(
                ChatMessage(
                    ids[one["id"]],
                    chat_id,
                    parent,
                    one["role"],
                    *texts,
                    calls,
                    state,
                    model,
                    dict(one.get("figures", {})),
                )
            )
        head = ids.get(
            value.get("head_id") or "", messages[-1].id if messages else None
        )
        system = next(
            (
                str(one["content"])
                for one in value["messages"]
                if one["role"] == "system"
            ),
            "",
        )
        params = dict(value.get("params") or {})
    except (KeyError, TypeError, ValueError) as error:
        raise HistoryError(
            f"{where}: its tree cannot be read: {type(error).__name__} {error}"
        ) from error
    return Chat(chat_id, title, head_id=head, system=system, params=params), messages


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
    found = []
    for call in value.get("tool_calls") or ():
        function = call.get("function") if isinstance(call, Mapping) else None
        if isinstance(function, Mapping):
            found.append(
                ToolCall(
                    str(function.get("name", "")),
                    str(function.get("arguments", "")),
                    str(call.get("id", "")),
                )
            )
    return tuple(found)
