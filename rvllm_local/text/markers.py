"""Hides special tokens in what users write while a chat template renders it.

Each is replaced by a random marker, which is found again in the rendered text.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from rvllm_local.errors import ParameterError


@dataclass(frozen=True, slots=True)
class HiddenTexts:
    """Texts to hide, and all that could be the beginning of one."""

    pattern: re.Pattern[str] | None
    beginnings: frozenset[str]
    longest: int

    @classmethod
    def of(cls, texts: Iterable[str]) -> HiddenTexts:
        """What to hide for these texts."""
        ordered = [text for text in texts if text]
        ordered.sort(key=len, reverse=True)
        if not ordered:
            return cls(None, frozenset(), 0)
        beginnings = set()
        for text in ordered:
            for size in range(1, len(text)):
                beginnings.add(text[:size])
        escaped = [re.escape(text) for text in ordered]
        return cls(
            pattern=re.compile("|".join(escaped)),
            beginnings=frozenset(beginnings),
            longest=len(ordered[0]),
        )

    def beginning_at_end(self, text: str) -> int:
        """Length of the longest ending of `text` that begins one of the texts."""
        longest = min(self.longest, len(text))
        for size in range(longest, 0, -1):
            if text[-size:] in self.beginnings:
                return size
        return 0


class Markers:
    """Hides special tokens in what users write.

    They are found again in what a template made of it.
    """

    def __init__(self) -> None:
        self._nonce = secrets.token_hex(16)
        self._hidden: list[str] = []
        self._ending = secrets.token_hex(16)

    def ending(
        self,
        message: Mapping[str, Any],
    ) -> Mapping[str, Any]:
        """A message whose content's end can be found again.

        Raises `ParameterError` if it is not the assistant's text.
        """
        is_text = message["role"] == "assistant" and not message.get("tool_calls")
        if not is_text:
            raise ParameterError(
                "messages",
                "only a last message that is the assistant's text can be continued",
            )
        content = message.get("content") or ""
        return {**message, "content": f"{content}{self._ending}"}

    def up_to_ending(self, text: str) -> str:
        """What a template wrote up to that end."""
        before, mark, _ = text.rpartition(self._ending)
        if not mark:
            raise ParameterError(
                "messages",
                "the model's chat template does not show the last message: it cannot be "
                "continued",
            )
        return before

    def hide(self, value: Any, hidden: HiddenTexts) -> Any:
        """`value` with every special token in it behind a marker.

        So is every beginning of one at a text's end.
        """
        if isinstance(value, str):
            return self._hide_text(value, hidden)
        if isinstance(value, Mapping):
            members = {}
            for key, item in value.items():
                shown = self.hide(key, hidden)
                members[shown] = self.hide(item, hidden)
            return members
        if isinstance(value, list | tuple):
            return [self.hide(item, hidden) for item in value]
        return value

    def _hide_text(self, text: str, hidden: HiddenTexts) -> str:
        if hidden.pattern is None:
            return text

        def mark(match: re.Match[str]) -> str:
            return self._marker(match[0])

        text = hidden.pattern.sub(mark, text)
        # Two texts that a template sets side by side could make a special token.
        size = hidden.beginning_at_end(text)
        if size == 0:
            return text
        start = len(text) - size
        beginning = text[start:]
        return text[:start] + self._marker(beginning)

    def _marker(self, text: str) -> str:
        if text not in self._hidden:
            self._hidden.append(text)
        index = self._hidden.index(text)
        return f"{self._nonce}{index}{self._nonce}"

    def split(self, text: str) -> Iterator[tuple[str, bool]]:
        """Pieces of a rendered text, and whether special tokens count in them."""
        for number, piece in enumerate(text.split(self._nonce)):
            is_template = number % 2 == 0
            if is_template:
                yield piece, True
            else:
                yield self._text_of(piece), False

    def _text_of(self, number: str) -> str:
        """The hidden text of a marker's number."""
        if number.isdecimal():
            index = int(number)
            if index < len(self._hidden):
                return self._hidden[index]
        raise ParameterError(
            "messages",
            "a message holds special tokens, and the chat template cuts it up",
        )
