"""Turns the rows of a decode step into model calls: groups, padding, and the tokens.

Knows neither the model nor the back end.
"""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx
import numpy as np

from rvllm_local.attention.geometry import DecodeRow
from rvllm_local.attention.in_order import token_depths
from rvllm_local.attention.seam import state_after
from rvllm_local.memory.blocks import SCRATCH_BLOCK, BlockTable
from rvllm_local.memory.layout import KVLayout
from rvllm_local.memory.state import RecurrentState
from rvllm_local.memory.tables import SequenceTables

# A CPU's matrix product takes so many rows at once; a few less take longer than all.
_ROW_TILE = 16
_MOST_UNTILED = 8  # up to so many rows a product is quicker as it is


def tiled_rows(rows: int) -> int:
    """The least number of rows, from `rows` on, that a CPU computes as quickly."""
    if rows <= _MOST_UNTILED:
        return rows
    return -(-rows // _ROW_TILE) * _ROW_TILE


def padding_row(layout: KVLayout, like: DecodeRow) -> DecodeRow:
    """A row on the scratch block; its recurrent state has the shapes of `like`'s."""
    tables = tuple(BlockTable([SCRATCH_BLOCK]) for _ in layout.groups)
    state = RecurrentState(like.tables.state.batch, like.tables.state.row)
    return DecodeRow(SequenceTables(tables, state), 0, 0)


def row_groups(
    layout: KVLayout,
    rows: Sequence[DecodeRow],
    size: int | None,
    *,
    pads: bool = True,
) -> list[tuple[Sequence[DecodeRow], int]]:
    """The calls of one step: rows of each call, and how many of them are real.

    With a `size` every call has exactly so many rows, or without `pads` at most so many.
    """
    if size is None:
        return [(rows, len(rows))]
    groups: list[tuple[Sequence[DecodeRow], int]] = []
    for start in range(0, len(rows), size):
        group = list(rows[start : start + size])
        num_real = len(group)
        while pads and len(group) < size:
            group.append(padding_row(layout, group[0]))
        groups.append((group, num_real))
    return groups


def rows_by_state(rows: Sequence[DecodeRow]) -> list[list[int]]:
    """Indices of the rows whose recurrent states can be stacked, kind by kind."""
    by_signature: dict[tuple[object, ...], list[int]] = {}
    for index, row in enumerate(rows):
        signature = row.tables.state.signature
        by_signature.setdefault(signature, []).append(index)
    return list(by_signature.values())


def begin_states(rows: Sequence[DecodeRow]) -> None:
    """Tell the rows' recurrent states that a step begins."""
    has_drafts = token_depths(rows) is not None
    for row in rows:
        row.tables.state.begin_step(records=has_drafts)


def keep_states(
    layout: KVLayout, states: Sequence[RecurrentState], caches: Sequence[object]
) -> None:
    """Hand each row what the recurrent layers keep of it."""
    if not layout.has_state:
        return
    batch = state_after(layout, caches)
    mx.async_eval([part for part in batch if part is not None])  # type: ignore[no-untyped-call]
    for row, state in enumerate(states):
        state.advance(batch, row)


def joined(parts: list[mx.array]) -> mx.array:
    """The rows of all calls of a step."""
    if len(parts) == 1:
        return parts[0]
    return mx.concatenate(parts, axis=0)


def step_tokens(
    rows: Sequence[DecodeRow],
    previous: mx.array | None,
    size: int,
) -> mx.array:
    """The token of each row, int32 `[size]`; entries beyond the rows are padding.

    A token that only the device knows comes from `previous`, the tokens of the step
    before.
    """
    host_tokens = np.zeros(size, dtype=np.int32)
    host_tokens[: len(rows)] = [row.token_id for row in rows]
    sources = [row.previous_row for row in rows]
    if previous is None or all(source is None for source in sources):
        return mx.array(host_tokens)
    if previous.shape[0] == size and sources == list(range(len(rows))):
        return previous.astype(mx.int32)
    index = np.zeros(size, dtype=np.int32)
    index[: len(rows)] = [source or 0 for source in sources]
    is_on_host = np.ones(size, dtype=np.bool_)
    is_on_host[: len(rows)] = [source is None for source in sources]
    from_device = previous.astype(mx.int32)[mx.array(index)]
    return mx.where(mx.array(is_on_host), mx.array(host_tokens), from_device)
