"""Block tables, rows and chunks as frames, and back."""

from __future__ import annotations

from collections.abc import Sequence

from rvllm_local.attention.geometry import DecodeRow
from rvllm_local.distributed.frames import Chunk, Table
from rvllm_local.memory.blocks import BlockTable
from rvllm_local.memory.state import RecurrentState
from rvllm_local.memory.tables import SequenceTables


def chunk_frame(
    tables: SequenceTables, position: int, token_ids: Sequence[int], adapter: int
) -> Chunk:
    """Tokens of one sequence as a frame has them."""
    parts = []
    for table in tables.groups:
        parts.append(Table(table.start_block, table.block_ids))
    number = tables.state.number
    return Chunk(tuple(parts), number, position, tuple(token_ids), adapter)


def row_frame(row: DecodeRow) -> Chunk:
    """A decode row as a frame has it: a chunk of one token."""
    return chunk_frame(row.tables, row.position, (row.token_id,), row.adapter)


def tables_of(chunk: Chunk, state: RecurrentState) -> SequenceTables:
    """The block tables of a frame's sequence, with the state that is here."""
    groups = []
    for table in chunk.tables:
        groups.append(BlockTable(table.block_ids, table.start_block))
    return SequenceTables(tuple(groups), state)
