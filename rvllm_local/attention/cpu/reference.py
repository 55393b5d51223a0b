"""The reference back end: plain MLX over an arena that the host can address (CPU, or unified memory).

New keys and values are stored through a numpy view of the arena, so nothing is ever copied as a whole: those of a single
token after its step, others layer by layer. A context is read by gathering its blocks. Correct anywhere, tuned for the CPU.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from rvllm_local.attention.backend import AttentionCall
from rvllm_local.attention.cpu.chunk import chunk_attention, token_attention
from rvllm_local.attention.cpu.context_copy import ContextCopy
from rvllm_local.attention.cpu.pending_kv import WaitingKV
from rvllm_local.attention.dense import cap_logits, dense_attention
from rvllm_local.attention.geometry import CallGeometry, visible_keys
from rvllm_local.errors import UnsupportedModelError
from rvllm_local.memory.arena import Arena
from rvllm_local.memory.blocks import BLOCK_TOKENS
from rvllm_local.memory.layout import LayerSlot

_BITS = {
    2: mx.uint16,
    4: mx.uint32,
}  # numpy has no bfloat16: values travel as bit patterns
_MANY_SCORES = (
    4096  # of a decode call; for fewer it does not pay to wait for them on the host
)
MAX_PADDING = 2  # gathered tokens over real ones, and over the arena's, above which rows are attended one by one


class ReferenceBackend:
    """Reads and writes the arenas with plain MLX operations."""

    name = "reference"
    prefill_grain = 1
    overlaps = False
    mixes = True
    runs_by_layer = True
    num_dispatches = 0

    def __init__(self, arenas: Sequence[Arena], copy_tokens: int = 0) -> None:
        """`copy_tokens`: up to this length, the context of a prompt that prefills is kept densely as well."""
        self._arenas = tuple(arenas)
        self._stores = [_Store.of(arena) for arena in arenas]
        self._versions = [
            np.zeros(arena.num_blocks, dtype=np.int64) for arena in arenas
        ]  # counts of writes, by block
        self._copies = {
            group: ContextCopy(arena.shape, copy_tokens // BLOCK_TOKENS)
            for group, arena in enumerate(arenas)
            if arena.shape.window is None and copy_tokens >= BLOCK_TOKENS
        }
        self._waiting: WaitingKV | None = None
        plain = [
            not arena.shape.quantized and arena.shape.key_dim == arena.shape.value_dim
            for arena in arenas
        ]
        self._can_wait = all(plain)  # what is stored is what was computed

    def begin(
        self, geometry: CallGeometry, *, by_row: bool = False
    ) -> ReferenceSession:
        self.flush()
        self._note_writes(geometry)
        # With more rows, putting the tokens into the graph costs more than waiting for them.
        is_lone_token = geometry.rows == geometry.query_len == 1
        self._waiting = waiting = (
            WaitingKV(geometry) if is_lone_token and self._can_wait else None
        )
        copies = (
            self._copies_for(geometry)
            if geometry.rows == 1 and geometry.query_len > 1
            else {}
        )
        return ReferenceSession(
            self._arenas,
            self._stores,
            geometry,
            by_row=by_row,
            copies=copies,
            waiting=waiting,
        )

    def begin_mixed(
        self,
        geometry: CallGeometry,
        decode: CallGeometry,
        chunks: Sequence[CallGeometry],
    ) -> MixedSession:
        """Prepare a decode call whose further rows are the tokens of prompts' chunks, one geometry each, and padding."""
        self.flush()
        self._note_writes(geometry)
        lengths = [int(chunk.context_lens[0]) for chunk in chunks]
        longest = lengths.index(max(lengths)) if lengths else None
        return MixedSession(
            self._session(geometry),
            self._session(decode),
            *(
                self._session(part, self._copies_for(part) if i == longest else None)
                for i, part in enumerate(chunks)
            ),
        )

    def _session(
        self, geometry: CallGeometry, copies: Mapping[int, ContextCopy] | None = None
    ) -> ReferenceSession:
        return ReferenceSession(
            self._arenas, self._stores, geometry, by_row=False, copies=copies or {}
        )

    def _note_writes(self, geometry: CallGeometry) -> None:
        for versions, view in zip(self._versions, geometry.groups, strict=True):
            versions[view.write_blocks] += 1

    def _copies_for(self, geometry: CallGeometry) -> dict[int, ContextCopy]:
        """The groups whose context this one-row call can read from a dense copy."""
        return {
            group: copy
            for group, copy in self._copies.items()
            if copy.begin(geometry.groups[group].tables[0], self._versions[group])
        }

    def flush(self) -> None:
        """Store what still waits. Everything that reads or writes the arenas begins with this."""
        waiting, self._waiting = self._waiting, None
        if waiting is not None:
            waiting.store([store.data for store in self._stores])

    def save_blocks(self, group: int, block_ids: Sequence[int]) -> list[bytes]:
        """Each block as bytes: its elements, then its scales."""
        self.flush()
        store = self._stores[group]
        scales = store.scales
        return [
            store.data[block].tobytes()
            + (b"" if scales is None else scales[block].tobytes())
            for block in block_ids
        ]

    def load_blocks(
        self,
        group: int,
        block_ids: Sequence[int],
        payloads: Sequence[bytes | bytearray],
    ) -> None:
        """Write saved bytes into blocks. Raises `ValueError` for a payload of the wrong size."""
        self.flush()
        store, shape = self._stores[group], self._arenas[group].shape
        self._versions[group][list(block_ids)] += 1
        for block, payload in zip(block_ids, payloads, strict=True):
            if len(payload) != shape.block_bytes:
                raise ValueError(
                    f"a saved block has {len(payload)} bytes, and this arena's have {shape.block_bytes}"
                )
            data = np.frombuffer(payload, store.data.dtype, store.data[block].size)
            store.data[block] = data.reshape(store.data[block].shape)
            if store.scales is not None:
                scales = np.frombuffer(payload, np.float32, offset=shape.data_bytes)
                store.scales[block] = scales.reshape(store.scales[block].shape)

    def copy_blocks(self, group: int, pairs: Sequence[tuple[int, int]]) -> None:
        """Copy blocks in place."""
        self.flush()
        store = self._stores[group]
        for source, destination in pairs:
            self._versions[group][destination] += 1
            store.data[destination] = store.data[source]
            if store.scales is not None:
                store.scales[destination] = store.scales[source]


@dataclass(frozen=True, slots=True)
class _Store:
    """One arena as the host writes it, and as gathers read it: one row is one head's keys (or values) of a block."""

    data: npt.NDArray[
        Any
    ]  # [blocks, layers, 2, kv_heads, BLOCK_TOKENS, width], as bit patterns or int8
    rows: mx.array  # [blocks * layers * 2 * kv_heads, BLOCK_TOKENS * width]
    scales: npt.NDArray[np.float32] | None
    scale_rows: mx.array | None  # [blocks * layers * 2 * kv_heads, BLOCK_TOKENS]

    @classmethod
    def of(cls, arena: Arena) -> _Store:
        bits = (
            arena.array
            if arena.shape.quantized
            else arena.array.view(_BITS[arena.shape.dtype.size])
        )
        data, rows = (
            _host_view(bits, arena.array),
            arena.array.reshape(-1, BLOCK_TOKENS * arena.shape.width),
        )
        if arena.scales is None:
            return cls(data, rows, None, None)
        return cls(
            data,
            rows,
            _host_view(arena.scales, arena.scales),
            arena.scales.reshape(-1, BLOCK_TOKENS),
        )


def _host_view(array: mx.array, original: mx.array) -> npt.NDArray[Any]:
    """The arena's own memory as numpy sees it. Raises if the host only gets a copy."""
    view = np.array(array, copy=False)
    view[0] = 1  # the scratch block
    if not bool(mx.all(original[0] != 0).item()):
        raise UnsupportedModelError(
            "the reference attention needs an arena that the host can address"
        )
    view[0] = 0
    return view


class ReferenceSession:
    """One model call. Gather indices and masks are made once a group and used by all its layers."""

    def __init__(
        self,
        arenas: Sequence[Arena],
        stores: Sequence[_Store],
        geometry: CallGeometry,
        *,
        by_row: bool,
        copies: Mapping[int, ContextCopy],
        waiting: WaitingKV | None = None,
    ) -> None:
        """With `waiting`, which takes the new token's keys and values, it is a call of one row."""
        self._arenas, self._stores, self._geometry = arenas, stores, geometry
        self._by_row = by_row
        self._copies = copies
        self._waiting = waiting
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

    def write(self, slot: LayerSlot, keys: mx.array, values: mx.array) -> None:
        view, shape = self._geometry.groups[slot.group], self._arenas[slot.group].shape
        keys, values = keys.astype(shape.dtype), values.astype(shape.dtype)
        if self._waiting is not None:
            self._waiting.add(slot, keys, values)
            return
        mx.eval(keys, values)
        blocks, slots = (
            view.write_blocks[:, None],
            view.write_slots[:, None],
        )  # [rows, 1, query_len]
        heads = np.arange(shape.kv_heads)[None, :, None]
        store = self._stores[slot.group]
        for part, new in enumerate((keys, values)):
            if store.scales is not None:
                quantized, scales = _quantize(new)
                store.data[blocks, slot.layer, part, heads, slots, : new.shape[-1]] = (
                    quantized
                )
                store.scales[blocks, slot.layer, part, heads, slots] = scales
            else:
                bits = np.array(new.view(_BITS[shape.dtype.size]), copy=False)
                store.data[blocks, slot.layer, part, heads, slots, : new.shape[-1]] = (
                    bits
                )

    def gather(self, slot: LayerSlot) -> tuple[mx.array, mx.array]:
        index = self._gather_index(slot)
        shape = self._arenas[slot.group].shape
        if self._waiting is not None:
            context = self._waiting.put_into(
                slot, self._take(slot, index.squeeze(1), shape.width)
            )
            length = self._length(slot.group)
            return context[0:1, :, :length], context[1:2, :, :length]
        keys, values = (
            self._take(slot, index[0], shape.key_dim),
            self._take(slot, index[1], shape.value_dim),
        )
        if self._geometry.rows == 1:
            length = self._length(slot.group)
            return keys[:, :, :length], values[:, :, :length]
        return keys, values

    def _length(self, group: int) -> int:
        """Tokens in the gathered context of a call's only row."""
        geometry = self._geometry
        return (
            int(geometry.positions[0])
            + geometry.query_len
            - int(geometry.groups[group].first_positions[0])
        )

    def decode(
        self, slot: LayerSlot, queries: mx.array, call: AttentionCall
    ) -> mx.array:
        if self._geometry.rows > 1 and self._goes_by_row(slot.group, call):
            return self._decode_by_row(slot, queries, call)
        keys, values = self.gather(slot)
        bias = self._decode_bias(slot.group, keys.shape[2], queries.dtype)
        if call.sinks is not None:
            return dense_attention(queries, keys, values, call, bias)
        return _grouped_attention(queries, keys, values, call, bias)

    def prefill(
        self, slot: LayerSlot, queries: mx.array, call: AttentionCall
    ) -> mx.array:
        keys, values = self._context(slot)
        if _is_on_host(queries):
            visible = self._visible(slot.group, keys.shape[2])
            return chunk_attention(queries, keys, values, visible, call)
        return dense_attention(
            queries,
            keys,
            values,
            call,
            chunk_mask(self._geometry, slot.group, keys.shape[2]),
        )

    def _context(self, slot: LayerSlot) -> tuple[mx.array, mx.array]:
        """The context of the one row of a prefill call: from the dense copy, which is brought up to date, or gathered."""
        copy = self._copies.get(slot.group)
        if copy is None:
            return self.gather(slot)
        if copy.needs(slot.layer):
            stale = self._gather_index(slot)[..., copy.first_stale :]
            width = self._arenas[slot.group].shape.width
            copy.put(
                slot.layer,
                self._take(slot, stale[0], width),
                self._take(slot, stale[1], width),
            )
        return copy.context(slot.layer, int(self._geometry.context_lens[0]))

    def _visible(self, group: int, width: int) -> npt.NDArray[np.bool_]:
        """[query_len, width] for the one row of a prefill call."""
        if group not in self._masks:
            self._masks[group] = visible_keys(self._geometry, group, width)[0]
        return self._masks[group]

    def _goes_by_row(self, group: int, call: AttentionCall) -> bool:
        return (
            self._by_row
            or self._is_too_much(group)
            or (call.sinks is None and self._is_ragged(group))
        )

    def _is_ragged(self, group: int) -> bool:
        if group not in self._ragged:
            used = (
                self._geometry.context_lens
                - self._geometry.groups[group].first_positions
            )
            self._ragged[group] = self._geometry.rows * int(
                used.max()
            ) > MAX_PADDING * int(used.sum())
        return self._ragged[group]

    def _is_too_much(self, group: int) -> bool:
        """Rows that share blocks can gather many times what the arena holds, which no plan has room for."""
        width = self._geometry.groups[group].tables.shape[1]
        return (
            self._geometry.rows > 1
            and self._geometry.rows * width
            > MAX_PADDING * self._arenas[group].num_blocks
        )

    def _decode_by_row(
        self, slot: LayerSlot, queries: mx.array, call: AttentionCall
    ) -> mx.array:
        view = self._geometry.groups[slot.group]
        shape, index = self._arenas[slot.group].shape, self._gather_index(slot)
        outputs = []
        for row in range(self._geometry.rows):
            length = int(self._geometry.context_lens[row] - view.first_positions[row])
            blocks = -(-length // BLOCK_TOKENS)
            keys = self._take(slot, index[0, row : row + 1, :, :blocks], shape.key_dim)[
                :, :, :length
            ]
            values = self._take(
                slot, index[1, row : row + 1, :, :blocks], shape.value_dim
            )[:, :, :length]
            bias = None
            if view.window is not None and length > view.window:
                bias = self._decode_bias(
                    slot.group, view.tables.shape[1] * BLOCK_TOKENS, queries.dtype
                )
                assert bias is not None
                bias = bias[row : row + 1, ..., :length]
            query = queries[row : row + 1]
            if call.sinks is not None:
                attended = dense_attention(query, keys, values, call, bias)
            else:
                attended = _grouped_attention(query, keys, values, call, bias)
            if self._is_too_much(slot.group):
                mx.eval(
                    attended
                )  # so that its keys and values are freed before the next row's are gathered
            outputs.append(attended)
        return mx.concatenate(outputs, axis=0)

    def _gather_index(self, slot: LayerSlot) -> mx.array:
        """[K|V, rows, kv_heads, blocks] rows of the flattened arena that hold this layer's context."""
        if slot.group not in self._indices:
            shape, tables = (
                self._arenas[slot.group].shape,
                self._geometry.groups[slot.group].tables,
            )
            heads = np.arange(shape.kv_heads)[None, None, None, :, None]
            part = np.arange(2)[None, :, None, None, None]
            layer = np.arange(shape.num_layers)[:, None, None, None, None]
            block_and_layer = tables[None, None, :, None, :] * shape.num_layers + layer
            index = (block_and_layer * 2 + part) * shape.kv_heads + heads
            self._indices[slot.group] = [
                mx.array(part) for part in index.astype(np.uint32)
            ]
        return self._indices[slot.group][slot.layer]

    def _take(self, slot: LayerSlot, index: mx.array, dim: int) -> mx.array:
        shape, store = self._arenas[slot.group].shape, self._stores[slot.group]
        rows, heads, blocks = index.shape
        width = shape.width
        taken = mx.take(store.rows, index, axis=0).reshape(
            rows, heads, blocks * BLOCK_TOKENS, width
        )
        if store.scale_rows is not None:
            scales = mx.take(store.scale_rows, index, axis=0).reshape(
                rows, heads, blocks * BLOCK_TOKENS, 1
            )
            taken = (taken.astype(mx.float32) * scales).astype(shape.dtype)
        return taken if dim == width else taken[..., :dim]

    def _decode_bias(self, group: int, width: int, dtype: mx.Dtype) -> mx.array | None:
        """[rows, 1, 1, width] additive mask, or None when one row sees all of its gathered context."""
        if group not in self._biases:
            visible = visible_keys(self._geometry, group, width)
            bias = (
                None
                if visible.all()
                else mx.array(
                    np.where(visible, 0.0, -np.inf).astype(np.float32)[:, None]
                )
            )
            self._biases[group] = bias
        bias = self._biases[group]
        return None if bias is None else bias.astype(dtype)


class MixedSession:
    """A decode call that also prefills: all rows share the matrix products, which stream the weights once; attention is
    that of a decode call for the first rows and that of a prefill call for each chunk.
    """

    def __init__(
        self,
        whole: ReferenceSession,
        decode: ReferenceSession,
        *chunks: ReferenceSession,
    ) -> None:
        self._whole, self._decode, self._chunks = whole, decode, chunks

    def write(self, slot: LayerSlot, keys: mx.array, values: mx.array) -> None:
        self._whole.write(slot, keys, values)

    def gather(self, slot: LayerSlot) -> tuple[mx.array, mx.array]:
        raise UnsupportedModelError("a mixed call has no common context to gather")

    def prefill(
        self, slot: LayerSlot, queries: mx.array, call: AttentionCall
    ) -> mx.array:
        raise UnsupportedModelError("a mixed call has one query a row")

    def decode(
        self, slot: LayerSlot, queries: mx.array, call: AttentionCall
    ) -> mx.array:
        start = self._decode.num_rows
        attended = [self._decode.decode(slot, queries[:start], call)]
        for chunk in self._chunks:
            end = start + chunk.query_len
            part = queries[start:end].transpose(
                2, 1, 0, 3
            )  # [1, heads, query_len, dim]
            attended.append(chunk.prefill(slot, part, call).transpose(2, 1, 0, 3))
            start = end
        if start < len(queries):  # rows that fill the call up; nobody reads them
            attended.append(
                mx.zeros(
                    (len(queries) - start, *attended[0].shape[1:]),
                    dtype=attended[0].dtype,
                )
            )
        return mx.concatenate(attended, axis=0)


def _is_on_host(queries: mx.array) -> bool:
    """What a CPU computes, in a type that numpy has: numpy's exponentials are quicker."""
    return queries.dtype == mx.float32 and mx.default_device() == mx.Device(mx.cpu)


def _quantize(values: mx.array) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float32]]:
    """int8 values and one scale a token and head: the largest magnitude becomes 127, as the kernels do it."""
    host = np.array(values.astype(mx.float32), copy=False)
    peak = np.abs(host).max(axis=-1, keepdims=True)
    inverse = np.divide(np.float32(127), peak, out=np.zeros_like(peak), where=peak > 0)
    return np.rint(host * inverse).astype(np.int8), (peak / np.float32(127))[..., 0]


def chunk_mask(geometry: CallGeometry, group: int, width: int) -> mx.array | str:
    """The mask of one row's chunk against its gathered context of `width` tokens."""
    view = geometry.groups[group]
    context = int(geometry.context_lens[0])
    if view.window is None or (
        context <= view.window and int(view.first_positions[0]) == 0
    ):
        return "causal"
    return mx.array(visible_keys(geometry, group, width)[0])


def _grouped_attention(
    queries: mx.array,
    keys: mx.array,
    values: mx.array,
    call: AttentionCall,
    bias: mx.array | None,
) -> mx.array:
    """Softmax attention of one query a row; the heads that share a KV head are one matrix product."""
    rows, heads, _, dim = queries.shape
    if rows * heads * keys.shape[2] >= _MANY_SCORES and _is_on_host(queries):
        return token_attention(queries, keys, values, call, bias)
    kv_heads = keys.shape[1]
    grouped = queries.reshape(rows, kv_heads, heads // kv_heads, dim) * call.scale
    scores = grouped @ keys.swapaxes(-1, -2)
    if call.softcap:
        scores = cap_logits(scores, call.softcap)
    if bias is not None:
        scores = scores + bias
    weights = mx.softmax(scores, axis=-1, precise=True)
    return (weights @ values).reshape(rows, heads, 1, values.shape[-1])
