"""The contract of a drafter, and what it proposes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

MOST_DRAFTED = 7  # with the token before them a row has eight in a call


class Proposal(NamedTuple):
    """Tokens that may come next, and the kind of guess that they are.

    Guesses of one kind are about equally often right.
    """

    tokens: tuple[int, ...] = ()
    kind: str = ""


NOTHING = Proposal()


class Drafter(Protocol):
    """Guesses the next tokens of sequences. Never asked for more than `MOST_DRAFTED`."""

    name: str

    def open(self, token_ids: Sequence[int]) -> Any:
        """Begin a sequence with these tokens; what is returned stands for it."""

    def push(self, stream: Any, token_ids: Sequence[int]) -> None:
        """Take the tokens that have come since."""

    def propose(self, streams: Sequence[Any], most: int) -> list[Proposal]:
        """For each of the sequences what may come next, at most `most` tokens."""
