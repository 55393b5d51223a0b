"""Drafts that follow a grammar: what it forces, and guesses in between.

A grammar that allows blanks forces little of a document: a blank may come before each
name. So where it leaves a choice, what the drafter proposes is taken, or else what
would come without blanks; behind that the grammar forces on.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from rvllm_local.engine.speculation.contract import (
    FORCED,
    MOST_DRAFTED,
    Proposal,
    alike,
)
from rvllm_local.errors import GrammarError

if TYPE_CHECKING:
    from rvllm_local.text.grammar.matcher import Matcher

COMPACT = "compact"  # what a grammar forces where no blank comes

# What a drafter proposes after tokens that are drafted already.
GuessAfter = Callable[[Sequence[int]], Proposal]


def along_grammar(matcher: Matcher, guess_after: GuessAfter) -> Proposal:
    """What may come next in an output that a grammar bounds."""
    walk = _Walk(matcher.copy())
    with contextlib.suppress(GrammarError):  # what was found before it stands
        walk.go(guess_after)
    return Proposal(
        tuple(walk.tokens),
        tuple(walk.kinds),
    )


class _Walk:
    """A matcher that goes ahead, and the tokens that it took."""

    def __init__(self, matcher: Matcher) -> None:
        self._matcher = matcher
        self.tokens: list[int] = []
        self.kinds: list[str] = []

    def go(self, guess_after: GuessAfter) -> None:
        """Go on until nothing is known of what follows."""
        while not self._is_over:
            forced = self._matcher.forced()
            if self._take(alike(forced, FORCED)):
                continue
            guess = guess_after(self.tokens)
            if self._take(guess):
                continue
            compact = self._matcher.forced_compactly()
            if not self._take(alike(compact, COMPACT)):
                return

    @property
    def _is_over(self) -> bool:
        if self._matcher.is_stopped:
            return True
        return len(self.tokens) == MOST_DRAFTED

    def _take(self, proposal: Proposal) -> bool:
        """Take a proposal's tokens as far as they are allowed, up to a forced one.

        False if that is none of them.
        """
        before = len(self.tokens)
        kinds = iter(proposal.kinds)
        for token in proposal.tokens:
            kind = next(kinds)
            if self._is_over or not self._matcher.allows(token):
                break
            self._matcher.advance(token)
            self.tokens.append(token)
            self.kinds.append(kind)
            if kind != FORCED and self._matcher.forced():
                break
        return len(self.tokens) > before
