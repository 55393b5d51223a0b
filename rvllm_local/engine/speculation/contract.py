"""The contract of a drafter, and what it proposes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

MOST_DRAFTED = 7  # with the token before them a row has eight in a call


FORCED = "forced"  # by a grammar: such a token comes for certain
BY_MODEL = "model"  # drawn by a smaller model
# What followed such a stretch of tokens before, by its length.
SINGLE, SHORT, MIDDLE, LONG = "single", "short", "middle", "long"


class Proposal(NamedTuple):
    """Tokens that may come next, and the kind of guess that each of them is.

    Guesses of one kind are about equally often right.
    """

    tokens: tuple[int, ...] = ()
    kinds: tuple[str, ...] = ()


def alike(tokens: Sequence[int], kind: str) -> Proposal:
    """A proposal whose tokens are all of one kind."""
    return Proposal(tuple(tokens), (kind,) * len(tokens))


NOTHING = Proposal()


# How the token after these drafted ones is drawn, in the sampler's terms. A drafter
# without a model has no use for it.
Drawing = Callable[[Sequence[int]], Any]


class Drafter(Protocol):
    """Guesses the next tokens of sequences. Never asked for more than `MOST_DRAFTED`.

    runs_a_model: each token that it proposes takes time.
    reads_prompts: it looks at what the model made of a prompt, and of each step.
    """

    name: str
    runs_a_model: bool
    reads_prompts: bool

    def open(self, token_ids: Sequence[int], drawing: Drawing) -> Any:
        """Begin a sequence with these tokens; what is returned stands for it."""

    def close(self, stream: Any) -> None:
        """The sequence has ended."""

    def push(self, stream: Any, token_ids: Sequence[int], first_row: int) -> None:
        """Take the tokens that have come since.

        They were drawn from the rows of the step from `first_row` on.
        """

    def read(self, stream: Any, position: int, token_ids: Sequence[int]) -> None:
        """A chunk of a prompt was computed just now, which began at this position.

        `token_ids` came behind each of its tokens. Asked only if `reads_prompts`.
        """

    def propose(self, streams: Sequence[Any], most: int) -> list[Proposal]:
        """For each of the sequences what may come next, at most `most` tokens."""

    def propose_after(
        self, stream: Any, token_ids: Sequence[int], most: int
    ) -> Proposal:
        """As `propose` for one sequence in a grammar, were these tokens to come.

        A grammar drops what it forbids, so that looser guesses pay.

        Nothing from a drafter that would have to run a model for it.
        """
