"""Calls of a runner as frames, and what they are made of back from frames."""

from __future__ import annotations

from rvllm_local.attention.geometry import DecodeRow, TokenChunk
from rvllm_local.distributed import frames
from rvllm_local.engine.call_hook import PrefillCall, RunnerCall, ScoreCall
from rvllm_local.memory.blocks import BlockTable
from rvllm_local.memory.state import RecurrentState
from rvllm_local.memory.tables import SequenceTables


def call_frame(call: RunnerCall) -> frames.Call:
    """What another rank needs to make the same call."""
    if isinstance(call, PrefillCall):
        return frames.Prefill(_chunk_frame(call.chunk))
    if isinstance(call, ScoreCall):
        chunk = _chunk_frame(call.chunk)
        return frames.Score(chunk, tuple(call.targets), call.num_top)
    rows = [_row_frame(row) for row in call.rows]
    chunks = [_chunk_frame(chunk) for chunk in call.chunks]
    return frames.Decode(tuple(rows), tuple(chunks))


def _chunk_frame(chunk: TokenChunk) -> frames.Chunk:
    tables = []
    for table in chunk.tables.groups:
        tables.append(frames.Table(table.start_block, table.block_ids))
    return frames.Chunk(
        tuple(tables),
        chunk.tables.state.number,
        chunk.position,
        tuple(chunk.token_ids),
        chunk.adapter,
    )


def _row_frame(row: DecodeRow) -> frames.Chunk:
    """A chunk of one token."""
    chunk = TokenChunk(row.tables, row.position, (row.token_id,), row.adapter)
    return _chunk_frame(chunk)


def chunk_of(frame: frames.Chunk, state: RecurrentState) -> TokenChunk:
    """A frame's tokens, with the state of their sequence that is here."""
    tables = []
    for table in frame.tables:
        tables.append(BlockTable(table.block_ids, table.start_block))
    return TokenChunk(
        SequenceTables(tuple(tables), state),
        frame.position,
        frame.token_ids,
        frame.adapter,
    )
