"""Which tokens may come while a model thinks.

All that are text may come until the end tag, or until the budget is spent. This knows
tokens and tags; it does not know the grammar that follows.
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
    """A pair of tags in one vocabulary.

    Masks are [ceil(vocab / 32)] with a bit for each token.
    """

    start: tuple[int, ...]  # the start tag's tokens
    end: tuple[int, ...]  # the end tag's tokens
    end_tag: bytes
    tokens: Sequence[bytes]
    # The end tag begins with a special token, after which the rest of it is certain.
    ends_at_token: bool
    # What may follow, by how many bytes of the end tag have come. A token may not end the
    # thought and go on.
    free: tuple[Mask, ...]
    # Tokens of nothing but blanks, which may stand between the thought and what follows.
    blank: Mask

    @classmethod
    def of(
        cls,
        start_tag: str,
        end_tag: str,
        tokenizer: Tokenizer,
        tokens: Sequence[bytes],
        special: Sequence[int],
    ) -> ThinkingTokens:
        """Read the vocabulary once.

        `tokens` are the bytes of each token, `special` the ids of those that are no text.
        """
        start = tokenizer.encode(start_tag, special=True, bos=False)
        end = tokenizer.encode(end_tag, special=True, bos=False)
        ends_at_token = end[0] in special
        is_text = np.array([spelled != b"" for spelled in tokens])
        is_text[list(special)] = False
        is_text[end[0]] = True  # it may be special
        tag = end_tag.encode()
        # Tokens that may hold the end of the tag and more.
        inner = []
        for token_id, spelled in enumerate(tokens):
            if is_text[token_id] and tag[-1:] in spelled[:-1]:
                inner.append(token_id)
        num_states = len(tag)
        if ends_at_token:
            num_states = 1
        free = []
        for num_come in range(num_states):
            allowed = is_text.copy()
            for token_id in inner:
                text = tag[:num_come] + tokens[token_id]
                if _goes_past(text, tag):
                    allowed[token_id] = False
            free.append(_packed(allowed))
        is_blank = [_is_blank(spelled) for spelled in tokens]
        return cls(
            start=tuple(start),
            end=tuple(end),
            end_tag=tag,
            tokens=tokens,
            ends_at_token=ends_at_token,
            free=tuple(free),
            blank=_packed(np.array(is_blank)),
        )

    def bytes_come(self, num_come: int, token_id: int) -> int:
        """How many bytes of the end tag have come after `token_id`.

        All of them have come if it ended the thought.
        """
        if self.ends_at_token:
            return 0
        tag = self.end_tag
        tail = tag[:num_come] + self.tokens[token_id]
        if tag in tail:
            return len(tag)
        longest = min(len(tag) - 1, len(tail))
        for length in range(longest, 0, -1):
            if tail.endswith(tag[:length]):
                return length
        return 0


class Thinking:
    """One output's thinking.

    There may be a start tag; then come free tokens, the end tag, and a few blanks.
    """

    def __init__(
        self,
        tokens: ThinkingTokens,
        max_tokens: int | None,
        starts_inside: bool,
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
        """The mask of the next token.

        Before the thought, the grammar's own tokens are allowed as well.
        """
        if self._forced:
            return self._only(self._forced[0])
        if self.is_inside:
            return self._tokens.free[self._num_come]
        next_of_start = self._tokens.start[self._num_start]
        return self._only(next_of_start)

    def advance(self, token_id: int) -> bool:
        """Take a token; False if it is not of the thinking, which is over then."""
        is_thinking = self._forced or self.is_inside
        if is_thinking and not _has(self.allowed(), token_id):
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
        length = len(self._tokens.start)
        self.is_inside = self._num_start == length
        self._force_end_if_spent()
        return True

    def allow_blank(self, row: Mask) -> None:
        """After the thought: add blanks to the mask, a few of them."""
        if self._num_blank < MAX_BLANK:
            blank = self._tokens.blank
            row[: blank.size] |= blank

    def takes_blank(self, token_id: int) -> bool:
        """After the thought: True if the token is a blank that `allow_blank` allowed."""
        self._num_blank += 1
        if self._num_blank > MAX_BLANK:
            return False
        return _has(self._tokens.blank, token_id)

    def copy(self) -> Thinking:
        """A thought that goes its own way from here."""
        twin = object.__new__(Thinking)
        twin.__dict__.update(self.__dict__)
        return twin

    def _think(self, token_id: int) -> None:
        tokens = self._tokens
        if tokens.ends_at_token and token_id == tokens.end[0]:
            self._forced = tokens.end[1:]
            if not self._forced:
                self._end()
            return
        self._num_come = tokens.bytes_come(self._num_come, token_id)
        has_come = self._num_come == len(tokens.end_tag)
        if has_come:
            self._end()
            return
        if self._left is not None:
            self._left -= 1
        self._force_end_if_spent()

    def _force_end_if_spent(self) -> None:
        is_spent = self._left is not None and self._left <= 0
        if self.is_inside and is_spent:
            self._forced = self._tokens.end

    def _end(self) -> None:
        self.is_inside = False
        self.is_over = True

    def _only(self, token_id: int) -> Mask:
        mask = np.zeros_like(self._tokens.free[0])
        _set(mask, token_id)
        return mask


def _is_blank(spelled: bytes) -> bool:
    """True for a token of nothing but blanks and line ends."""
    return spelled != b"" and not spelled.strip(b" \n")


def _goes_past(text: bytes, tag: bytes) -> bool:
    """True if `text` holds the whole end tag and more after it."""
    return tag in text and not text.endswith(tag)


def _packed(allowed: npt.NDArray[np.bool_]) -> Mask:
    words = -(-allowed.size // 32)
    padded = np.zeros(words * 32, dtype=np.bool_)
    padded[: allowed.size] = allowed
    packed = np.packbits(padded, bitorder="little")
    return packed.view(np.int32)


def _has(mask: Mask, token_id: int) -> bool:
    if not 0 <= token_id < mask.size * 32:
        return False
    word, bit = divmod(token_id, 32)
    bits = mask.view(np.uint32)[word]
    return bool(bits >> bit & 1)


def _set(mask: Mask, token_id: int) -> None:
    word, bit = divmod(token_id, 32)
    mask.view(np.uint32)[word] |= np.uint32(1 << bit)
