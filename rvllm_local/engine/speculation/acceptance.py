"""How often a sequence's drafts are right, by the kind of guess."""

from __future__ import annotations

from collections.abc import Sequence

from rvllm_local.engine.speculation.contract import (
    FORCED,
    LONG,
    MIDDLE,
    SHORT,
    Proposal,
)

_MEMORY = 0.9  # what a guess of yesterday counts today
# What is believed of a kind at first, as so many guesses, right and all.
_BEGINNING = {
    SHORT: (1.0, 3.0),
    MIDDLE: (1.0, 2.0),
    LONG: (1.5, 2.0),
    "compact": (1.0, 2.0),
    "laid out": (4.5, 5.0),
    "usual": (1.5, 2.0),
    "ended": (1.0, 3.0),
}
_UNKNOWN = (1.0, 2.0)


class Acceptance:
    """Counts right guesses of one sequence. Old ones fade."""

    def __init__(self) -> None:
        self._counts: dict[str, tuple[float, float]] = {}

    def chance(self, kind: str) -> float:
        """Of a drafted token to be right when all before it were."""
        if kind == FORCED:
            return 1.0
        right, all_guesses = self._counts.get(kind) or _BEGINNING.get(kind, _UNKNOWN)
        return right / all_guesses

    def record(self, proposal: Proposal, token_ids: Sequence[int]) -> None:
        """Hold a proposal against the tokens that came, verified or not."""
        tally: dict[str, tuple[int, int]] = {}
        for guess, kind, token in zip(
            proposal.tokens, proposal.kinds, token_ids, strict=False
        ):
            right, all_guesses = tally.get(kind, (0, 0))
            is_right = guess == token
            tally[kind] = (right + is_right, all_guesses + 1)
            if not is_right:
                break
        tally.pop(FORCED, None)
        for kind, (right, all_guesses) in tally.items():
            before = self._counts.get(kind) or _BEGINNING.get(kind, _UNKNOWN)
            self._counts[kind] = (
                before[0] * _MEMORY + right,
                before[1] * _MEMORY + all_guesses,
            )
