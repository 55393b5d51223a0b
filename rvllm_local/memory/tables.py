"""A sequence's block tables, the pools behind them and the index of cached prefixes.

Only here blocks are taken for a sequence, shared between sequences and given back.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from rvllm_local.memory.blocks import BLOCK_TOKENS, BlockPool, BlockTable
from rvllm_local.memory.layout import KVLayout
from rvllm_local.memory.prefix import PrefixIndex
from rvllm_local.memory.state import RecurrentState, StateSnapshots, StateWatcher

EvictionHook = Callable[[int, int, bytes], None]
_LONGEST = 2**40  # tokens


@dataclass(frozen=True, slots=True)
class SequenceTables:
    """The block tables of one sequence, and the state of its recurrent layers."""

    groups: tuple[BlockTable, ...]  # in the layout's order
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

    `before_evict(group, block_id, key)` is called while an evicted block still has its
    content.
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
        self.snapshots: StateSnapshots | None = None
        if layout.has_state and num_snapshots:
            self.snapshots = StateSnapshots(num_snapshots)
        self.before_evict = before_evict
        self._state_watcher = StateWatcher()
        self._state_numbers = itertools.count(1)
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
        # Where all layers have windows only the model's context is a limit.
        low = 0
        high = _LONGEST
        while low < high:
            middle = (low + high + 1) // 2
            if self._can_hold(middle, chunk):
                low = middle
            else:
                high = middle - 1
        return low

    def _can_hold(self, num_tokens: int, chunk: int) -> bool:
        """True if one sequence of so many tokens fits into the arenas."""
        needed = self.layout.blocks_needed(num_tokens, chunk)
        for count, pool in zip(needed, self.pools, strict=True):
            if count > pool.num_total:
                return False
        return True

    def new_sequence(self) -> SequenceTables:
        """Empty tables."""
        groups = tuple([BlockTable() for _ in self.pools])
        state = RecurrentState(number=next(self._state_numbers))
        return SequenceTables(groups, state)

    def watch_states(self, watcher: StateWatcher) -> None:
        """From now on tell the watcher of what happens to states."""
        self._state_watcher = watcher
        if self.snapshots is not None:
            self.snapshots.watcher = watcher

    def clear_state(self, tables: SequenceTables) -> None:
        """Leave the sequence without a state."""
        tables.state.put(())
        self._state_watcher.cleared(tables.state)

    def resume_state(self, tables: SequenceTables, key: bytes) -> None:
        """Give the sequence the snapshot of this key, if the model has states."""
        if self.snapshots is not None:
            tables.state.put(self.snapshots.get(key))
            self._state_watcher.resumed(tables.state, key)

    def can_grow(self, tables: SequenceTables, num_tokens: int) -> bool:
        """True if every group has the blocks for `num_tokens` tokens of this sequence."""
        for table, pool in zip(tables.groups, self.pools, strict=True):
            if table.missing(num_tokens) > pool.num_free:
                return False
        return True

    def grow(self, tables: SequenceTables, num_tokens: int) -> None:
        """Give the sequence room for `num_tokens` tokens.

        The caller has checked `can_grow`.
        """
        for table, pool in zip(tables.groups, self.pools, strict=True):
            count = table.missing(num_tokens)
            table.block_ids.extend(pool.allocate(count))

    def trim_windows(self, tables: SequenceTables, next_position: int) -> None:
        """Free blocks that no query from `next_position` on can see."""
        shapes = self.layout.groups
        for shape, table, pool in zip(shapes, tables.groups, self.pools, strict=True):
            if shape.window is None:
                continue
            first_seen = next_position - shape.window + 1
            pool.release(table.drop_before(first_seen))

    def release(self, tables: SequenceTables) -> None:
        """Give back every block of the sequence."""
        for table, pool in zip(tables.groups, self.pools, strict=True):
            pool.release(table.clear())

    def fork(
        self,
        tables: SequenceTables,
        num_tokens: int,
    ) -> tuple[SequenceTables, list[BlockCopy]] | None:
        """Tables for a second sequence with the same first `num_tokens` tokens.

        Full blocks are shared. The last, partly filled one is to be copied. None if no
        block is left for the copies.
        """
        full_blocks, partial = divmod(num_tokens, BLOCK_TOKENS)
        if partial and any(pool.num_free < 1 for pool in self.pools):
            return None
        copies = []
        groups = []
        for group, pool in enumerate(self.pools):
            table = tables.groups[group]
            num_shared = full_blocks - table.start_block
            block_ids = table.block_ids[:num_shared]
            pool.share(block_ids)
            if partial:
                source = table.block_ids[num_shared]
                destination = pool.allocate(1)[0]
                block_ids.append(destination)
                copies.append(BlockCopy(group, source, destination))
            groups.append(BlockTable(block_ids, table.start_block))
        number = next(self._state_numbers)
        state = RecurrentState(tables.state.batch, tables.state.row, number)
        self._state_watcher.forked(tables.state, state)
        return SequenceTables(tuple(groups), state), copies

    def first_needed(self, group: int, num_blocks: int) -> int:
        """The first block of a group that a sequence of so many full blocks reads."""
        window = self.layout.groups[group].window
        if window is None:
            return 0
        first_seen = num_blocks * BLOCK_TOKENS - window + 1
        return max(0, first_seen) // BLOCK_TOKENS

    def longest_prefix(
        self,
        keys: Sequence[bytes],
        also_at: Callable[[int, bytes], bool] | None = None,
        state_at: Callable[[bytes], bool] | None = None,
    ) -> int:
        """How many leading blocks can be reused: each group has all that it would read.

        `also_at(group, key)` says whether a block that is not in the arena can be
        fetched from elsewhere, `state_at(key)` whether the state after a block can. A
        model with recurrent layers needs a snapshot of its state at the end.
        """
        longest = self._longest(keys, also_at)
        if not self.layout.has_state:
            return longest
        if self.snapshots is None:
            return 0
        for count in range(longest, 0, -1):
            key = keys[count - 1]
            has_state = key in self.snapshots
            if not has_state and state_at is not None:
                has_state = state_at(key)
            if has_state and self._longest(keys[:count], also_at) == count:
                return count
        return 0

    def longest_attended(
        self,
        keys: Sequence[bytes],
        also_at: Callable[[int, bytes], bool] | None = None,
    ) -> int:
        """As `longest_prefix`, but no snapshot is needed at the end."""
        return self._longest(keys, also_at)

    def _longest(
        self,
        keys: Sequence[bytes],
        also_at: Callable[[int, bytes], bool] | None,
    ) -> int:
        # For each group and block: how many blocks there are in a row, up to this one.
        runs: list[list[int]] = []
        for group, index in enumerate(self.indexes):
            run = 0
            counts = []
            for key in keys:
                is_there = index.block(key) is not None
                if not is_there and also_at is not None:
                    is_there = also_at(group, key)
                if is_there:
                    run += 1
                else:
                    run = 0
                counts.append(run)
            runs.append(counts)
        for count in range(len(keys), 0, -1):
            if self._has_all_read(runs, count):
                return count
        return 0

    def _has_all_read(self, runs: Sequence[Sequence[int]], count: int) -> bool:
        """True if each group has the blocks that a prefix of `count` blocks reads."""
        for group, counts in enumerate(runs):
            num_read = count - self.first_needed(group, count)
            if counts[count - 1] < num_read:
                return False
        return True

    def count_held(self, group: int, keys: Sequence[bytes]) -> int:
        """How many blocks of these keys are in the arena and have a holder."""
        pool = self.pools[group]
        index = self.indexes[group]
        count = 0
        for key in keys:
            block_id = index.block(key)
            if block_id is not None and pool.ref_count(block_id) > 0:
                count += 1
        return count

    def publish(
        self,
        tables: SequenceTables,
        block: int,
        key: bytes,
    ) -> list[tuple[int, int]]:
        """Register block number `block` of a sequence under `key`.

        Returns the new `(group, block_id)` pairs.
        """
        added = []
        for group, table in enumerate(tables.groups):
            column = block - table.start_block
            if not 0 <= column < len(table.block_ids):
                continue
            block_id = table.block_ids[column]
            if self.indexes[group].add(key, block_id):
                self.pools[group].keep(block_id)
                added.append((group, block_id))
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
