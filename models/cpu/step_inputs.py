"""What a step's graph takes beside the hidden state: places in the arenas, and rotations.

The names of the arrays are those of `step_graph`.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from mlx import nn

from rvllm_local.attention.geometry import CallGeometry, GroupGeometry, visible_keys
from rvllm_local.memory.arena import Arena
from rvllm_local.memory.blocks import BLOCK_TOKENS
from rvllm_local.models.cpu.structure import RotationTable, rotation_table

FloatArray = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int64]
Inputs = dict[str, npt.NDArray[Any]]

_FIRST_POSITIONS = 2048  # of the tables of cosines and sines, which grow by doubling
_SHAPES_KEPT = 64  # a call's shape is that of the step before, mostly


class StepInputs:
    """Describes each call to the graph."""

    def __init__(self, arenas: Sequence[Arena], heads: int) -> None:
        self._groups = [_Group(arena, heads) for arena in arenas]

    def of(self, geometry: CallGeometry, rotations: Sequence[Rotation]) -> Inputs:
        """All arrays of one call."""
        rows = geometry.rows
        tokens = geometry.query_len
        positions = geometry.positions[:, None] + np.arange(tokens)
        flat = positions.reshape(-1)
        inputs: Inputs = {}
        for number, rotation in enumerate(rotations):
            cosines, sines = rotation.at(flat)
            inputs[f"cosines{number}"] = cosines
            inputs[f"sines{number}"] = sines
        for number, group in enumerate(self._groups):
            view = geometry.groups[number]
            keys, values = group.reads(view)
            inputs[f"keys{number}"] = keys
            inputs[f"values{number}"] = values
            inputs[f"stores{number}"] = group.stores(view)
            inputs[f"mask{number}"] = group.mask(geometry, number)
            for name, indices in group.order(rows, tokens).items():
                inputs[f"{name}{number}"] = indices
        return inputs


class _Group:
    """Indices into one group's arena, whose blocks count from a layer's first one."""

    def __init__(self, arena: Arena, heads: int) -> None:
        shape = arena.shape
        self._parts = np.arange(2 * shape.kv_heads)  # keys' heads, then values' heads
        self._kv_heads = shape.kv_heads
        self._block = shape.num_layers * 2 * shape.kv_heads
        self._per_kv_head = heads // shape.kv_heads

    def reads(self, view: GroupGeometry) -> tuple[IntArray, IntArray]:
        """The heads' blocks of keys and of values, `[rows, kv_heads, blocks]` each."""
        tables = view.tables.astype(np.int64)
        blocks = tables[:, None] * self._block
        indices = blocks + self._parts[:, None]
        keys = indices[:, : self._kv_heads]
        values = indices[:, self._kv_heads :]
        return np.ascontiguousarray(keys), np.ascontiguousarray(values)

    def stores(self, view: GroupGeometry) -> IntArray:
        """Where the new keys and values go, head by head of each token.

        It is `[count, 2]`: block and slot.
        """
        first_parts = view.write_blocks.astype(np.int64) * self._block
        parts = first_parts[..., None] + self._parts
        places = np.empty((*parts.shape, 2), dtype=np.int64)
        places[..., 0] = parts
        places[..., 1] = view.write_slots[..., None]
        return places.reshape(-1, 2)

    def mask(self, geometry: CallGeometry, number: int) -> FloatArray:
        """What is added to the scores, `[rows, 1, queries, context]`.

        It has a chunk's queries once for each head of the group.
        """
        width = geometry.groups[number].tables.shape[1] * BLOCK_TOKENS
        visible = visible_keys(geometry, number, width)
        mask = np.where(visible, np.float32(0), np.float32(-np.inf))
        if geometry.query_len > 1:
            mask = np.tile(mask, (1, self._per_kv_head, 1))
        return mask[:, None]

    def order(self, rows: int, tokens: int) -> Inputs:
        """How heads are found in a product, and where attention's heads belong."""
        return _order(rows, tokens, self._kv_heads, self._per_kv_head)


@functools.lru_cache(_SHAPES_KEPT)
def _order(rows: int, tokens: int, kv_heads: int, group_heads: int) -> Inputs:
    """Indices of heads for calls of one shape.

    A product has each token's queries, keys and values, `[rows * tokens, heads]`; as
    attention takes its queries they are `[rows, kv_heads, group_heads * tokens]`.
    """
    query_heads = kv_heads * group_heads
    heads = query_heads + 2 * kv_heads
    places = np.arange(rows * tokens * heads).reshape(rows, tokens, heads)
    queries = places[..., :query_heads].reshape(rows, tokens, kv_heads, group_heads)
    by_kv_head = queries.transpose(0, 2, 3, 1).reshape(rows, kv_heads, -1)
    fresh = places[..., query_heads:].reshape(-1)
    # A head's own place tells its token; values turn by the entry after the last.
    turns = np.repeat(np.arange(rows * tokens), heads).reshape(-1, heads)
    turns[:, query_heads + kv_heads :] = rows * tokens
    attended = np.indices((rows, kv_heads, group_heads * tokens))
    attended = attended.reshape(3, rows, kv_heads, group_heads, tokens)
    by_token = attended.transpose(1, 4, 2, 3, 0).reshape(rows * tokens, -1, 3)
    return {
        "queries": _with_zero(by_kv_head),
        "fresh": _with_zero(fresh),
        "turns": np.ascontiguousarray(turns.reshape(-1, 1)),
        "attended": np.ascontiguousarray(by_token),
    }


def _with_zero(indices: IntArray) -> IntArray:
    """Indices into `[count, 1, width]`, of which each entry is a row of width."""
    pairs = np.zeros((*indices.shape, 2), dtype=np.int64)
    pairs[..., 0] = indices
    return pairs


class Rotation:
    """The cosines and sines of one rotation, as far as positions have come."""

    def __init__(self, rope: nn.Module, head_dim: int, table: RotationTable) -> None:
        self._rope = rope
        self._head_dim = head_dim
        self.table = table

    def at(self, positions: npt.NDArray[Any]) -> tuple[FloatArray, FloatArray]:
        """`[positions + 1, width / 2]` twice. The last entry turns nothing."""
        count = len(self.table.cosines)
        last = int(positions.max())
        if last >= count:
            while count <= last:
                count *= 2
            table = rotation_table(self._rope, self._head_dim, count)
            assert table is not None  # it was one for fewer positions
            self.table = table
        width = self.table.cosines.shape[1]
        cosines = np.ones((len(positions) + 1, width), dtype=np.float32)
        sines = np.zeros_like(cosines)
        cosines[:-1] = self.table.cosines[positions]
        sines[:-1] = self.table.sines[positions]
        return cosines, sines


class Rotations:
    """The different rotations of a model, found by what they do."""

    def __init__(self) -> None:
        self.every: list[Rotation] = []
        self._numbers: dict[bytes, int] = {}

    def number_of(self, rope: nn.Module, head_dim: int) -> int | None:
        """The rotation's number; None for what no table holds."""
        table = rotation_table(rope, head_dim, _FIRST_POSITIONS)
        if table is None:
            return None
        key = table.sines.tobytes()
        if key not in self._numbers:
            self._numbers[key] = len(self.every)
            self.every.append(Rotation(rope, head_dim, table))
        return self._numbers[key]
