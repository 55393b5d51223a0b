"""Reference-counted blocks of one arena, and the table that maps a sequence's tokens to them.

Knows ids and counts only, never arrays. Block 0 is scratch for padding rows and is never handed out.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

BLOCK_TOKENS = 32  # tokens a block
SCRATCH_BLOCK = 0


def blocks_for(num_tokens: int) -> int:
    """How many blocks hold `num_tokens` tokens."""
    return -(-num_tokens // BLOCK_TOKENS)


class BlockPool:
    """Hands out block ids 1 .. num_blocks - 1 and counts who holds them."""

    def __init__(self, num_blocks: int) -> None:
        if num_blocks < 2:
            raise ValueError(f"a pool needs the scratch block and at least one more, not {num_blocks}")
        self._ref_counts = [0] * num_blocks
        self._free: deque[int] = deque(range(1, num_blocks))
        self.peak_used = 0

    @property
    def num_total(self) -> int:
        """Blocks that can be handed out (the scratch block is not counted)."""
        return len(self._ref_counts) - 1

    @property
    def num_free(self) -> int:
        return len(self._free)

    @property
    def num_shared(self) -> int:
        """Blocks with more than one holder."""
        return sum(count > 1 for count in self._ref_counts)

    def ref_count(self, block_id: int) -> int:
        return self._ref_counts[block_id]

    def allocate(self, count: int) -> list[int]:
        """Take `count` free blocks, each with one holder. The caller has checked `num_free`."""
        assert count <= len(self._free), f"{count} blocks asked, {len(self._free)} free"
        block_ids = [self._free.popleft() for _ in range(count)]
        for block_id in block_ids:
            self._ref_counts[block_id] = 1
        self.peak_used = max(self.peak_used, self.num_total - len(self._free))
        return block_ids

    def share(self, block_ids: Iterable[int]) -> None:
        """Add a holder to blocks that are already held."""
        for block_id in block_ids:
            assert self._ref_counts[block_id] > 0, f"block {block_id} is free and cannot be shared"
            self._ref_counts[block_id] += 1

    def release(self, block_ids: Iterable[int]) -> None:
        """Drop one holder of each block; a block without holders is free again."""
        for block_id in block_ids:
            assert self._ref_counts[block_id] > 0, f"block {block_id} was released twice"
            self._ref_counts[block_id] -= 1
            if self._ref_counts[block_id] == 0:
                self._free.append(block_id)

    def check_integrity(self) -> None:
        """Raise AssertionError unless every block is free or held, and never both."""
        free = set(self._free)
        assert len(free) == len(self._free), "a block is free twice"
        assert SCRATCH_BLOCK not in free and self._ref_counts[SCRATCH_BLOCK] == 0
        for block_id in range(1, len(self._ref_counts)):
            assert (self._ref_counts[block_id] == 0) == (block_id in free), f"block {block_id} is lost"


@dataclass(slots=True)
class BlockTable:
    """The blocks of one sequence in one arena, oldest first.

    `start_block` counts the blocks already freed behind a sliding window: the first id holds tokens from
    position `start_block * BLOCK_TOKENS` on.
    """

    block_ids: list[int] = field(default_factory=list)
    start_block: int = 0

    @property
    def first_position(self) -> int:
        return self.start_block * BLOCK_TOKENS

    def missing(self, num_tokens: int) -> int:
        """Blocks still to be added before the sequence can hold `num_tokens` tokens."""
        return max(0, blocks_for(num_tokens) - self.start_block - len(self.block_ids))

    def drop_before(self, position: int) -> list[int]:
        """Forget, and return, the blocks that lie wholly before `position`."""
        count = min(max(0, position // BLOCK_TOKENS - self.start_block), len(self.block_ids))
        dropped, self.block_ids = self.block_ids[:count], self.block_ids[count:]
        self.start_block += count
        return dropped

    def clear(self) -> list[int]:
        """Forget, and return, every block."""
        dropped, self.block_ids = self.block_ids, []
        return dropped
