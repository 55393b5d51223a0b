"""Asks grammars which tokens may come next, within a budget of processor time.

A grammar that takes too long for a token holds up every other stream. So its request
ends with an error that says so, and no other request does.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from rvllm_local.engine.sequence import Sequence as Row
from rvllm_local.errors import GrammarError

if TYPE_CHECKING:
    from rvllm_local.text.grammar.matcher import Matcher

# Seconds of processor in one step. An ordinary grammar takes a few milliseconds a
# token.
_MOST_A_REQUEST = 0.25
_MOST_A_STEP = 0.5
_MOST_AHEAD = 0.02  # for the drafts of a row; later ones are not checked


class GrammarMasks:
    """The grammars of the rows of one step. `fail` ends a row with an error."""

    def __init__(
        self,
        vocab_size: int,
        fail: Callable[[Row, GrammarError], None],
    ) -> None:
        self._num_words = -(-vocab_size // 32)
        self._fail = fail
        self._spent: dict[str, float] = {}  # by request id, in the step that runs

    def allow(self, rows: Sequence[Row]) -> tuple[Row, ...]:
        """Work out what each row may take next. Returns the rows that are left."""
        bound = [row for row in rows if row.matcher is not None]
        if not bound:
            return tuple(rows)
        spent = self._spent
        spent.clear()
        for row in bound:
            if not row.ended:
                self._mask(row)
            request_id = row.request.request_id
            if spent.get(request_id, 0.0) > _MOST_A_REQUEST:
                self._fail_request(request_id, bound)
        if sum(spent.values()) > _MOST_A_STEP:
            slowest = max(spent, key=spent.__getitem__)
            self._fail_request(slowest, bound)
        left = [row for row in rows if not row.ended]
        return tuple(left)

    def _mask(self, row: Row) -> None:
        assert row.matcher is not None
        began = time.thread_time()
        try:
            row.allowed = np.zeros(self._num_words, dtype=np.int32)
            row.matcher.mask_into(row.allowed)
        except GrammarError as error:
            self._fail(row, error)
        request_id = row.request.request_id
        before = self._spent.get(request_id, 0.0)
        self._spent[request_id] = before + time.thread_time() - began
        if row.drafts is not None and row.drafts.tokens and not row.ended:
            self._mask_drafts(row, row.matcher)

    def _mask_drafts(self, row: Row, matcher: Matcher) -> None:
        """The masks after each drafted token; what a grammar cuts is not drafted.

        Nor is what it fails at, or takes long for: no request ends by its drafts.
        """
        assert row.drafts is not None
        row.allowed_ahead = []
        with contextlib.suppress(GrammarError):
            self._mask_ahead(row, row.drafts.tokens, matcher)
        row.drafts.tokens = row.drafts.tokens[: len(row.allowed_ahead)]

    def _mask_ahead(self, row: Row, tokens: Sequence[int], matcher: Matcher) -> None:
        assert row.allowed is not None
        began = time.thread_time()
        ahead = matcher.copy()
        allowed = row.allowed
        for token in tokens:
            if not _allows(allowed, token):
                break
            if time.thread_time() - began > _MOST_AHEAD:
                break
            ahead.advance(token)
            if ahead.is_stopped:  # the answer ends here
                break
            allowed = np.zeros(self._num_words, dtype=np.int32)
            ahead.mask_into(allowed)
            row.allowed_ahead.append(allowed)

    def _fail_request(self, request_id: str, rows: Sequence[Row]) -> None:
        """End the choices of a request that took too long, all that are in this step."""
        seconds = self._spent.pop(request_id)
        for row in rows:
            if row.request.request_id == request_id and not row.ended:
                self._fail(row, _too_slow(seconds))

    def advance(self, row: Row, token: int) -> GrammarError | None:
        """Take a token into the row's grammar, if it has one; what was wrong with it."""
        if row.matcher is None:
            return None
        try:
            row.matcher.advance(token)
        except GrammarError as error:
            return error
        return None


def _allows(mask: npt.NDArray[np.int32], token: int) -> bool:
    word, bit = divmod(token, 32)
    return bool(mask.view(np.uint32)[word] >> bit & 1)


def _too_slow(seconds: float) -> GrammarError:
    return GrammarError(
        f"the grammar took {seconds:.2f} s of processor time for one token, more than "
        "others can wait for; use a simpler one"
    )
