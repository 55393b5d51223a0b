"""Chat messages as templates expect them: each content is one text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rvllm_local.errors import ParameterError


def plain_messages(messages: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The messages with every content a text, whatever parts it came in.

    Raises `ParameterError` that names a part that is not text.
    """
    if isinstance(messages, str | Mapping):
        raise ParameterError(
            "messages", "messages must be a list of objects with a role and a content"
        )
    plain = []
    for index, message in enumerate(messages):
        plain.append(_plain(message, index))
    return plain


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
            f"the content of message {index} must be text, not "
            f"{type(content).__name__}",
        )
    parts = [_text(part, index) for part in content]
    return {**message, "content": "".join(parts)}


def _text(part: Any, index: int) -> str:
    kind: Any = type(part).__name__
    if isinstance(part, Mapping):
        kind = part.get("type")
        text = part.get("text")
        if kind == "text" and isinstance(text, str):
            return text
    raise ParameterError(
        "messages",
        f"message {index} has a part of type {kind!r}; models here read text only",
    )
