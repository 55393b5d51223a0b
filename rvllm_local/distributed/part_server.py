"""Makes rank 0's calls on another rank, in the order in which they came."""

from __future__ import annotations

import mlx.core as mx

from rvllm_local.distributed import frames
from rvllm_local.distributed.calls import chunk_rows_of, row_of, tables_of
from rvllm_local.engine.runner import ModelRunner
from rvllm_local.engine.startup.open_part import ModelPart
from rvllm_local.memory.swap import Swapped, SwapSpace


def ready_frame(part: ModelPart) -> frames.Ready:
    """What all ranks must say alike of their parts."""
    runner = part.runner
    return frames.Ready(part.num_blocks, f"{runner.mode}, rows {runner.row_group}")


class PartServer:
    """One rank's part of the model. Owns no block: rank 0 says which are whose."""

    def __init__(self, runner: ModelRunner, space: SwapSpace) -> None:
        self._runner = runner
        self._space = space
        # By the sequence's number, then by group.
        self._swapped: dict[int, list[list[Swapped]]] = {}

    def run(self, call: frames.Call) -> None:
        """Make one call. What it computes stays here; rank 0 has computed the same."""
        if isinstance(call, frames.Decode):
            self._decode(call)
        elif isinstance(call, frames.Prefill):
            chunk = call.chunk
            tables = tables_of(chunk)
            self._runner.prefill(tables, chunk.position, chunk.token_ids)
        elif isinstance(call, frames.Score):
            self._score(call)
        elif isinstance(call, frames.CopyBlocks):
            self._runner.block_io.copy_blocks(call.group, call.pairs)
        elif isinstance(call, frames.SwapOut):
            self._swap_out(call)
        elif isinstance(call, frames.SwapIn):
            self._swap_in(call)
        else:
            for saved in self._swapped.pop(call.sequence):
                self._space.free(saved)

    def _decode(self, call: frames.Decode) -> None:
        rows = [row_of(chunk) for chunk in call.rows]
        if call.chunks:
            chunks = [chunk_rows_of(chunk) for chunk in call.chunks]
            logits = self._runner.decode_mixed(rows, chunks)
        else:
            logits = self._runner.decode(rows)
        mx.eval(logits)

    def _score(self, call: frames.Score) -> None:
        chunk = call.chunk
        self._runner.score(
            tables_of(chunk),
            chunk.position,
            chunk.token_ids,
            call.targets,
            call.num_top,
        )

    def _swap_out(self, call: frames.SwapOut) -> None:
        kept = []
        for group, block_ids in enumerate(call.block_ids):
            payloads = self._runner.block_io.save_blocks(group, block_ids)
            kept.append(self._space.write(payloads))
        self._swapped[call.sequence] = kept

    def _swap_in(self, call: frames.SwapIn) -> None:
        for group, block_ids in enumerate(call.block_ids):
            saved = self._swapped[call.sequence][group]
            payloads = [self._space.read(part) for part in saved]
            self._runner.block_io.load_blocks(group, block_ids, payloads)
