"""One arena as the host writes it through numpy, and as MLX gathers from it."""

from __future__ import annotations

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

    One of `rows` is one head's keys (or values) of a block.

    data: `[blocks, layers, 2, kv_heads, BLOCK_TOKENS, width]`, bit patterns or int8.
    rows: `[blocks * layers * 2 * kv_heads, BLOCK_TOKENS * width]`.
    scale_rows: `[blocks * layers * 2 * kv_heads, BLOCK_TOKENS]`, for int8 alone.
    """

    shape: KVShape
    data: npt.NDArray[Any]
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
        rows = arena.array.reshape(-1, BLOCK_TOKENS * shape.width)
        if arena.scales is None:
            return cls(shape, data, rows, None, None)
        scales = _host_view(arena.scales, arena.scales)
        scale_rows = arena.scales.reshape(-1, BLOCK_TOKENS)
        return cls(shape, data, rows, scales, scale_rows)

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
        target_index = (blocks[:, None], layer, part, heads, slots[:, None])
        dim = new.shape[-1]
        if self.scales is None:
            bits = np.array(new.view(_BITS[self.shape.dtype.size]), copy=False)
            self.data[(*target_index, slice(dim))] = bits
            return
        quantized, scales = _quantize(new)
        self.data[(*target_index, slice(dim))] = quantized
        self.scales[target_index] = scales

    def take(self, index: mx.array, dim: int) -> mx.array:
        """The planes at `index` `[rows, heads, blocks]` of `rows`.

        `[rows, heads, blocks * BLOCK_TOKENS, dim]` in the model's type.
        """
        rows, heads, blocks = index.shape
        tokens = blocks * BLOCK_TOKENS
        width = self.shape.width
        taken = mx.take(self.rows, index, axis=0)
        taken = taken.reshape(rows, heads, tokens, width)
        if self.scale_rows is not None:
            scales = mx.take(self.scale_rows, index, axis=0)
            scales = scales.reshape(rows, heads, tokens, 1)
            taken = (taken.astype(mx.float32) * scales).astype(self.shape.dtype)
        return taken if dim == width else taken[..., :dim]

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
