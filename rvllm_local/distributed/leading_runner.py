"""Rank 0's calls: each is told to the other ranks, and then made here as well."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

import mlx.core as mx

from rvllm_local.attention.geometry import ChunkRows, DecodeRow
from rvllm_local.distributed import frames
from rvllm_local.distributed.calls import chunk_frame, row_frame
from rvllm_local.engine.runner import ModelRunner
from rvllm_local.engine.sampling.logprobs import TargetLogprobs
from rvllm_local.engine.sampling.sampler import RowSampling, SampledTokens, Tokens
from rvllm_local.engine.sequence import Sequence as EngineSequence
from rvllm_local.engine.swapper import SwappedBlocks, Swapper
from rvllm_local.memory.block_io import BlockIO
from rvllm_local.memory.state import RecurrentState, StateWatcher
from rvllm_local.memory.swap import SwapSpace
from rvllm_local.memory.tables import KVTables, SequenceTables

# Tells all ranks of a call. The call has to be made within the block: one that fails
# there has left the ranks at different points, and ends the job.
Together = Callable[[frames.Call], AbstractContextManager[None]]


def _alone(_call: frames.Call) -> AbstractContextManager[None]:
    """At the start all ranks make the same calls without being told."""
    return contextlib.nullcontext()


class LeadingRunner(ModelRunner):
    """Makes a call with all ranks, and draws its tokens alone.

    The others learn a token with the next call, so that no step is in flight while
    another one is described.
    """

    _together: Together = staticmethod(_alone)

    def lead(self, together: Together) -> None:
        """From now on tell the other ranks of each call."""
        self._together = together

    @property
    def overlaps(self) -> bool:
        """Never: a token has to be on the host before it can be told."""
        return False

    @property
    def block_io(self) -> BlockIO:
        """Copies blocks on all ranks; saves and loads those of this one."""
        return LeadingBlockIO(super().block_io, self._together)

    def prefill(
        self,
        tables: SequenceTables,
        position: int,
        token_ids: Sequence[int],
        adapter: int = 0,
    ) -> None:
        """As `ModelRunner.prefill`, on all ranks."""
        call = frames.Prefill(chunk_frame(tables, position, token_ids, adapter))
        with self._together(call):
            super().prefill(tables, position, token_ids, adapter)

    def score(
        self,
        tables: SequenceTables,
        position: int,
        token_ids: Sequence[int],
        targets: Sequence[int],
        num_top: int,
        adapter: int = 0,
    ) -> list[TargetLogprobs]:
        """As `ModelRunner.score`, on all ranks."""
        chunk = chunk_frame(tables, position, token_ids, adapter)
        call = frames.Score(chunk, tuple(targets), num_top)
        with self._together(call):
            return super().score(tables, position, token_ids, targets, num_top, adapter)

    def sample(
        self,
        rows: Sequence[DecodeRow],
        samplings: Sequence[RowSampling] | None,
        previous: Tokens | None,
        chunks: Sequence[ChunkRows] = (),
    ) -> SampledTokens:
        """As `ModelRunner.sample`; the logits are computed on all ranks."""
        row_frames = [row_frame(row) for row in rows]
        chunk_frames = []
        for chunk in chunks:
            frame = chunk_frame(
                chunk.tables, chunk.position, chunk.token_ids, chunk.adapter
            )
            chunk_frames.append(frame)
        call = frames.Decode(tuple(row_frames), tuple(chunk_frames))
        with self._together(call):
            sampled = super().sample(rows, samplings, previous, chunks)
            if isinstance(sampled.tokens, mx.array):
                mx.eval(sampled.tokens)
            return sampled


class LeadingBlockIO:
    """Moves blocks of this rank's arenas; what is copied is copied on all ranks."""

    def __init__(self, block_io: BlockIO, together: Together) -> None:
        self._block_io = block_io
        self._together = together

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
        with self._together(frames.CopyBlocks(group, tuple(pairs))):
            self._block_io.copy_blocks(group, pairs)


class LeadingSwapper(Swapper):
    """Moves preempted sequences out and back on all ranks; each keeps its part."""

    def __init__(
        self, kv: KVTables, io: BlockIO, space: SwapSpace, together: Together
    ) -> None:
        super().__init__(kv, io, space)
        self._together = together

    def swap_out(self, sequence: EngineSequence) -> None:
        """As `Swapper.swap_out`, on all ranks."""
        number = sequence.tables.state.number
        call = frames.SwapOut(sequence.order, number, _block_ids(sequence))
        with self._together(call):
            super().swap_out(sequence)

    def _load(self, sequence: EngineSequence, swapped: SwappedBlocks) -> None:
        number = sequence.tables.state.number
        call = frames.SwapIn(sequence.order, number, _block_ids(sequence))
        with self._together(call):
            super()._load(sequence, swapped)

    def forget(self, sequence: EngineSequence) -> None:
        """As `Swapper.forget`, on all ranks."""
        if sequence.swapped is None:
            return
        with self._together(frames.SwapForget(sequence.order)):
            super().forget(sequence)


class LeadingStates(StateWatcher):
    """Has all ranks do to their states what is done to those of this one."""

    def __init__(self, tell: Callable[[frames.Frame], None]) -> None:
        self._tell = tell

    def forked(self, source: RecurrentState, fork: RecurrentState) -> None:
        """Tell of a fork."""
        self._tell(frames.StateFork(source.number, fork.number))

    def cleared(self, state: RecurrentState) -> None:
        """Tell that the state is empty."""
        self._tell(frames.StateClear(state.number))

    def resumed(self, state: RecurrentState, key: bytes) -> None:
        """Tell which snapshot the state is now."""
        self._tell(frames.StateResume(state.number, key))

    def kept(self, key: bytes, state: RecurrentState) -> None:
        """Tell of a new snapshot."""
        self._tell(frames.SnapshotKeep(key, state.number))

    def dropped(self, key: bytes) -> None:
        """Tell of a snapshot that has gone."""
        self._tell(frames.SnapshotDrop(key))


def _block_ids(sequence: EngineSequence) -> tuple[list[int], ...]:
    """A copy: giving the blocks back empties the tables' own lists."""
    return tuple(list(table.block_ids) for table in sequence.tables.groups)
