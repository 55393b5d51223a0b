"""Moves a preempted sequence's blocks out of the arenas, and back."""

from __future__ import annotations

from rvllm_local.engine.sequence import Sequence
from rvllm_local.memory.block_io import BlockIO
from rvllm_local.memory.swap import SwapSpace
from rvllm_local.memory.tables import KVTables


class Swapper:
    """The engine's one user of the swap space."""

    def __init__(
        self,
        kv: KVTables,
        io: BlockIO,
        space: SwapSpace,
    ) -> None:
        self._kv = kv
        self._io = io
        self._space = space

    @property
    def num_blocks(self) -> int:
        return self._space.num_blocks

    def swap_out(self, sequence: Sequence) -> None:
        """Save its blocks and give them back; each table keeps its place."""
        saved = []
        for group, table in enumerate(sequence.tables.groups):
            payloads = self._io.save_blocks(group, table.block_ids)
            swapped = self._space.write(payloads)
            saved.append(tuple(swapped))
        self._kv.release(sequence.tables)
        sequence.tables.state.detach()
        sequence.swapped = tuple(saved)

    def swap_in(self, sequence: Sequence) -> None:
        """Give it blocks again, with the content that they had."""
        assert sequence.swapped is not None
        for group, table in enumerate(sequence.tables.groups):
            saved = sequence.swapped[group]
            block_ids = self._kv.pools[group].allocate(len(saved))
            table.block_ids.extend(block_ids)
            payloads = [self._space.read(part) for part in saved]
            self._io.load_blocks(group, table.block_ids, payloads)
        # Not before: if a part could not be read, all are freed as the sequence ends.
        self.forget(sequence)

    def forget(self, sequence: Sequence) -> None:
        """Free what was saved of a sequence."""
        for saved in sequence.swapped or ():
            self._space.free(saved)
        sequence.swapped = None

    def close(self) -> None:
        self._space.close()
