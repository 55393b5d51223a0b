"""A sequence's block tables, one for each group, the pools behind them and the index of cached prefixes.

The one place where blocks are taken for a sequence, shared between sequences and given back.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from rvllm_local.memory.blocks import BLOCK_TOKENS, BlockPool, BlockTable
from rvllm_local.memory.layout import KVLayout
from rvllm_local.memory.prefix import PrefixIndex
from rvllm_local.memory.state import RecurrentState, StateSnapshots

EvictionHook = Callable[[int, int, bytes], None]
_LONGEST = 2**40  # tokens


@dataclass(frozen=True, slots=True)
class SequenceTables:
    """The block tables of one sequence, in the layout's group order, and what its recurrent layers keep."""

    groups: tuple[BlockTable, ...]
    state: RecurrentState = field(default_factory=RecurrentState, compare=False)

    @property
    def num_blocks(self) -> int:
        return sum(len(table.block_ids) for table in self.groups)


@dataclass(frozen=True, slots=True)
class BlockCopy:
    """A block of one group to be copied before it is written."""

    group: int
    source: int
    destination: int


class KVTables:
    """Grows, shares and frees the tables of all sequences over the groups' pools.

    `before_evict(group, block_id, key)` is called while an evicted block still has its content.
    """

    def __init__(
        self,
        layout: KVLayout,
        num_blocks: Sequence[int],
        before_evict: EvictionHook | None = None,
        num_snapshots: int = 0,
    ) -> None:
        self.layout = layout
        self.pools = tuple(BlockPool(count) for count in num_blocks)
        self.indexes = tuple(PrefixIndex() for _ in num_blocks)
        self.snapshots = (
            StateSnapshots(num_snapshots)
            if layout.has_state and num_snapshots
            else None
        )
        self.before_evict = before_evict
        self.has_windows = any(shape.window is not None for shape in layout.groups)
        for group, pool in enumerate(self.pools):
            pool.on_evict = lambda block_id, group=group: self._evicted(group, block_id)

    @property
    def blocks_total(self) -> int:
        return sum(pool.num_total for pool in self.pools)

    @property
    def blocks_free(self) -> int:
        """Blocks that can be handed out: free or merely cached."""
        return sum(pool.num_free for pool in self.pools)

    @property
    def blocks_cached(self) -> int:
        return sum(pool.num_cached for pool in self.pools)

    @property
    def blocks_shared(self) -> int:
        return sum(pool.num_shared for pool in self.pools)

    @property
    def blocks_peak(self) -> int:
        return sum(pool.peak_used for pool in self.pools)

    def capacity_tokens(self, chunk: int) -> int:
        """The longest sequence that fits when it has the arenas to itself."""
        low, high = (
            0,
            _LONGEST,
        )  # where all layers have windows only the model's context is a limit
        while low < high:
            middle = (low + high + 1) // 2
            needed = self.layout.blocks_needed(middle, chunk)
            if all(
                count <= pool.num_total
                for count, pool in zip(needed, self.pools, strict=True)
            ):
                low = middle
            else:
                high = middle - 1
        return low

    def new_sequence(self) -> SequenceTables:
        return SequenceTables(tuple(BlockTable() for _ in self.pools))

    def can_grow(self, tables: SequenceTables, num_tokens: int) -> bool:
        """True when every group has the blocks for `num_tokens` tokens of this sequence."""
        return all(
            table.missing(num_tokens) <= pool.num_free
            for table, pool in zip(tables.groups, self.pools, strict=True)
        )

    def grow(self, tables: SequenceTables, num_tokens: int) -> None:
        """Give the sequence room for `num_tokens` tokens; the caller has checked `can_grow`."""
        for table, pool in zip(tables.groups, self.pools, strict=True):
            table.block_ids.extend(pool.allocate(table.missing(num_tokens)))

    def trim_windows(self, tables: SequenceTables, next_position: int) -> None:
        """Free blocks that no query from `next_position` on can see."""
        for shape, table, pool in zip(
            self.layout.groups, tables.groups, self.pools, strict=True
        ):
            if shape.window is not None:
                pool.release(table.drop_before(next_position - shape.window + 1))

    def release(self, tables: SequenceTables) -> None:
        """Give back every block of the sequence."""
        for table, pool in zip(tables.groups, self.pools, strict=True):
            pool.release(table.clear())

    def fork(
        self, tables: SequenceTables, num_tokens: int
    ) -> tuple[SequenceTables, list[BlockCopy]] | None:
        """Tables for a second sequence with the same first `num_tokens` tokens: full blocks are shared, and the last,
        partly filled one is to be copied. None if no block is left for the copies.
        """
        copies, groups = [], []
        partial = num_tokens % BLOCK_TOKENS
        if partial and any(pool.num_free < 1 for pool in self.pools):
            return None
        for group, (table, pool) in enumerate(
            zip(tables.groups, self.pools, strict=True)
        ):
            full = num_tokens // BLOCK_TOKENS - table.start_block
            shared = table.block_ids[:full]
            pool.share(shared)
            block_ids = list(shared)
            if partial:
                block_ids += pool.allocate(1)
                copies.append(BlockCopy(group, table.block_ids[full], block_ids[-1]))
            groups.append(BlockTable(block_ids, table.start_block))
        return SequenceTables(
            tuple(groups), RecurrentState(tables.state.batch, tables.state.row)
        ), copies

    def first_needed(self, group: int, num_blocks: int) -> int:
        """The first block of a group that a sequence of `num_blocks` full blocks still reads."""
        window = self.layout.groups[group].window
        return (
            0
            if window is None
            else max(0, num_blocks * BLOCK_TOKENS - window + 1) // BLOCK_TOKENS
        )

    def longest_prefix(
        self, keys: Sequence[bytes], also_at: Callable[[int, bytes], bool] | None = None
    ) -> int:
        """How many leading blocks can be reused: each group has all that it would still read.

        `also_at(group, key)` says whether a block that is not in the arena can be fetched from elsewhere. A model with
        recurrent layers needs a snapshot of its state at the end.
        """
        longest = self._longest(keys, also_at)
        if not self.layout.has_state:
            return longest
        for count in range(longest, 0, -1):
            if self.snapshots is None:
                break
            if (
                keys[count - 1] in self.snapshots
                and self._longest(keys[:count], also_at) == count
            ):
                return count
        return 0

    def longest_attended(self, keys: Sequence[bytes]) -> int:
        """As `longest_prefix`, without asking for snapshots: where reuse could end if there were one."""
        return self._longest(keys, None)

    def _longest(
        self, keys: Sequence[bytes], also_at: Callable[[int, bytes], bool] | None
    ) -> int:
        runs = []  # for each group and block: how many blocks up to and including it are there in a row
        for group, index in enumerate(self.indexes):
            run, counts = 0, []
            for key in keys:
                there = index.block(key) is not None or (
                    also_at is not None and also_at(group, key)
                )
                run = run + 1 if there else 0
                counts.append(run)
            runs.append(counts)
        for count in range(len(keys), 0, -1):
            if all(
                runs[group][count - 1] >= count - self.first_needed(group, count)
                for group in range(len(runs))
            ):
                return count
        return 0

    def publish(
        self,
        tables: SequenceTables,
        block: int,
        key: bytes,
    ) -> list[tuple[int, int]]:
        """Make block number `block` of a sequence findable under `key`; returns the new `(group, block_id)` pairs."""
        added = []
        for group, (table, pool, index) in enumerate(
            zip(tables.groups, self.pools, self.indexes, strict=True)
        ):
            column = block - table.start_block
            if 0 <= column < len(table.block_ids) and index.add(
                key, table.block_ids[column]
            ):
                pool.keep(table.block_ids[column])
                added.append((group, table.block_ids[column]))
        return added

    def forget_prefixes(self) -> None:
        """Drop every cached prefix; blocks in use stay with their holders."""
        if self.snapshots is not None:
            self.snapshots.clear()
        for pool, index in zip(self.pools, self.indexes, strict=True):
            for block_id in index.block_ids():
                index.remove_block(block_id)
                pool.forget(block_id)

    def check_integrity(self) -> None:
        """Raise AssertionError unless pools and indexes agree."""
        for pool, index in zip(self.pools, self.indexes, strict=True):
            pool.check_integrity()
            for block_id in index.block_ids():
                key = index.key(block_id)
                assert key is not None and index.block(key) == block_id

    def _evicted(self, group: int, block_id: int) -> None:
        key = self.indexes[group].key(block_id)
        if key is not None and self.before_evict is not None:
            self.before_evict(group, block_id, key)
        self.indexes[group].remove_block(block_id)
