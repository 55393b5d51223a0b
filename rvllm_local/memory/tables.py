"""A sequence's block tables, one for each group, and the pools behind them.

The one place where blocks are taken for a sequence and given back.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rvllm_local.memory.blocks import BLOCK_TOKENS, BlockPool, BlockTable
from rvllm_local.memory.layout import KVLayout


@dataclass(frozen=True, slots=True)
class SequenceTables:
    """The block tables of one sequence, in the layout's group order."""

    groups: tuple[BlockTable, ...]


class KVTables:
    """Grows and frees the tables of all sequences over the groups' pools."""

    def __init__(self, layout: KVLayout, num_blocks: Sequence[int]) -> None:
        self.layout = layout
        self.pools = tuple(BlockPool(count) for count in num_blocks)

    @property
    def blocks_total(self) -> int:
        return sum(pool.num_total for pool in self.pools)

    @property
    def blocks_free(self) -> int:
        return sum(pool.num_free for pool in self.pools)

    @property
    def blocks_shared(self) -> int:
        return sum(pool.num_shared for pool in self.pools)

    @property
    def blocks_peak(self) -> int:
        return sum(pool.peak_used for pool in self.pools)

    def capacity_tokens(self, chunk: int) -> int:
        """The longest sequence that fits when it has the arenas to itself."""
        low, high = 0, max(pool.num_total for pool in self.pools) * BLOCK_TOKENS
        while low < high:
            middle = (low + high + 1) // 2
            needed = self.layout.blocks_needed(middle, chunk)
            if all(count <= pool.num_total for count, pool in zip(needed, self.pools, strict=True)):
                low = middle
            else:
                high = middle - 1
        return low

    def new_sequence(self) -> SequenceTables:
        return SequenceTables(tuple(BlockTable() for _ in self.pools))

    def can_grow(self, tables: SequenceTables, num_tokens: int) -> bool:
        """True when every group has the blocks for `num_tokens` tokens of this sequence."""
        return all(
            table.missing(num_tokens) <= pool.num_free for table, pool in zip(tables.groups, self.pools, strict=True)
        )

    def grow(self, tables: SequenceTables, num_tokens: int) -> None:
        """Give the sequence room for `num_tokens` tokens; the caller has checked `can_grow`."""
        for table, pool in zip(tables.groups, self.pools, strict=True):
            table.block_ids.extend(pool.allocate(table.missing(num_tokens)))

    def trim_windows(self, tables: SequenceTables, next_position: int) -> None:
        """Free blocks that no query from `next_position` on can see."""
        for shape, table, pool in zip(self.layout.groups, tables.groups, self.pools, strict=True):
            if shape.window is not None:
                pool.release(table.drop_before(next_position - shape.window + 1))

    def release(self, tables: SequenceTables) -> None:
        """Give back every block of the sequence."""
        for table, pool in zip(tables.groups, self.pools, strict=True):
            pool.release(table.clear())
