"""Rank 0's blocks on disk: each rank keeps its part, and all must have theirs."""

from __future__ import annotations

from rvllm_local.distributed import frames
from rvllm_local.distributed.other_ranks import OtherRanks
from rvllm_local.engine.disk_tier import DiskTier, key_on_disk
from rvllm_local.memory.block_io import BlockIO
from rvllm_local.memory.disk_cache import BlockStore
from rvllm_local.memory.state_record import StateForm
from rvllm_local.memory.tables import KVTables


class LeadingDiskTier(DiskTier):
    """Has all ranks write and read their parts of a block.

    Rank 0's store says which blocks there are. What another rank cannot read is
    forgotten here, so that it is computed again.
    """

    def __init__(
        self,
        kv: KVTables,
        io: BlockIO,
        store: BlockStore | None,
        form: StateForm,
        ranks: OtherRanks,
    ) -> None:
        super().__init__(kv, io, store, form)
        self._ranks = ranks

    def _spill(self, group: int, block_id: int, key: bytes) -> bool:
        if not super()._spill(group, block_id, key):
            return False
        if self.store is None:
            return True
        # Even where this rank has the block, another one may have lost it.
        self._ranks.tell(frames.SpillBlock(group, block_id, key_on_disk(group, key)))
        return True

    def _load(
        self, group: int, block: int, key: bytes, payload: bytes | bytearray
    ) -> bool:
        if not super()._load(group, block, key, payload):
            return False
        stored_key = key_on_disk(group, key)
        if self._ranks.ask(frames.RestoreBlock(group, block, stored_key)):
            return True
        assert self.store is not None
        self.store.remove(stored_key)
        return False
