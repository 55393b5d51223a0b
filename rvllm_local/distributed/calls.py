"""Block tables, rows and chunks as frames, and back."""

from __future__ import annotations

from collections.abc import Sequence

from rvllm_local.attention.geometry import ChunkRows, DecodeRow
from rvllm_local.distributed.frames import Chunk, Table
from rvllm_local.memory.blocks import BlockTable
from rvllm_local.memory.tables import SequenceTables


def chunk_frame(
    tables: SequenceTables, position: int, token_ids: Sequence[int]
) -> Chunk:
    """Tokens of one sequence as a frame has them."""
    parts = []
    for table in tables.groups:
        parts.append(Table(table.start_block, table.block_ids))
    return Chunk(tuple(parts), position, tuple(token_ids))


def row_frame(row: DecodeRow) -> Chunk:
    """A decode row as a frame has it: a chunk of one token."""
    return chunk_frame(row.tables, row.position, (row.token_id,))


def tables_of(chunk: Chunk) -> SequenceTables:
    """The block tables of a frame's sequence."""
    groups = []
    for table in chunk.tables:
        groups.append(BlockTable(table.block_ids, table.start_block))
    return SequenceTables(tuple(groups))


def row_of(chunk: Chunk) -> DecodeRow:
    """The decode row that a frame of one token stands for."""
    return DecodeRow(tables_of(chunk), chunk.position, chunk.token_ids[0])


def chunk_rows_of(chunk: Chunk) -> ChunkRows:
    """The tokens of a frame as rows of a decode call."""
    return ChunkRows(tables_of(chunk), chunk.position, chunk.token_ids)
