"""One model call of the reference back end: gather the context, then attend to it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from rvllm_local.attention.backend import AttentionCall
from rvllm_local.attention.cpu.chunk import (
    chunk_attention,
    grouped_attention,
    is_on_host,
)
from rvllm_local.attention.cpu.context_copy import ContextCopy
from rvllm_local.attention.cpu.host_arena import HostArena
from rvllm_local.attention.cpu.pending_kv import PendingKV
from rvllm_local.attention.dense import chunk_mask, dense_attention
from rvllm_local.attention.geometry import CallGeometry, visible_keys
from rvllm_local.errors import UnsupportedModelError
from rvllm_local.memory.blocks import BLOCK_TOKENS
from rvllm_local.memory.layout import LayerSlot

# Gathered tokens over real ones, and over the arena's, above which rows are attended
# one by one.
MAX_PADDING = 2


class ReferenceSession:
    """One model call.

    Gather indices and masks are made once a group, and all its layers use them.
    """

    def __init__(
        self,
        arenas: Sequence[HostArena],
        geometry: CallGeometry,
        *,
        by_row: bool,
        copies: Mapping[int, ContextCopy],
        pending: PendingKV | None = None,
    ) -> None:
        """A call with `pending`, which takes the new token's KV, has one row."""
        self._arenas = arenas
        self._geometry = geometry
        self._by_row = by_row
        self._copies = copies
        self._pending = pending
        self._indices: dict[int, list[mx.array]] = {}
        self._biases: dict[int, mx.array | None] = {}
        self._ragged: dict[int, bool] = {}
        self._masks: dict[int, npt.NDArray[np.bool_]] = {}

    @property
    def num_rows(self) -> int:
        return self._geometry.rows

    @property
    def query_len(self) -> int:
        return self._geometry.query_len

    def write(
        self,
        slot: LayerSlot,
        keys: mx.array,
        values: mx.array,
    ) -> None:
        arena = self._arenas[slot.group]
        keys = keys.astype(arena.shape.dtype)
        values = values.astype(arena.shape.dtype)
        if self._pending is not None:
            self._pending.add(slot, keys, values)
            return
        mx.eval(keys, values)
        view = self._geometry.groups[slot.group]
        for part, new in enumerate((keys, values)):
            arena.write(view.write_blocks, view.write_slots, slot.layer, part, new)

    def gather(self, slot: LayerSlot) -> tuple[mx.array, mx.array]:
        index = self._gather_index(slot)
        arena = self._arenas[slot.group]
        if self._pending is not None:
            stored = arena.take(index.squeeze(1), 0)
            context = self._pending.put_into(slot, stored)
            length = self._length(slot.group)
            return context[0:1, :, :length], context[1:2, :, :length]
        keys = arena.take(index[0], 0)
        values = arena.take(index[1], 1)
        if self._geometry.rows == 1:
            length = self._length(slot.group)
            return keys[:, :, :length], values[:, :, :length]
        return keys, values

    def _length(self, group: int) -> int:
        """Tokens in the gathered context of a call's only row."""
        geometry = self._geometry
        end = int(geometry.positions[0]) + geometry.query_len
        first = int(geometry.groups[group].first_positions[0])
        return end - first

    def decode(
        self,
        slot: LayerSlot,
        queries: mx.array,
        call: AttentionCall,
    ) -> mx.array:
        if self._geometry.rows > 1 and self._goes_by_row(slot.group, call):
            return self._decode_by_row(slot, queries, call)
        if call.rotated is not None:
            raise UnsupportedModelError(
                "latents are not attended to here; the model does so itself"
            )
        keys, values = self.gather(slot)
        bias = self._decode_bias(slot.group, keys.shape[2], queries.dtype)
        if call.sinks is not None:
            return dense_attention(queries, keys, values, call, bias)
        return grouped_attention(queries, keys, values, call, bias)

    def prefill(
        self,
        slot: LayerSlot,
        queries: mx.array,
        call: AttentionCall,
    ) -> mx.array:
        keys, values = self._context(slot)
        if is_on_host(queries):
            visible = self._visible(slot.group, keys.shape[2])
            return chunk_attention(queries, keys, values, visible, call)
        mask = chunk_mask(self._geometry, slot.group, keys.shape[2])
        return dense_attention(queries, keys, values, call, mask)

    def _context(self, slot: LayerSlot) -> tuple[mx.array, mx.array]:
        """The context of a prefill call's only row.

        From the dense copy, which is brought up to date, or gathered.
        """
        copy = self._copies.get(slot.group)
        if copy is None:
            return self.gather(slot)
        if copy.needs(slot.layer):
            stale = self._gather_index(slot)[..., copy.first_stale :]
            arena = self._arenas[slot.group]
            keys = arena.take(stale[0], 0)
            values = arena.take(stale[1], 1)
            copy.put(slot.layer, keys, values)
        return copy.context(slot.layer, int(self._geometry.context_lens[0]))

    def _visible(self, group: int, width: int) -> npt.NDArray[np.bool_]:
        """[query_len, width] for the one row of a prefill call."""
        if group not in self._masks:
            self._masks[group] = visible_keys(self._geometry, group, width)[0]
        return self._masks[group]

    def _goes_by_row(self, group: int, call: AttentionCall) -> bool:
        if self._by_row or self._is_too_much(group):
            return True
        return call.sinks is None and self._is_ragged(group)

    def _is_ragged(self, group: int) -> bool:
        """True where padding all rows to the longest costs too much."""
        if group not in self._ragged:
            view = self._geometry.groups[group]
            used = self._geometry.context_lens - view.first_positions
            gathered = self._geometry.rows * int(used.max())
            self._ragged[group] = gathered > MAX_PADDING * int(used.sum())
        return self._ragged[group]

    def _is_too_much(self, group: int) -> bool:
        """True where the gathered context outgrows the plan.

        Rows that share blocks can gather many times what the arena holds.
        """
        if self._geometry.rows == 1:
            return False
        width = int(self._geometry.groups[group].tables.shape[1])
        gathered = self._geometry.rows * width
        return gathered > MAX_PADDING * len(self._arenas[group].data)

    def _decode_by_row(
        self,
        slot: LayerSlot,
        queries: mx.array,
        call: AttentionCall,
    ) -> mx.array:
        outputs = []
        for row in range(self._geometry.rows):
            attended = self._decode_row(slot, queries[row : row + 1], call, row)
            if self._is_too_much(slot.group):
                # Frees its keys and values before the next row's are gathered.
                mx.eval(attended)
            outputs.append(attended)
        return mx.concatenate(outputs, axis=0)

    def _decode_row(
        self,
        slot: LayerSlot,
        query: mx.array,
        call: AttentionCall,
        row: int,
    ) -> mx.array:
        """Attention of one row, over its own blocks alone."""
        arena = self._arenas[slot.group]
        view = self._geometry.groups[slot.group]
        length = int(self._geometry.context_lens[row] - view.first_positions[row])
        blocks = -(-length // BLOCK_TOKENS)
        index = self._gather_index(slot)[:, row : row + 1, :, :blocks]
        keys = arena.take(index[0], 0)[:, :, :length]
        values = arena.take(index[1], 1)[:, :, :length]
        bias = None
        if view.window is not None and length > view.window:
            width = view.tables.shape[1] * BLOCK_TOKENS
            bias = self._decode_bias(slot.group, width, query.dtype)
            assert bias is not None
            bias = bias[row : row + 1, ..., :length]
        if call.sinks is not None:
            return dense_attention(query, keys, values, call, bias)
        return grouped_attention(query, keys, values, call, bias)

    def _gather_index(self, slot: LayerSlot) -> mx.array:
        """[K|V, rows, kv_heads, blocks]: the arena's `rows` with this layer's context."""
        if slot.group not in self._indices:
            index = self._all_layers_index(slot.group)
            self._indices[slot.group] = [mx.array(layer) for layer in index]
        return self._indices[slot.group][slot.layer]

    def _all_layers_index(self, group: int) -> npt.NDArray[np.uint32]:
        """[layers, K|V, rows, kv_heads, blocks]."""
        shape = self._arenas[group].shape
        tables = self._geometry.groups[group].tables[None, None, :, None, :]
        heads = np.arange(shape.kv_heads)[None, None, None, :, None]
        part = np.arange(2)[None, :, None, None, None]
        layer = np.arange(shape.num_layers)[:, None, None, None, None]
        planes = (tables * shape.num_layers + layer) * 2 + part
        return (planes * shape.kv_heads + heads).astype(np.uint32)

    def _decode_bias(
        self,
        group: int,
        width: int,
        dtype: mx.Dtype,
    ) -> mx.array | None:
        """[rows, 1, 1, width] additive mask; None when all rows see all they gather."""
        if group not in self._biases:
            self._biases[group] = self._make_bias(group, width)
        bias = self._biases[group]
        if bias is None:
            return None
        return bias.astype(dtype)

    def _make_bias(self, group: int, width: int) -> mx.array | None:
        visible = visible_keys(self._geometry, group, width)
        if visible.all():
            return None
        bias = np.where(visible, 0.0, -np.inf).astype(np.float32)
        return mx.array(bias[:, None])
