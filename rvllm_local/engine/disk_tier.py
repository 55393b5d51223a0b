"""Moves blocks between the arenas and the disk: spills them, and restores them.

Works on single blocks, states and their keys; knows no sequence.
"""

from __future__ import annotations

import hashlib
import time
from collections import OrderedDict
from collections.abc import Iterable

from rvllm_local.engine.disk_reader import DiskReader
from rvllm_local.engine.state_tier import StateTier
from rvllm_local.memory.block_io import BlockIO
from rvllm_local.memory.disk_cache import BlockStore
from rvllm_local.memory.state import Arrays
from rvllm_local.memory.state_record import StateForm
from rvllm_local.memory.tables import KVTables

_SPILL_BATCH = 8  # blocks that an idle step writes out
_CLOSE_S = 5.0
_FLUSH_S = 0.5
_WAIT_S = 0.01  # commands of other threads wait as long


class DiskTier:
    """The engine's one user of the block store. Without a store it holds nothing."""

    def __init__(
        self,
        kv: KVTables,
        io: BlockIO,
        store: BlockStore | None,
        form: StateForm = (),
    ) -> None:
        """`form` is that of the recurrent layers' states, if there are any."""
        self._kv = kv
        self._io = io
        self.store = store
        self._reader: DiskReader | None = None
        self.states: StateTier | None = None
        # Without attention a block only counts tokens, and has no content to keep.
        self._has_content = kv.layout.has_attention
        if store is not None:
            self._reader = DiskReader(store)
            if kv.snapshots is not None:
                self.states = StateTier(kv.snapshots, store, self._reader, form)
        # Keys of cached blocks that idle steps write out, by group and block id.
        self._unspilled: OrderedDict[tuple[int, int], bytes] = OrderedDict()
        kv.before_evict = self._before_evict

    @property
    def num_spilled_blocks(self) -> int:
        if self.store is None:
            return 0
        return self.store.stats().blocks

    @property
    def has_idle_work(self) -> bool:
        if self.states is not None and self.states.has_idle_work:
            return True
        return bool(self._unspilled)

    @property
    def _num_unspilled(self) -> int:
        count = len(self._unspilled)
        if self.states is not None:
            count += self.states.num_unspilled
        return count

    def note_cached(self, blocks: Iterable[tuple[int, int]], key: bytes) -> None:
        """These blocks, by group and id, were cached; idle steps write them out."""
        if self.store is None or not self._has_content:
            return
        for block in blocks:
            self._unspilled[block] = key

    def contains(self, group: int, key: bytes) -> bool:
        if self.store is None:
            return False
        if not self._has_content:
            return True
        return self.store.contains(key_on_disk(group, key))

    def contains_state(self, key: bytes) -> bool:
        """The state after the block of this key is on disk."""
        return self.states is not None and self.states.contains(key)

    def is_state_read(self, key: bytes) -> bool:
        """The state after this block was read; if not, it is being read now."""
        assert self.states is not None
        return self.states.is_read(key)

    def take_state(self, key: bytes) -> Arrays | None:
        """A state that was read; None if its record was no good."""
        if self.states is None:
            return None
        return self.states.take(key)

    def can_restore(self, groups: Iterable[int], key: bytes) -> bool:
        """Each group has room for its block of this key, and the block is on disk."""
        if self.store is None:
            return False
        for group in groups:
            if self._kv.pools[group].num_free == 0:
                return False
            if not self.contains(group, key):
                return False
        return True

    def is_read(self, groups: Iterable[int], key: bytes) -> bool:
        """The groups' blocks of this key were read; if not, they are being read now."""
        assert self._reader is not None
        if not self._has_content:
            return True
        are_read = True
        for group in groups:
            stored_key = key_on_disk(group, key)
            if not self._reader.has(stored_key):
                self._reader.request(stored_key)
                are_read = False
        return are_read

    def read_ahead(self, keys: Iterable[bytes]) -> None:
        """Have the blocks of these keys read, where they are on disk alone."""
        if self.store is None or not self._has_content:
            return
        for key in keys:
            for group, index in enumerate(self._kv.indexes):
                if index.block(key) is not None:
                    continue
                if self.contains(group, key):
                    self.is_read([group], key)

    def wait(self) -> None:
        """Nothing else can be done: wait a little for a block that is being read."""
        if self._reader is not None:
            self._reader.wait(_WAIT_S)

    def restore(self, group: int, key: bytes) -> int | None:
        """Put a block that `is_read` into the arena and index it.

        Returns its id; None if there is no room, or the file was no good.
        """
        assert self._reader is not None
        pool = self._kv.pools[group]
        payload = None
        if self._has_content:
            payload = self._reader.take(key_on_disk(group, key))
            if payload is None:
                return None
        if pool.num_free == 0:
            return None
        block = pool.allocate(1)[0]
        if payload is not None and not self._load(group, block, key, payload):
            pool.release([block])
            return None
        if self._kv.indexes[group].add(key, block):
            pool.keep(block)
        return block

    def _load(
        self, group: int, block: int, key: bytes, payload: bytes | bytearray
    ) -> bool:
        """Write a content into a block. False if it is of no use."""
        try:
            self._io.load_blocks(group, [block], [payload])
        except ValueError:
            return False
        return True

    def idle(self) -> None:
        """Write a few cached blocks, or a state, out."""
        assert self.store is not None
        if not self.store.stats().enabled:
            self.forget()
        # Blocks first: a state is of no use without those before it.
        if self.states is not None and not self._unspilled:
            if self.states.has_idle_work:
                self.states.idle()
            return
        for _ in range(min(_SPILL_BATCH, len(self._unspilled))):
            oldest = next(iter(self._unspilled))
            key = self._unspilled[oldest]
            group, block_id = oldest
            index = self._kv.indexes[group]
            is_still_cached = index.key(block_id) == key
            if is_still_cached and not self._spill(group, block_id, key):
                return
            del self._unspilled[oldest]

    def _before_evict(
        self,
        group: int,
        block_id: int,
        key: bytes,
    ) -> None:
        self._spill(group, block_id, key)

    def _spill(
        self,
        group: int,
        block_id: int,
        key: bytes,
    ) -> bool:
        """Hand a block to the store. False when the store's queue is full."""
        if self.store is None or self.contains(group, key):
            return True
        stored_key = key_on_disk(group, key)
        payload = self._io.save_blocks(group, [block_id])
        return self.store.put(stored_key, payload)

    def forget(self) -> None:
        """Write nothing out of what is in the arenas now."""
        self._unspilled.clear()
        if self.states is not None:
            self.states.forget()

    def close(self) -> None:
        """Write out what is cached, as far as the store takes it."""
        if self.store is None or self._reader is None:
            return
        self._reader.close()
        deadline = time.monotonic() + _CLOSE_S
        while self.has_idle_work and time.monotonic() < deadline:
            before = self._num_unspilled
            self.idle()
            if self._num_unspilled == before:
                self.store.flush(_FLUSH_S)
        self.store.close()


def key_on_disk(group: int, key: bytes) -> bytes:
    """The key of one group's block in the store."""
    if group == 0:
        return key
    group_byte = bytes([group % 256])
    digest = hashlib.blake2b(group_byte, key=key, digest_size=len(key))
    return digest.digest()
