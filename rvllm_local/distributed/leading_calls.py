"""Rank 0's calls: each is told to the other ranks, and then made here as well."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager

from rvllm_local.distributed import frames
from rvllm_local.distributed.calls import call_frame
from rvllm_local.distributed.other_ranks import OtherRanks
from rvllm_local.engine.call_hook import RunnerCall
from rvllm_local.engine.sequence import Sequence as EngineSequence
from rvllm_local.engine.swapper import SwappedBlocks, Swapper
from rvllm_local.memory.block_io import BlockIO
from rvllm_local.memory.state import RecurrentState, StateWatcher
from rvllm_local.memory.swap import SwapSpace
from rvllm_local.memory.tables import KVTables


class LeadingCalls:
    """Hook of rank 0's runner: all ranks make its calls, and it draws the tokens alone.

    The others learn a token with the next call, so that no step is in flight while
    another one is described.
    """

    overlaps = False

    def __init__(self, ranks: OtherRanks) -> None:
        self._ranks = ranks

    def around(self, call: RunnerCall) -> AbstractContextManager[None]:
        """Tell of the call; all ranks make it."""
        return self._ranks.together(call_frame(call))


class LeadingBlockIO:
    """Moves blocks of this rank's arenas; what is copied is copied on all ranks."""

    def __init__(self, block_io: BlockIO, ranks: OtherRanks) -> None:
        self._block_io = block_io
        self._ranks = ranks

    def save_blocks(self, group: int, block_ids: Sequence[int]) -> list[bytes]:
        """The content of each block, as this rank has it."""
        return self._block_io.save_blocks(group, block_ids)

    def load_blocks(
        self,
        group: int,
        block_ids: Sequence[int],
        payloads: Sequence[bytes | bytearray],
    ) -> None:
        """Write contents into this rank's blocks."""
        self._block_io.load_blocks(group, block_ids, payloads)

    def copy_blocks(self, group: int, pairs: Sequence[tuple[int, int]]) -> None:
        """Copy blocks on all ranks, `(source, destination)` each."""
        with self._ranks.together(frames.CopyBlocks(group, tuple(pairs))):
            self._block_io.copy_blocks(group, pairs)


class LeadingSwapper(Swapper):
    """Moves preempted sequences out and back on all ranks; each keeps its part."""

    def __init__(
        self, kv: KVTables, io: BlockIO, space: SwapSpace, ranks: OtherRanks
    ) -> None:
        super().__init__(kv, io, space)
        self._ranks = ranks

    def swap_out(self, sequence: EngineSequence) -> None:
        """As `Swapper.swap_out`, on all ranks."""
        number = sequence.tables.state.number
        call = frames.SwapOut(sequence.order, number, _block_ids(sequence))
        with self._ranks.together(call):
            super().swap_out(sequence)

    def _load(self, sequence: EngineSequence, swapped: SwappedBlocks) -> None:
        number = sequence.tables.state.number
        call = frames.SwapIn(sequence.order, number, _block_ids(sequence))
        with self._ranks.together(call):
            super()._load(sequence, swapped)

    def forget(self, sequence: EngineSequence) -> None:
        """As `Swapper.forget`, on all ranks."""
        if sequence.swapped is None:
            return
        with self._ranks.together(frames.SwapForget(sequence.order)):
            super().forget(sequence)


class LeadingStates(StateWatcher):
    """Has all ranks do to their states what is done to those of this one."""

    def __init__(self, ranks: OtherRanks) -> None:
        self._ranks = ranks

    def forked(self, source: RecurrentState, fork: RecurrentState) -> None:
        """Tell of a fork."""
        self._ranks.tell(frames.StateFork(source.number, fork.number))

    def cleared(self, state: RecurrentState) -> None:
        """Tell that the state is empty."""
        self._ranks.tell(frames.StateClear(state.number))

    def resumed(self, state: RecurrentState, key: bytes) -> None:
        """Tell which snapshot the state is now."""
        self._ranks.tell(frames.StateResume(state.number, key))

    def kept(self, key: bytes, state: RecurrentState) -> None:
        """Tell of a new snapshot."""
        self._ranks.tell(frames.SnapshotKeep(key, state.number))

    def dropped(self, key: bytes) -> None:
        """Tell of a snapshot that has gone."""
        self._ranks.tell(frames.SnapshotDrop(key))


def _block_ids(sequence: EngineSequence) -> tuple[list[int], ...]:
    """A copy: giving the blocks back empties the tables' own lists."""
    return tuple(list(table.block_ids) for table in sequence.tables.groups)
