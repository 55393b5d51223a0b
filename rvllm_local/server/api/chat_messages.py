"""Messages in the form of chat completions, which the engine's own routes take as well."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import msgspec

from rvllm_local.server.api.common import Object, Strict, given_fields
from rvllm_local.server.http.problems import bad_request, shown_kind

_MAX_MESSAGES = 10_000


class ContentPart(Strict):
    """A part of a message's content; only text can be read here."""

    type: str
    text: str | None = None
    refusal: str | None = None
    image_url: Any = None
    input_audio: Any = None
    file: Any = None
    cache_control: Object | None = None


class CalledFunction(Strict):
    """A call that the model made; `arguments` is JSON text."""

    name: str
    arguments: str


class MessageToolCall(Strict):
    """A call in an assistant's message."""

    id: str
    function: CalledFunction
    type: Literal["function"] = "function"
    index: int | None = None


class ChatMessage(Strict):
    """One message; which fields may be set depends on the role."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | list[ContentPart] | None = None
    name: str | None = None
    tool_calls: list[MessageToolCall] | None = None
    tool_call_id: str | None = None
    reasoning_content: str | None = None
    reasoning: Any = None
    refusal: str | None = None
    annotations: list[Any] | None = None
    audio: None = None
    function_call: None = None


def read_messages(messages: Sequence[ChatMessage]) -> tuple[dict[str, Any], ...]:
    """Checked messages with plain text for content. Raises `Problem` that names the place."""
    if not messages:
        raise bad_request("messages is empty; give at least one message", "messages")
    if len(messages) > _MAX_MESSAGES:
        raise bad_request(
            f"there are {len(messages)} messages; at most {_MAX_MESSAGES} are taken",
            "messages",
        )
    return tuple(
        _read_message(message, f"messages[{index}]")
        for index, message in enumerate(messages)
    )


def _read_message(message: ChatMessage, where: str) -> dict[str, Any]:
    _check_message(message, where)
    fields: dict[str, Any] = {
        "role": message.role,
        "content": _read_content(message.content, where),
    }
    fields |= given_fields(message, "name", "tool_call_id", "reasoning_content")
    if message.tool_calls:
        calls = [msgspec.to_builtins(call) for call in message.tool_calls]
        fields["tool_calls"] = [{**call, "type": "function"} for call in calls]
    return fields


def _check_message(message: ChatMessage, where: str) -> None:
    """Raise `Problem` for a field that does not go with the role."""
    role = message.role
    if role == "function":
        raise bad_request(
            f"{where}: the role function is no longer supported; use tool",
            f"{where}.role",
        )
    if message.tool_calls and role != "assistant":
        raise bad_request(
            f"{where}: only an assistant's message has tool_calls",
            f"{where}.tool_calls",
        )
    if role == "tool" and not message.tool_call_id:
        raise bad_request(
            f"{where}: a tool message needs its tool_call_id", f"{where}.tool_call_id"
        )
    if message.content is None and role != "assistant":
        raise bad_request(
            f"{where}: a {role} message needs content", f"{where}.content"
        )


def _read_content(content: str | list[ContentPart] | None, where: str) -> str:
    """The text of a content. Raises `Problem` for a part that is not text, by its type."""
    if content is None or isinstance(content, str):
        return content or ""
    texts = []
    for index, part in enumerate(content):
        is_empty = part.text is None and part.refusal is None
        if part.type not in ("text", "refusal") or is_empty:
            shown = shown_kind(part.type)
            raise bad_request(
                f"{where}.content[{index}] is of type {shown}; "
                "this server reads text only",
                f"{where}.content",
                "unsupported",
            )
        texts.append(part.text or part.refusal or "")
    return "".join(texts)
