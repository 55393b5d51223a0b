"""What a chat template leaves out or asks for that others do not, found by rendering.

Some templates read contents as lists of parts, and show nothing of a text. Some open no
turn of the assistant's when they are asked to. All here raises `TemplateLimitError`.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Protocol

from rvllm_local.errors import RvllmError, TemplateLimitError

Messages = Sequence[Mapping[str, Any]]

# Texts that no template writes itself.
_TEXTS = {
    "system": "Q7zSystemq7",
    "user": "Q7zQuestionq7",
    "assistant": "Q7zAnswerq7",
    "tool": "Q7zResultq7",
}
_QUESTION, _ANSWER = _TEXTS["user"], _TEXTS["assistant"]


class Renders(Protocol):
    """Renders messages as they are."""

    def __call__(self, messages: Messages, *, add_generation_prompt: bool) -> str:
        """The text that the template makes. Raises `RvllmError`."""


class TemplateHabits:
    """The habits of one template. They are looked for when they are first needed."""

    def __init__(self, render: Renders, special: Collection[str]) -> None:
        """`special` are the texts of special tokens."""
        self._render = render
        self._special = special

    def rows(self, messages: Messages) -> list[Mapping[str, Any]]:
        """The messages with their contents as the template reads them."""
        return in_parts(messages, self._roles_in_parts)

    @functools.cached_property
    def _roles_in_parts(self) -> frozenset[str]:
        return roles_in_parts(self._render)

    @functools.cached_property
    def opening(self) -> str:
        """What opens an answer, if the template does not write it; else none.

        It has a special token: a text alone may be for the model to write.
        """
        text = unwritten_opening(self._render, self._roles_in_parts)
        if any(special in text for special in self._special if special):
            return text
        return ""


def in_parts(messages: Messages, roles: frozenset[str]) -> list[Mapping[str, Any]]:
    """The messages, with the contents of these roles as lists of one part."""
    rows: list[Mapping[str, Any]] = []
    for message in messages:
        content = message.get("content")
        if message.get("role") in roles and isinstance(content, str):
            parts = [{"type": "text", "text": content}]
            rows.append({**message, "content": parts})
        else:
            rows.append(message)
    return rows


def roles_in_parts(render: Renders) -> frozenset[str]:
    """Roles whose contents are shown as parts, and not as a text."""
    roles: frozenset[str] = frozenset()
    if _shows(render, "user", roles) and _shows(render, "assistant", roles):
        return roles
    for role in ("user", "assistant", "system", "tool"):
        with_role = roles | {role}
        if not _shows(render, role, roles) and _shows(render, role, with_role):
            roles = with_role
    return roles


def _shows(render: Renders, role: str, roles: frozenset[str]) -> bool:
    messages = [{"role": "user", "content": _QUESTION}]
    if role == "system":
        messages.insert(0, {"role": role, "content": _TEXTS[role]})
    elif role != "user":
        messages.append({"role": role, "content": _TEXTS[role]})
    try:
        return _TEXTS[role] in render(
            in_parts(messages, roles), add_generation_prompt=False
        )
    except TemplateLimitError:
        raise  # what once ran for too long will again
    except RvllmError:
        return False


def unwritten_opening(render: Renders, roles: frozenset[str]) -> str:
    """What opens an answer where the template does not write it when asked; else none.

    It is what the template writes between a question and its answer.
    """
    question = {"role": "user", "content": _QUESTION}
    answer = {"role": "assistant", "content": _ANSWER}
    rows = in_parts([question], roles)
    try:
        text = render(rows, add_generation_prompt=False)
        if render(rows, add_generation_prompt=True) != text:
            return ""
        answered = render(
            in_parts([question, answer], roles), add_generation_prompt=False
        )
    except TemplateLimitError:
        raise  # what once ran for too long will again
    except RvllmError:
        return ""
    opening, has_answer, _ = answered.removeprefix(text).partition(_ANSWER)
    if not answered.startswith(text) or not has_answer or not opening.strip():
        return ""
    return opening.rstrip(" ")  # a word begins with its space
