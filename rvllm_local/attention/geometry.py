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
    """One group's view of a call: `tables[rows, blocks]` and the position of each table's first token."""

    window: int | None
    tables: IntArray
    first_positions: IntArray  # [rows]
    write_blocks: IntArray  # [rows, query_len]
    write_slots: IntArray  # [rows, query_len]


@dataclass(frozen=True, slots=True)
class CallGeometry:
    """A decode call (`rows` x 1 token) or a prefill call (1 row x a chunk).

    `positions[r]` is the position of row r's first new token; its context after the call is
    `positions[r] + query_len`.
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
    """The token at `position` of one sequence; its KV is written, its logits are wanted.

    With `previous_row` the token is not known to the host yet: it is that row's token of the step before. `adapter` is
    the number of the LoRA adapter that the row is computed with, 0 for none. One is made for each token: a frozen dataclass
    takes three times as long.
    """

    tables: SequenceTables
    position: int
    token_id: int
    previous_row: int | None = None
    adapter: int = 0


@dataclass(frozen=True, slots=True)
class ChunkRows:
    """A prompt's next tokens, each as a row of a decode call: `token_ids` stand at `position` and after."""

    tables: SequenceTables
    position: int
    token_ids: tuple[int, ...]
    adapter: int = 0

    def rows(self) -> list[DecodeRow]:
        return [
            DecodeRow(self.tables, self.position + index, token, adapter=self.adapter)
            for index, token in enumerate(self.token_ids)
        ]


def call_geometry(
    layout: KVLayout,
    tables: Sequence[SequenceTables],
    positions: Sequence[int],
    query_len: int,
) -> CallGeometry:
    """Lay out one call over `len(tables)` sequences whose tables already have room for the new tokens."""
    starts = np.asarray(positions, dtype=np.int32)
    groups = tuple(
        _group_geometry(
            shape.window, [row.groups[index] for row in tables], starts, query_len
        )
        for index, shape in enumerate(layout.groups)
    )
    return CallGeometry(starts, query_len, groups)


def filled(geometry: CallGeometry, extra: int) -> CallGeometry:
    """A prompt's chunk with `extra` tokens after it that nobody wants: their place is the scratch block."""
    if not extra:
        return geometry
    query_len = geometry.query_len + extra
    groups = []
    for view in geometry.groups:
        width = -(
            -(int(geometry.positions[0]) + query_len - int(view.first_positions[0]))
            // BLOCK_TOKENS
        )
        tables = np.full((1, width), SCRATCH_BLOCK, dtype=np.int32)
        tables[:, : view.tables.shape[1]] = view.tables
        groups.append(dataclasses.replace(view, tables=tables))
    return CallGeometry(geometry.positions, query_len, tuple(groups))


def _group_geometry(
    window: int | None, rows: Sequence[BlockTable], positions: IntArray, query_len: int
) -> GroupGeometry:
    used = [
        (position + query_len - 1) // BLOCK_TOKENS + 1 - table.start_block
        for table, position in zip(rows, positions.tolist(), strict=True)
    ]
    width = max(used)
    tables = np.array(
        [
            table.block_ids[:count] + [SCRATCH_BLOCK] * (width - count)
            for table, count in zip(rows, used, strict=True)
        ],
        dtype=np.int32,
    )
    first_positions = np.array([table.first_position for table in rows], dtype=np.int32)
    new = (
        positions[:, None] + np.arange(query_len, dtype=np.int32)[None]
    )  # [rows, query_len]
    columns = (new - first_positions[:, None]) // BLOCK_TOKENS
    write_blocks = np.take_along_axis(tables, columns, axis=1)
    return GroupGeometry(
        window, tables, first_positions, write_blocks, new % BLOCK_TOKENS
    )


def visible_keys(
    geometry: CallGeometry, group: int, width: int
) -> npt.NDArray[np.bool_]:
    """[rows, query_len, width]: may query q of row r see the key in column c of its gathered context?"""
    view = geometry.groups[group]
    keys = (
        view.first_positions[:, None, None]
        + np.arange(width, dtype=np.int32)[None, None]
    )
    queries = (
        geometry.positions[:, None]
        + np.arange(geometry.query_len, dtype=np.int32)[None]
    )[:, :, None]
    visible: npt.NDArray[np.bool_] = keys <= queries
    if view.window is not None:
        visible &= keys > queries - view.window
    return visible
