"""Brings a whole prefix back from arena and disk: its blocks, and the state at its end.

For layouts whose prefixes cannot grow block by block: sliding windows, which need the
blocks of a window at once, and recurrent layers, which need a state.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from collections.abc import Sequence as Keys

from rvllm_local.engine.disk_tier import DiskTier
from rvllm_local.memory.state import Arrays
from rvllm_local.memory.tables import KVTables, SequenceTables

_READ_AHEAD = 16  # blocks that are read at once: a step goes by for each wait
_Waits = Generator[None, None, bool]


class PrefixRestorer:
    """Fills an empty sequence's tables with the longest prefix there is."""

    def __init__(
        self,
        kv: KVTables,
        disk: DiskTier,
        is_time_up: Callable[[], bool],
    ) -> None:
        """`is_time_up` says whether the step has read for long enough."""
        self._kv = kv
        self._disk = disk
        self._is_time_up = is_time_up

    def longest(self, keys: Keys[bytes]) -> int:
        """How many leading blocks arena and disk have together."""
        if self._disk.store is None:
            return self._kv.longest_prefix(keys)
        return self._kv.longest_prefix(
            keys, self._disk.contains, self._disk.contains_state
        )

    def restore(
        self,
        tables: SequenceTables,
        keys: Keys[bytes],
    ) -> Generator[None, None, int]:
        """Restore the longest prefix; returns its blocks.

        Yields while something is being read, and when the step's time is up. What
        turns out to be damaged is forgotten by the disk, so that a shorter prefix is
        tried.
        """
        before = len(keys) + 1
        while 0 < (count := self.longest(keys)) < before:
            if (yield from self._restore_prefix(tables, keys[:count])):
                return count
            self._kv.release(tables)
            for table in tables.groups:
                table.start_block = 0
            self._kv.clear_state(tables)
            before = count
        return 0

    def _restore_prefix(self, tables: SequenceTables, keys: Keys[bytes]) -> _Waits:
        """The state first: without it no block is of use."""
        if self._kv.layout.has_state:
            state = yield from self._restore_state(keys[-1])
            if state is None:
                return False
            tables.state.put(state)
        for group in range(len(tables.groups)):
            if not (yield from self._restore_group(tables, group, keys)):
                return False
        return True

    def _restore_state(self, key: bytes) -> Generator[None, None, Arrays | None]:
        snapshots = self._kv.snapshots
        if snapshots is not None and key in snapshots:
            return snapshots.get(key)
        while self._disk.contains_state(key) and not self._disk.is_state_read(key):
            yield
        return self._disk.take_state(key)

    def _restore_group(
        self,
        tables: SequenceTables,
        group: int,
        keys: Keys[bytes],
    ) -> _Waits:
        table = tables.groups[group]
        count = len(keys)
        table.start_block = self._kv.first_needed(group, count)
        for block in range(table.start_block, count):
            key = keys[block]
            while self._is_being_read(group, key):
                end = min(block + _READ_AHEAD, count)
                self._disk.read_ahead(keys[block + 1 : end])
                yield
            block_id = self._fetch(group, key)
            if block_id is None:
                return False
            table.block_ids.append(block_id)
            if self._is_time_up():
                yield
        return True

    def _is_being_read(self, group: int, key: bytes) -> bool:
        """The block is on disk alone, and was not read yet."""
        if self._kv.indexes[group].block(key) is not None:
            return False
        if not self._disk.can_restore([group], key):
            return False
        return not self._disk.is_read([group], key)

    def _fetch(self, group: int, key: bytes) -> int | None:
        """A block of this key, shared in the arena or restored; None without any."""
        block_id = self._kv.indexes[group].block(key)
        if block_id is not None:
            self._kv.pools[group].share([block_id])
            return block_id
        if not self._disk.can_restore([group], key):
            return None
        return self._disk.restore(group, key)
