"""Explains why the reuse of a prompt's prefix ended: the first token that differed."""

from __future__ import annotations

from collections.abc import Callable

from rvllm_local.engine.sequence import Sequence
from rvllm_local.memory.blocks import BLOCK_TOKENS
from rvllm_local.memory.prefix import BlockHistory, Divergence


class PrefixMisses:
    """Remembers the tokens of cached blocks. `show` gives a token's text for people."""

    def __init__(self, capacity: int, show: Callable[[int], str]) -> None:
        self._history = BlockHistory(capacity)
        self._show = show

    def record(self, sequence: Sequence, block: int) -> None:
        """This full block of a sequence is cached now."""
        parent = sequence.keys.parent_of(block)
        self._history.record(parent, _block_tokens(sequence, block))

    def note(self, sequence: Sequence) -> None:
        """Note in its timings why nothing more of a prompt is reused."""
        is_whole = sequence.num_computed >= sequence.num_prompt - 1
        if is_whole or sequence.timings.miss is not None:
            return
        block = sequence.num_computed // BLOCK_TOKENS
        sequence.keys.upto(sequence.token_ids, block)
        divergence = self._history.divergence(
            sequence.keys.parent_of(block),
            _block_tokens(sequence, block),
            block * BLOCK_TOKENS,
        )
        if divergence is not None:
            sequence.timings.miss = describe_divergence(divergence, self._show)


def describe_divergence(divergence: Divergence, show: Callable[[int], str]) -> str:
    """One line: where a prompt left what was cached."""
    return (
        f"token {divergence.position} is {show(divergence.token_id)}, and after the "
        f"same beginning {show(divergence.cached_token_id)} was cached"
    )


def _block_tokens(sequence: Sequence, block: int) -> list[int]:
    start = block * BLOCK_TOKENS
    return sequence.token_ids[start : start + BLOCK_TOKENS]
