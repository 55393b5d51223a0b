"""Drafts without a model: what followed when the last tokens stood there before.

Looks through the prompt and the answer with numpy. Nothing is indexed, so that a
sequence keeps four bytes a token, and a search costs some microseconds.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from rvllm_local.engine.speculation.contract import (
    LONG,
    MIDDLE,
    NOTHING,
    SHORT,
    SINGLE,
    Drawing,
    Proposal,
    alike,
)

_SHORTEST = 2  # tokens that must agree; after fewer anything may follow
_SHORTEST_IN_GRAMMAR = 1  # what a grammar forbids is dropped: blanks and commas remain
_LONGEST = 8  # tokens that are compared
_FAR = 32_768  # tokens back that are looked through


class TokenText:
    """The tokens of one sequence, with room for more."""

    def __init__(self, token_ids: Sequence[int]) -> None:
        self._size = len(token_ids)
        self._tokens = np.zeros(max(64, 2 * self._size), dtype=np.int32)
        self._tokens[: self._size] = token_ids

    def push(self, token_ids: Sequence[int]) -> None:
        end = self._size + len(token_ids)
        if end > len(self._tokens):
            more = np.zeros(max(end, len(self._tokens)), dtype=np.int32)
            self._tokens = np.concatenate([self._tokens, more])
        self._tokens[self._size : end] = token_ids
        self._size = end

    def recent(self) -> npt.NDArray[np.int32]:
        first = max(0, self._size - _FAR)
        return self._tokens[first : self._size]


class NgramDrafter:
    """Proposes what followed the longest, then the latest, equal stretch of tokens."""

    name = "n-grams"
    runs_a_model = False
    reads_prompts = False

    def open(self, token_ids: Sequence[int], drawing: Drawing) -> TokenText:
        return TokenText(token_ids)

    def close(self, stream: TokenText) -> None:
        """Nothing is kept elsewhere."""

    def push(
        self, stream: TokenText, token_ids: Sequence[int], first_row: int = 0
    ) -> None:
        stream.push(token_ids)

    def read(self, stream: TokenText, position: int, token_ids: Sequence[int]) -> None:
        """The prompt's tokens suffice."""

    def propose(self, streams: Sequence[TokenText], most: int) -> list[Proposal]:
        return [_followers(stream.recent(), most, _SHORTEST) for stream in streams]

    def propose_after(
        self, stream: TokenText, token_ids: Sequence[int], most: int
    ) -> Proposal:
        more = np.array(token_ids, dtype=np.int32)
        tokens = np.concatenate([stream.recent(), more])
        return _followers(tokens, most, _SHORTEST_IN_GRAMMAR)


def _followers(tokens: npt.NDArray[np.int32], most: int, shortest: int) -> Proposal:
    end = len(tokens) - 1
    if end < 1:
        return NOTHING
    # Where the last token stands as well; then where those before it agree, too.
    is_same = tokens[:end] == tokens[end]
    ends = is_same.nonzero()[0]  # numpy.flatnonzero makes ten calls of this one
    length = 1
    while length < _LONGEST and len(ends):
        ends_before = ends[ends >= length]
        agree = tokens[ends_before - length] == tokens[end - length]
        longer = ends_before[agree]
        if not len(longer):
            break
        ends = longer
        length += 1
    if length < shortest or not len(ends):
        return NOTHING
    start = int(ends[-1]) + 1
    # Past the newest token it goes on as a repetition.
    period = end + 1 - start
    places = start + np.arange(most) % period
    return alike(tokens[places].tolist(), _kind(length))


def _kind(length: int) -> str:
    if length < 2:
        return SINGLE
    if length < 3:
        return SHORT
    return MIDDLE if length < 6 else LONG
