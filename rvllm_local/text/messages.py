"""Chat messages as templates expect them: the text of each content, whatever parts it came in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rvllm_local.errors import ParameterError


def plain_messages(messages: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The messages with every content a text. Raises `ParameterError` that names a part that is not text."""
    if isinstance(messages, str | Mapping):
        raise ParameterError(
            "messages", "messages must be a list of objects with a role and a content"
        )
    return [_plain(message, index) for index, message in enumerate(messages)]


def _plain(message: Mapping[str, Any], index: int) -> Mapping[str, Any]:
    if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
        raise ParameterError(
            "messages", f"message {index} must be an object with a role"
        )
    content = message.get("content")
    if content is None or isinstance(content, str):
        return message
    if not isinstance(content, Sequence):
        raise ParameterError(
            "messages",
            f"the content of message {index} must be text, not {type(content).__name__}",
        )
    return {**message, "content": "".join(_text(part, index) for part in content)}


def _text(part: Any, index: int) -> str:
    kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
    if kind == "text" and isinstance(part.get("text"), str):
        return str(part["text"])
    raise ParameterError(
        "messages",
        f"message {index} has a part of type {kind!r}; models here read text only",
    )
