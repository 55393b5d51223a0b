"""Puts one rank's part of a preempted sequence away, and brings it back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rvllm_local.memory.block_io import BlockIO
from rvllm_local.memory.state import RecurrentState
from rvllm_local.memory.state_record import (
    StateForm,
    decode_state,
    encode_state,
    form_of,
)
from rvllm_local.memory.swap import Swapped, SwapSpace


@dataclass(frozen=True, slots=True)
class _Kept:
    """The blocks of each group, then the state: no record if it is empty."""

    blocks: list[list[Swapped]]
    record: list[Swapped]
    form: StateForm


class PartSwap:
    """What was put away, by the sequence's number."""

    def __init__(self, block_io: BlockIO, space: SwapSpace) -> None:
        self._block_io = block_io
        self._space = space
        self._kept: dict[int, _Kept] = {}

    def put_away(
        self, sequence: int, block_ids: Sequence[Sequence[int]], state: RecurrentState
    ) -> None:
        """Keep the content of a sequence's blocks, by group, and its state."""
        blocks = []
        for group, group_ids in enumerate(block_ids):
            payloads = self._block_io.save_blocks(group, group_ids)
            blocks.append(self._space.write(payloads))
        arrays = state.arrays
        record: list[Swapped] = []
        if arrays:
            record = self._space.write([b"".join(encode_state(arrays))])
            state.put(())
        self._kept[sequence] = _Kept(blocks, record, form_of(arrays))

    def bring_back(
        self, sequence: int, block_ids: Sequence[Sequence[int]], state: RecurrentState
    ) -> None:
        """Write what was kept into these blocks, and into the state."""
        kept = self._kept[sequence]
        for group, group_ids in enumerate(block_ids):
            payloads = [self._space.read(part) for part in kept.blocks[group]]
            self._block_io.load_blocks(group, group_ids, payloads)
        for part in kept.record:
            state.put(decode_state(self._space.read(part), kept.form))

    def forget(self, sequence: int) -> None:
        """Drop what was kept of a sequence."""
        kept = self._kept.pop(sequence)
        for saved in (*kept.blocks, kept.record):
            self._space.free(saved)
