"""Makes rank 0's calls on another rank, in the order in which they came."""

from __future__ import annotations

import mlx.core as mx

from rvllm_local.attention.geometry import DecodeRow, TokenChunk
from rvllm_local.distributed import frames
from rvllm_local.distributed.calls import chunk_of
from rvllm_local.distributed.part_states import PartStates
from rvllm_local.distributed.part_swap import PartSwap
from rvllm_local.engine.runner import ModelRunner
from rvllm_local.engine.startup.open_part import ModelPart
from rvllm_local.memory.disk_cache import BlockStore
from rvllm_local.memory.state import RecurrentState
from rvllm_local.memory.swap import SwapSpace


def ready_frame(part: ModelPart) -> frames.Ready:
    """What all ranks must say alike of their parts."""
    runner = part.runner
    mode = f"{runner.mode}, rows {runner.row_group}"
    for adapter in part.adapters:
        mode += f", adapter {adapter.name} {adapter.fingerprint[:8]}"
    return frames.Ready(part.num_blocks, mode)


class PartServer:
    """One rank's part of the model. Owns no block: rank 0 says which are whose."""

    def __init__(
        self, runner: ModelRunner, space: SwapSpace, store: BlockStore | None = None
    ) -> None:
        self._runner = runner
        self._store = store
        self._states = PartStates()
        self._swap = PartSwap(runner.block_io, space)

    def run(self, call: frames.Call) -> frames.Verdict | None:
        """Make one call. What it computes stays here; rank 0 has computed the same.

        Returns the answer, if rank 0 waits for one.
        """
        if isinstance(call, frames.Decode):
            self._decode(call)
        elif isinstance(call, frames.Prefill):
            self._runner.prefill(self._chunk(call.chunk))
        elif isinstance(call, frames.Score):
            self._runner.score(self._chunk(call.chunk), call.targets, call.num_top)
        elif isinstance(call, frames.CopyBlocks):
            self._runner.block_io.copy_blocks(call.group, call.pairs)
        elif isinstance(call, frames.SwapOut):
            state = self._state(call.state)
            self._swap.put_away(call.sequence, call.block_ids, state)
        elif isinstance(call, frames.SwapIn):
            state = self._state(call.state)
            self._swap.bring_back(call.sequence, call.block_ids, state)
        elif isinstance(call, frames.SwapForget):
            self._swap.forget(call.sequence)
        elif isinstance(call, frames.SpillBlock):
            self._spill(call)
        elif isinstance(call, frames.RestoreBlock):
            return frames.Verdict(self._restore(call))
        else:
            self._states.change(call)
        return None

    def close(self) -> None:
        """Wait until what was spilled is on disk."""
        if self._store is not None:
            self._store.close()

    def _spill(self, call: frames.SpillBlock) -> None:
        if self._store is None or self._store.contains(call.key):
            return
        payload = self._runner.block_io.save_blocks(call.group, [call.block_id])
        self._store.put(call.key, payload)

    def _restore(self, call: frames.RestoreBlock) -> bool:
        """False if this part is not on disk, or damaged."""
        if self._store is None:
            return False
        payload = self._store.get(call.key)
        if payload is None:
            return False
        try:
            self._runner.block_io.load_blocks(call.group, [call.block_id], [payload])
        except ValueError:
            self._store.remove(call.key)
            return False
        return True

    def _decode(self, call: frames.Decode) -> None:
        rows: list[DecodeRow] = []
        for row in call.rows:
            rows += self._chunk(row).rows()
        chunks = [self._chunk(chunk) for chunk in call.chunks]
        mx.eval(self._runner.decode(rows, chunks=chunks))

    def _chunk(self, frame: frames.Chunk) -> TokenChunk:
        return chunk_of(frame, self._state(frame.state))

    def _state(self, number: int) -> RecurrentState:
        """Without recurrent layers nobody says which states have gone: none is kept."""
        if not self._runner.layout.has_state:
            return RecurrentState()
        return self._states.get(number)
