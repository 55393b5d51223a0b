"""Turns a sequence's tokens into text as they come, without ever splitting UTF-8 or a stop string.

One object a sequence, cheap to make; the tokenizer's tables are shared.
"""

from __future__ import annotations

import codecs
from collections.abc import Collection
from typing import Protocol


class TextDecoder(Protocol):
    """What the detokenizer needs of a tokenizer."""

    def id_to_bytes(self, token_id: int) -> bytes | None:
        """The bytes that a token stands for; None or empty for special tokens."""


class Vocabulary(TextDecoder, Protocol):
    """What the engine needs of a tokenizer."""

    def keeping(self, kept_special: Collection[str]) -> TextDecoder:
        """The same bytes, with the special tokens of these texts as text."""


class StreamingDetokenizer:
    """`push` tokens, send on what it returns, `finish` at the end.

    Held back: an incomplete UTF-8 sequence, and the longest ending that could become a stop string. The text
    of a matched stop string, and all after it, is never returned.
    """

    def __init__(self, tokenizer: TextDecoder, stop: tuple[str, ...]) -> None:
        self._tokenizer = tokenizer
        self._stop = stop
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = ""
        self.stop_string: str | None = None

    @property
    def stopped(self) -> bool:
        """True once a stop string has come."""
        return self.stop_string is not None

    def push(self, token_id: int) -> str:
        """The text that is safe to send after this token."""
        if self.stopped:
            return ""
        piece = self._tokenizer.id_to_bytes(token_id)
        return self._take(self._decoder.decode(piece)) if piece else ""

    def finish(self) -> str:
        """What was held back; bytes that never became a character turn into U+FFFD."""
        if self.stopped:
            return ""
        text = self._take(self._decoder.decode(b"", final=True))
        text, self._held = text + self._held, ""
        return text

    def _take(self, text: str) -> str:
        if not self._stop:
            return text
        text = self._held + text
        found = [(text.find(stop), stop) for stop in self._stop if stop in text]
        if found:
            position, self.stop_string = min(found)
            self._held = ""
            return text[:position]
        keep = self._length_to_hold(text)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def _length_to_hold(self, text: str) -> int:
        """Length of the longest ending of `text` that begins a stop string."""
        longest = max((len(stop) - 1 for stop in self._stop), default=0)
        for length in range(min(longest, len(text)), 0, -1):
            if any(stop.startswith(text[-length:]) for stop in self._stop):
                return length
        return 0
