"""Turns a sequence's tokens into text as they come.

Never splits UTF-8 or a stop string. There is one object a sequence, which is cheap to
make: the tokenizer's tables are shared.
"""

from __future__ import annotations

import codecs
from collections.abc import Collection
from typing import Protocol

from rvllm_local.types import FinishReason

_SHORT = 32  # characters of a stop string's beginnings that are kept in a set


class TextDecoder(Protocol):
    """What the detokenizer needs of a tokenizer."""

    def id_to_bytes(self, token_id: int) -> bytes | None:
        """The bytes that a token stands for; None or empty for special tokens."""


class Vocabulary(TextDecoder, Protocol):
    """What the engine needs of a tokenizer."""

    @property
    def end_token_ids(self) -> frozenset[int]:
        """Tokens that end an answer, as the tokenizer and its template tell."""

    def encode(self, text: str, *, bos: bool) -> list[int]:
        """The token ids of a text."""

    def keeping(self, kept_special: Collection[str]) -> TextDecoder:
        """The same bytes, with the special tokens of these texts as text."""


class StreamingDetokenizer:
    """`push` tokens, send on what it returns, `finish` at the end.

    Held back: an incomplete UTF-8 sequence, and the longest ending that could become a
    stop string. The text of a matched stop string, and all after it, is never returned.
    """

    def __init__(
        self,
        tokenizer: TextDecoder,
        stop: tuple[str, ...],
        min_tokens: int = 0,
    ) -> None:
        """No stop string is looked for in the first `min_tokens` tokens."""
        self._tokenizer = tokenizer
        self._stop = stop
        self._num_free = min_tokens
        beginnings = set()
        for text in stop:
            for length in range(1, min(len(text), _SHORT + 1)):
                beginnings.add(text[:length])
        self._beginnings = frozenset(beginnings)
        self._longest = max(map(len, beginnings), default=0)
        self._begun = b""  # of a character whose other bytes are to come
        self._held = ""
        self.stop_string: str | None = None

    @property
    def stopped(self) -> bool:
        """True once a stop string has come."""
        return self.stop_string is not None

    def push(self, token_id: int) -> str:
        """The text that is safe to send after this token."""
        if self.stop_string is not None:
            return ""
        is_free = self._num_free > 0
        self._num_free -= is_free
        piece = self._tokenizer.id_to_bytes(token_id)
        if not piece:
            return ""
        text = self._decoded(piece, final=False)
        return self._take(text) if self._stop and not is_free else text

    def finish(self, reason: FinishReason = FinishReason.STOP) -> str:
        """What was held back; bytes that never became a character turn into U+FFFD.

        The beginning of a stop string is shown only if the model itself ended there.
        """
        if self.stop_string is not None:
            return ""
        last = self._decoded(b"", final=True)
        text = self._take(last)
        if reason is FinishReason.STOP:
            text += self._held
        self._held = ""
        return text

    def _decoded(self, piece: bytes, *, final: bool) -> str:
        """The characters that are whole; what can never become one is U+FFFD.

        As the incremental decoder, at half its cost.
        """
        data = self._begun + piece
        text, used = codecs.utf_8_decode(data, "replace", final)
        self._begun = data[used:]
        return text

    def _take(self, text: str) -> str:
        text = self._held + text
        matches = [(text.find(stop), stop) for stop in self._stop if stop in text]
        if matches:
            position, self.stop_string = min(matches)
            self._held = ""
            return text[:position]
        safe = len(text) - self._length_to_hold(text)
        self._held = text[safe:]
        return text[:safe]

    def _length_to_hold(self, text: str) -> int:
        """Length of the longest ending of `text` that begins a stop string."""
        longest = max((_long_ending(text, stop) for stop in self._stop), default=0)
        if longest:
            return longest
        for length in range(min(self._longest, len(text)), 0, -1):
            if text[-length:] in self._beginnings:
                return length
        return 0


def _long_ending(text: str, stop: str) -> int:
    """Length of the longest ending of `text` that begins `stop`, if it is no short one.

    All beginnings of a long stop string in a set would be its square in memory.
    """
    head = stop[: _SHORT + 1]
    if len(head) <= _SHORT or len(text) <= _SHORT:
        return 0
    start = text.find(head, max(0, len(text) - len(stop) + 1))
    while start >= 0:
        ending = text[start:]
        if stop.startswith(ending):
            return len(ending)
        start = text.find(head, start + 1)
    return 0
