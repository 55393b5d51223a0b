"""Moves a preempted sequence's blocks and state out of memory, and back."""

from __future__ import annotations

from rvllm_local.engine.sequence import Sequence, SwappedState
from rvllm_local.memory.block_io import BlockIO
from rvllm_local.memory.state_record import (
    decode_state,
    encode_state,
    form_of,
)
from rvllm_local.memory.swap import Swapped, SwapSpace
from rvllm_local.memory.tables import KVTables

# By group.
SwappedBlocks = tuple[tuple[Swapped, ...], ...]


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
        self._swap_out_state(sequence)
        sequence.swapped = tuple(saved)

    def _swap_out_state(self, sequence: Sequence) -> None:
        arrays = sequence.tables.state.arrays
        if not arrays:
            return
        record = b"".join(encode_state(arrays))
        (saved,) = self._space.write([record])
        sequence.swapped_state = SwappedState(saved, form_of(arrays))
        sequence.tables.state.put(())

    def _swap_in_state(self, sequence: Sequence) -> None:
        swapped = sequence.swapped_state
        if swapped is not None:
            record = self._space.read(swapped.record)
            sequence.tables.state.put(decode_state(record, swapped.form))

    def swap_in(self, sequence: Sequence) -> None:
        """Give it blocks again, with the content that they had."""
        assert sequence.swapped is not None
        for group, table in enumerate(sequence.tables.groups):
            count = len(sequence.swapped[group])
            table.block_ids.extend(self._kv.pools[group].allocate(count))
        self._load(sequence, sequence.swapped)
        self._swap_in_state(sequence)
        # Not before: if a part could not be read, all are freed as the sequence ends.
        self.forget(sequence)

    def _load(self, sequence: Sequence, swapped: SwappedBlocks) -> None:
        """Write what was saved into the blocks that the sequence has now."""
        for group, table in enumerate(sequence.tables.groups):
            payloads = [self._space.read(part) for part in swapped[group]]
            self._io.load_blocks(group, table.block_ids, payloads)

    def forget(self, sequence: Sequence) -> None:
        """Free what was saved of a sequence."""
        for saved in sequence.swapped or ():
            self._space.free(saved)
        if sequence.swapped_state is not None:
            self._space.free([sequence.swapped_state.record])
        sequence.swapped = None
        sequence.swapped_state = None

    def close(self) -> None:
        self._space.close()
