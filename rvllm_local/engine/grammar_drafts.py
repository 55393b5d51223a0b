"""Drafts that follow a grammar: what it forces, and guesses in between.

A grammar that allows blanks forces little of a document: a blank may come before each
name. So where it leaves a choice, the blanks are guessed from those before them. Where
nothing is known of them what the drafter proposes is taken, or else what would come
without blanks, or what would come after the value; behind that the grammar forces on.
Where three tokens or more stand as they stood before, what followed them goes first.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from rvllm_local.engine.speculation.contract import (
    FORCED,
    LONG,
    MIDDLE,
    MOST_DRAFTED,
    Proposal,
    alike,
)
from rvllm_local.errors import GrammarError

if TYPE_CHECKING:
    from rvllm_local.text.grammar.continuation import Continuation
    from rvllm_local.text.grammar.matcher import Matcher

LAID_OUT = "laid out"  # forced, with blanks as the document has had them
USUAL = "usual"  # forced, with blanks as most documents have them
COMPACT = "compact"  # what a grammar forces where no blank comes
ENDED = "ended"  # what follows if a string or a number ends

# What a drafter proposes after tokens that are drafted already.
GuessAfter = Callable[[Sequence[int]], Proposal]


def along_grammar(
    matcher: Matcher, guess_after: GuessAfter, *, guesses_ends: bool = True
) -> Proposal:
    """What may come next in an output that a grammar bounds.

    With `guesses_ends` also what comes if a string or a number ends here.
    """
    walk = _Walk(matcher.copy(), guesses_ends)
    with contextlib.suppress(GrammarError):  # what was found before it stands
        walk.go(guess_after)
    return Proposal(
        tuple(walk.tokens),
        tuple(walk.kinds),
    )


class _Walk:
    """A matcher that goes ahead, and the tokens that it took."""

    def __init__(self, matcher: Matcher, guesses_ends: bool) -> None:
        self._matcher = matcher
        self._guesses_ends = guesses_ends
        self.tokens: list[int] = []
        self.kinds: list[str] = []

    def go(self, guess_after: GuessAfter) -> None:
        """Go on until nothing is known of what follows."""
        while not self._is_over:
            forced = self._matcher.forced()
            if self._take(alike(forced, FORCED)):
                continue
            guess = guess_after(self.tokens)
            if _goes_first(guess) and self._take(guess):
                continue
            laid_out = self._matcher.laid_out()
            if self._take(_of_kinds(laid_out, LAID_OUT)):
                continue
            if self._take(guess):
                continue
            compact = self._matcher.forced_compactly()
            if self._take(alike(compact, COMPACT)):
                continue
            if not self._guesses_ends:
                return
            ended = self._matcher.after_value()
            if not self._take(_of_kinds(ended, ENDED)):
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


def _goes_first(guess: Proposal) -> bool:
    """Items that repeat themselves tell of values, too, and layout of blanks alone."""
    return guess.kinds[:1] in ((MIDDLE,), (LONG,))


def _of_kinds(continuation: Continuation, first: str) -> Proposal:
    """A continuation as a proposal.

    `first` is the kind of its first token; what stands on usual blanks is another.
    """
    kinds = []
    for index in range(len(continuation.token_ids)):
        is_seen = index < continuation.num_seen
        kinds.append(LAID_OUT if is_seen else USUAL)
    if first == ENDED and kinds:
        kinds[0] = ENDED
    return Proposal(tuple(continuation.token_ids), tuple(kinds))
