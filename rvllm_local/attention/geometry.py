"""Which tokens one model call covers, and where their keys and values lie.

Host arithmetic only (numpy); made by the runner for each call, read by the back ends.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from rvllm_local.memory.blocks import BLOCK_TOKENS, SCRATCH_BLOCK, BlockTable
from rvllm_local.memory.layout import KVLayout
from rvllm_local.memory.tables import SequenceTables

IntArray = npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class GroupGeometry:
    """One group's view of a call."""

    window: int | None
    tables: IntArray  # [rows, blocks]
    first_positions: IntArray  # [rows]: of each table's first token
    write_blocks: IntArray  # [rows, query_len]
    write_slots: IntArray  # [rows, query_len]


@dataclass(frozen=True, slots=True)
class CallGeometry:
    """A decode call (`rows` x 1 token) or a prefill call (1 row x a chunk).

    `positions[r]` is the position of row r's first new token. After the call its
    context has `positions[r] + query_len` tokens.
    """

    positions: IntArray  # [rows]
    query_len: int
    groups: tuple[GroupGeometry, ...]

    @property
    def rows(self) -> int:
        return len(self.positions)

    @property
    def context_lens(self) -> IntArray:
        """[rows] tokens in the context, the new ones included."""
        lengths: IntArray = self.positions + np.int32(self.query_len)
        return lengths


class DecodeRow(NamedTuple):
    """The token at `position` of one sequence.

    Its KV is written, its logits are wanted. With `previous_row` the host does not know
    the token yet: it is that row's token of the step before. `adapter` is the number of
    the row's LoRA adapter, 0 for none. A named tuple, since one is made for each token:
    a frozen dataclass takes three times as long.
    """

    tables: SequenceTables
    position: int
    token_id: int
    previous_row: int | None = None
    adapter: int = 0


@dataclass(frozen=True, slots=True)
class TokenChunk:
    """Tokens of one sequence, which stand at `position` and after.

    Their KV is written. `adapter` as in `DecodeRow`.
    """

    tables: SequenceTables
    position: int
    token_ids: Sequence[int]
    adapter: int = 0

    def rows(self) -> list[DecodeRow]:
        """Each token as a row of a decode call."""
        return [
            DecodeRow(self.tables, position, token_id, adapter=self.adapter)
            for position, token_id in enumerate(self.token_ids, start=self.position)
        ]

    def tile(self, start: int, size: int) -> TokenChunk:
        """At most `size` of the tokens, from the index `start` on."""
        token_ids = self.token_ids[start : start + size]
        return TokenChunk(self.tables, self.position + start, token_ids, self.adapter)


def call_geometry(
    layout: KVLayout,
    tables: Sequence[SequenceTables],
    positions: Sequence[int],
    query_len: int,
) -> CallGeometry:
    """Lay out one call over `len(tables)` sequences.

    Their tables already have room for the new tokens.
    """
    starts = np.asarray(positions, dtype=np.int32)
    groups = []
    for index, shape in enumerate(layout.groups):
        rows = [row.groups[index] for row in tables]
        groups.append(_group_geometry(shape.window, rows, starts, query_len))
    return CallGeometry(starts, query_len, tuple(groups))


def rows_geometry(layout: KVLayout, rows: Sequence[DecodeRow]) -> CallGeometry:
    """Lay out a decode call."""
    tables = [row.tables for row in rows]
    positions = [row.position for row in rows]
    return call_geometry(layout, tables, positions, 1)


def chunk_geometry(layout: KVLayout, chunk: TokenChunk) -> CallGeometry:
    """Lay out a prompt's chunk as a prefill call."""
    count = len(chunk.token_ids)
    return call_geometry(layout, [chunk.tables], [chunk.position], count)


def filled(geometry: CallGeometry, extra: int) -> CallGeometry:
    """A prompt's chunk, and `extra` tokens after it that nobody reads.

    They lie in the scratch block.
    """
    if not extra:
        return geometry
    query_len = geometry.query_len + extra
    end = int(geometry.positions[0]) + query_len
    groups = []
    for view in geometry.groups:
        num_tokens = end - int(view.first_positions[0])
        width = -(-num_tokens // BLOCK_TOKENS)
        tables = np.full((1, width), SCRATCH_BLOCK, dtype=np.int32)
        tables[:, : view.tables.shape[1]] = view.tables
        groups.append(dataclasses.replace(view, tables=tables))
    return CallGeometry(geometry.positions, query_len, tuple(groups))


def _group_geometry(
    window: int | None,
    rows: Sequence[BlockTable],
    positions: IntArray,
    query_len: int,
) -> GroupGeometry:
    # Comprehensions, since every step does this for each of its rows.
    used = [
        (position + query_len - 1) // BLOCK_TOKENS + 1 - table.start_block
        for table, position in zip(rows, positions.tolist(), strict=True)
    ]
    width = max(used)
    padded = [
        table.block_ids[:count] + [SCRATCH_BLOCK] * (width - count)
        for table, count in zip(rows, used, strict=True)
    ]
    tables = np.array(padded, dtype=np.int32)
    firsts = [table.first_position for table in rows]
    first_positions = np.array(firsts, dtype=np.int32)
    steps = np.arange(query_len, dtype=np.int32)
    new_positions = positions[:, None] + steps[None]  # [rows, query_len]
    offsets = new_positions - first_positions[:, None]
    columns = offsets // BLOCK_TOKENS
    numbers = np.arange(len(tables))
    write_blocks = tables[numbers[:, None], columns]
    return GroupGeometry(
        window=window,
        tables=tables,
        first_positions=first_positions,
        write_blocks=write_blocks,
        write_slots=new_positions % BLOCK_TOKENS,
    )


def visible_keys(
    geometry: CallGeometry,
    group: int,
    width: int,
) -> npt.NDArray[np.bool_]:
    """Which key of its gathered context a query may see: `[rows, query_len, width]`."""
    view = geometry.groups[group]
    columns = np.arange(width, dtype=np.int32)
    keys = view.first_positions[:, None, None] + columns[None, None]
    steps = np.arange(geometry.query_len, dtype=np.int32)
    positions = geometry.positions[:, None] + steps[None]
    queries = positions[:, :, None]
    visible: npt.NDArray[np.bool_] = keys <= queries
    if view.window is not None:
        visible &= keys > queries - view.window
    return visible
