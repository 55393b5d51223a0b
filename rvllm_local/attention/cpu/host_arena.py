"""One arena as the host writes it through numpy, and as MLX gathers from it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from rvllm_local.errors import UnsupportedModelError
from rvllm_local.memory.arena import Arena, KVShape
from rvllm_local.memory.blocks import BLOCK_TOKENS

# numpy has no bfloat16: values travel as bit patterns.
_BITS = {2: mx.uint16, 4: mx.uint32}


@dataclass(frozen=True, slots=True)
class HostArena:
    """Views of one arena's memory.

    One head's keys (or values) of a block are one of `rows`, or several where keys and
    values differ in size.

    data: the arena's array, as bit patterns or int8.
    parts: its keys and its values, `[blocks, layers, kv_heads, BLOCK_TOKENS, dim]`.
    rows: `[n, BLOCK_TOKENS * unit]`, `unit` dividing the sizes of keys and values.
    scale_rows: `[blocks * layers * 2 * kv_heads, BLOCK_TOKENS]`, for int8 alone.
    """

    shape: KVShape
    data: npt.NDArray[Any]
    parts: tuple[npt.NDArray[Any], npt.NDArray[Any]]
    rows: mx.array
    scales: npt.NDArray[np.float32] | None
    scale_rows: mx.array | None

    @classmethod
    def of(cls, arena: Arena) -> HostArena:
        """Raises `UnsupportedModelError` for an arena that the host cannot address."""
        shape = arena.shape
        bits = arena.array
        if not shape.quantized:
            bits = arena.array.view(_BITS[shape.dtype.size])
        data = _host_view(bits, arena.array)
        parts = _parts(data, shape)
        rows = arena.array.reshape(-1, BLOCK_TOKENS * _unit(shape))
        if arena.scales is None:
            return cls(shape, data, parts, rows, None, None)
        scales = _host_view(arena.scales, arena.scales)
        scale_rows = arena.scales.reshape(-1, BLOCK_TOKENS)
        return cls(shape, data, parts, rows, scales, scale_rows)

    def write(
        self,
        blocks: npt.NDArray[np.int32],
        slots: npt.NDArray[np.int32],
        layer: int,
        part: int,
        new: mx.array,
    ) -> None:
        """Store evaluated `new` `[rows, kv_heads, query_len, dim]`.

        `blocks` and `slots` `[rows, query_len]` say where; `part` is 0 for keys.
        """
        heads = np.arange(self.shape.kv_heads)[None, :, None]
        target_index = (blocks[:, None], layer, heads, slots[:, None])
        if self.scales is None:
            bits = np.array(new.view(_BITS[self.shape.dtype.size]), copy=False)
            self.parts[part][target_index] = bits
            return
        quantized, scales = _quantize(new)
        self.parts[part][target_index] = quantized
        self.scales[:, :, part][target_index] = scales

    def take(self, index: mx.array, part: int) -> mx.array:
        """The planes at `index` `[rows, heads, blocks]`, counted in keys and values.

        `part` is 0 where they are keys, 1 where they are values.
        `[rows, heads, blocks * BLOCK_TOKENS, dim]` in the model's type.
        """
        rows, heads, blocks = index.shape
        tokens = blocks * BLOCK_TOKENS
        width = self.shape.value_dim if part else self.shape.key_dim
        row_index = index
        if self.shape.is_uneven:
            row_index = self._row_index(index, part)
        taken = mx.take(self.rows, row_index, axis=0)
        taken = taken.reshape(rows, heads, tokens, width)
        if self.scale_rows is not None:
            scales = mx.take(self.scale_rows, index, axis=0)
            scales = scales.reshape(rows, heads, tokens, 1)
            taken = (taken.astype(mx.float32) * scales).astype(self.shape.dtype)
        return taken

    def _row_index(self, index: mx.array, part: int) -> mx.array:
        """The planes' places in `rows`: `[rows, heads, blocks, units of a plane]`."""
        shape = self.shape
        unit = _unit(shape)
        key_units = shape.key_dim // unit
        value_units = shape.value_dim // unit
        layer = index // (2 * shape.kv_heads)
        begin = layer * (shape.kv_heads * (key_units + value_units))
        head = index % shape.kv_heads
        if part == 0:
            begin = begin + head * key_units
            return begin[..., None] + mx.arange(key_units, dtype=mx.uint32)
        begin = begin + shape.kv_heads * key_units + head * value_units
        return begin[..., None] + mx.arange(value_units, dtype=mx.uint32)

    def save(self, block: int) -> bytes:
        """A block's elements, then its scales."""
        payload: bytes = self.data[block].tobytes()
        if self.scales is not None:
            payload += self.scales[block].tobytes()
        return payload

    def load(self, block: int, payload: bytes | bytearray) -> None:
        """Write what `save` gave. Raises `ValueError` for a wrong size."""
        if len(payload) != self.shape.block_bytes:
            raise ValueError(
                f"a saved block has {len(payload)} bytes, "
                f"and this arena's have {self.shape.block_bytes}"
            )
        target = self.data[block]
        data = np.frombuffer(payload, target.dtype, target.size)
        self.data[block] = data.reshape(target.shape)
        if self.scales is not None:
            offset = self.shape.data_bytes
            scales = np.frombuffer(payload, np.float32, offset=offset)
            self.scales[block] = scales.reshape(self.scales[block].shape)

    def copy(self, pairs: Sequence[tuple[int, int]]) -> None:
        """Copy blocks, `(source, destination)` each."""
        for source, destination in pairs:
            self.data[destination] = self.data[source]
            if self.scales is not None:
                self.scales[destination] = self.scales[source]


def _unit(shape: KVShape) -> int:
    """Elements of a token in one of an arena's `rows`."""
    return math.gcd(shape.key_dim, shape.value_dim)


def _parts(
    data: npt.NDArray[Any], shape: KVShape
) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Views of the keys and of the values."""
    if not shape.is_uneven:
        return data[:, :, 0], data[:, :, 1]
    split = shape.kv_heads * BLOCK_TOKENS * shape.key_dim
    planes = (*data.shape[:2], shape.kv_heads, BLOCK_TOKENS)
    keys = data[:, :, :split].reshape(*planes, shape.key_dim)
    values = data[:, :, split:].reshape(*planes, shape.value_dim)
    return keys, values


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


def _quantize(values: mx.array) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float32]]:
    """int8 values and one scale a token and head.

    The largest magnitude becomes 127, as in the kernels.
    """
    host = np.array(values.astype(mx.float32), copy=False)
    peak = np.abs(host).max(axis=-1, keepdims=True)
    inverse = np.zeros_like(peak)
    np.divide(np.float32(127), peak, out=inverse, where=peak > 0)
    quantized = np.rint(host * inverse).astype(np.int8)
    return quantized, (peak / np.float32(127))[..., 0]
