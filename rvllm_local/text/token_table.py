"""What each token of a vocabulary stands for, as plain data.

A tokenizer is foreign code; this table of it can be read by any process.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rvllm_local.text.tokenizer import Tokenizer

_ID_BYTES = 4


@dataclass(frozen=True, slots=True)
class TokenTable:
    """The bytes of all tokens, one after the other, and where each ends.

    `ends` are offsets into `data`, four bytes each. `special` are ids of tokens that are
    no text. With `adds_space`, the tokenizer puts a space before a text's first word.
    """

    data: bytes
    ends: bytes
    special: frozenset[int]
    adds_space: bool

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> TokenTable:
        """The table of a tokenizer; takes a fraction of a second."""
        data, ends = bytearray(), bytearray()
        for token_id in range(tokenizer.num_ids):
            data += tokenizer.spelling(token_id)
            ends += len(data).to_bytes(_ID_BYTES, "little")
        special = frozenset(tokenizer.special_ids)
        return cls(bytes(data), bytes(ends), special, tokenizer.adds_space)

    def spelling(self, token_id: int) -> bytes:
        """The bytes of a token, special or not; none for an id without a token."""
        offset = token_id * _ID_BYTES
        if not 0 <= offset < len(self.ends):
            return b""
        start = self._number(offset - _ID_BYTES) if offset else 0
        return self.data[start : self._number(offset)]

    def id_to_bytes(self, token_id: int) -> bytes | None:
        """The bytes that a token stands for; None for special tokens."""
        return None if token_id in self.special else self.spelling(token_id)

    def decode(self, token_ids: Sequence[int], skip_special: bool = True) -> str:
        """Text of `token_ids`, as `Tokenizer.decode` makes it."""
        parts = []
        for token_id in token_ids:
            if not (skip_special and token_id in self.special):
                parts.append(self.spelling(token_id))
        text = b"".join(parts).decode("utf-8", errors="replace")
        if parts and self.adds_space:
            return text.removeprefix(" ")
        return text

    def _number(self, offset: int) -> int:
        return int.from_bytes(self.ends[offset : offset + _ID_BYTES], "little")
