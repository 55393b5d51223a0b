"""A tokenizer's bytes for a parser that needs some special tokens as text."""

from __future__ import annotations

from collections.abc import Collection
from typing import Protocol


class SpellsTokens(Protocol):
    """What is asked of a tokenizer."""

    def control_token_id(self, text: str) -> int | None:
        """The added token whose whole text is `text`."""

    def id_to_bytes(self, token_id: int) -> bytes | None:
        """The bytes that a token stands for; None for special tokens."""


class KeptSpecial:
    """A tokenizer's bytes for one kind of parser. It holds no table, so it is cheap."""

    def __init__(self, tokenizer: SpellsTokens, kept_special: Collection[str]) -> None:
        self._tokenizer = tokenizer
        self._kept: dict[int, bytes] = {}
        for text in kept_special:
            token_id = tokenizer.control_token_id(text)
            if token_id is not None:
                self._kept[token_id] = text.encode()

    def id_to_bytes(self, token_id: int) -> bytes | None:
        """The bytes of a token; None for special tokens that are not kept."""
        return self._kept.get(token_id) or self._tokenizer.id_to_bytes(token_id)
