"""Which tokens may come while a model thinks: all that are text, until its end tag, or until its budget is spent.

It knows tokens and tags; the grammar that follows is not its business.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from rvllm_local.text.tokenizer import Tokenizer

MAX_BLANK = 4
Mask = npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class ThinkingTokens:
    """A pair of tags in one vocabulary; masks are [ceil(vocab / 32)] with a bit for each token."""

    start: tuple[int, ...]  # the start tag's tokens
    end: tuple[int, ...]  # the end tag's tokens
    end_tag: bytes
    tokens: Sequence[bytes]
    ends_at_token: bool  # the end tag begins with a special token, after which the rest of it is certain
    # By how many bytes of the end tag have come: what may follow. A token may not end the thought and go on.
    free: tuple[Mask, ...]
    blank: Mask  # tokens of nothing but blanks, which may stand between the thought and what follows

    @classmethod
    def of(
        cls,
        start_tag: str,
        end_tag: str,
        tokenizer: Tokenizer,
        tokens: Sequence[bytes],
        special: Sequence[int],
    ) -> ThinkingTokens:
        """Read the vocabulary once; `tokens` are the bytes of each, `special` those that are no text."""
        end = tuple(tokenizer.encode(end_tag, special=True, bos=False))
        text = np.array([spelled != b"" for spelled in tokens])
        text[list(special)] = False
        text[end[0]] = True
        tag = end_tag.encode()
        inner = [
            token
            for token, spelled in enumerate(tokens)
            if text[token] and tag[-1:] in spelled[:-1]
        ]
        free = []
        for num_come in range(1 if end[0] in special else len(tag)):
            allowed = text.copy()
            for token in inner:
                if _goes_past(tag[:num_come] + tokens[token], tag):
                    allowed[token] = False
            free.append(_packed(allowed))
        start = tuple(tokenizer.encode(start_tag, special=True, bos=False))
        blank = np.array(
            [bool(spelled) and not spelled.strip(b" \n") for spelled in tokens]
        )
        return cls(
            start, end, tag, tokens, end[0] in special, tuple(free), _packed(blank)
        )

    def bytes_come(self, num_come: int, token_id: int) -> int:
        """How many bytes of the end tag have come after `token_id`; all of them if it ended the thought."""
        if self.ends_at_token:
            return 0
        tail = self.end_tag[:num_come] + self.tokens[token_id]
        if self.end_tag in tail:
            return len(self.end_tag)
        for length in range(min(len(self.end_tag) - 1, len(tail)), 0, -1):
            if tail.endswith(self.end_tag[:length]):
                return length
        return 0


class Thinking:
    """One output's thinking: perhaps a start tag, then free tokens, the end tag, and a few blanks."""

    def __init__(
        self, tokens: ThinkingTokens, max_tokens: int | None, starts_inside: bool
    ) -> None:
        self._tokens = tokens
        self._left = max_tokens
        self.is_inside = starts_inside
        self.is_over = False
        self._num_start = 0  # start tag tokens that have come
        self._num_come = 0  # bytes of the end tag that have come
        self._forced: tuple[int, ...] = ()  # end tag tokens that must come
        self._num_blank = 0  # blank tokens after the end tag
        self._force_end_if_spent()

    def allowed(self) -> Mask:
        """The mask of the next token; before the thought, the grammar's own tokens come on top."""
        if self._forced:
            return self._only(self._forced[0])
        if self.is_inside:
            return self._tokens.free[self._num_come]
        return self._only(self._tokens.start[self._num_start])

    def advance(self, token_id: int) -> bool:
        """Take a token; False if it is not of the thinking, which is over then."""
        if (self._forced or self.is_inside) and not _has(self.allowed(), token_id):
            return False
        if self._forced:
            self._forced = self._forced[1:]
            if not self._forced:
                self._end()
            return True
        if self.is_inside:
            self._think(token_id)
            return True
        if token_id != self._tokens.start[self._num_start]:
            self.is_over = True
            return False
        self._num_start += 1
        self.is_inside = self._num_start == len(self._tokens.start)
        self._force_end_if_spent()
        return True

    def allow_blank(self, row: Mask) -> None:
        """After the thought: add blanks to the mask, a few of them."""
        if self._num_blank < MAX_BLANK:
            row[: self._tokens.blank.size] |= self._tokens.blank

    def takes_blank(self, token_id: int) -> bool:
        """After the thought: True if the token is a blank that `allow_blank` allowed."""
        self._num_blank += 1
        return self._num_blank <= MAX_BLANK and _has(self._tokens.blank, token_id)

    def copy(self) -> Thinking:
        """A thought that goes its own way from here."""
        twin = object.__new__(Thinking)
        twin.__dict__.update(self.__dict__)
        return twin

    def _think(self, token_id: int) -> None:
        if self._tokens.ends_at_token and token_id == self._tokens.end[0]:
            self._forced = self._tokens.end[1:]
            if not self._forced:
                self._end()
            return
        self._num_come = self._tokens.bytes_come(self._num_come, token_id)
        if self._num_come == len(self._tokens.end_tag):
            self._end()
            return
        if self._left is not None:
            self._left -= 1
        self._force_end_if_spent()

    def _force_end_if_spent(self) -> None:
        if self.is_inside and self._left is not None and self._left <= 0:
            self._forced = self._tokens.end

    def _end(self) -> None:
        self.is_inside, self.is_over = False, True

    def _only(self, token_id: int) -> Mask:
        mask = np.zeros_like(self._tokens.free[0])
        _set(mask, token_id)
        return mask


def _goes_past(text: bytes, tag: bytes) -> bool:
    """True if `text` holds the whole end tag and more after it."""
    return tag in text and not text.endswith(tag)


def _packed(allowed: npt.NDArray[np.bool_]) -> Mask:
    padded = np.zeros(-(-allowed.size // 32) * 32, dtype=np.bool_)
    padded[: allowed.size] = allowed
    return np.packbits(padded, bitorder="little").view(np.int32)


def _has(mask: Mask, token_id: int) -> bool:
    return 0 <= token_id < mask.size * 32 and bool(
        mask.view(np.uint32)[token_id // 32] >> (token_id % 32) & 1
    )


def _set(mask: Mask, token_id: int) -> None:
    mask.view(np.uint32)[token_id // 32] |= np.uint32(1 << (token_id % 32))
