"""Typed launch functions for the paged KV kernels: shapes are checked by name.

The ordering contract: every writer takes the newest fence and returns the next; every
reader takes the newest fence. Inside a step nothing else may touch the arena or the
scratch. README.md holds each kernel's contract.
"""

from __future__ import annotations

import mlx.core as mx

from rvllm_local.metal_kernels import descriptor as layout
from rvllm_local.metal_kernels.arguments import Rotation, require
from rvllm_local.metal_kernels.block_kernels import BlockKernels
from rvllm_local.metal_kernels.config import FENCE_SIZE
from rvllm_local.metal_kernels.decode_kernels import add_rotation
from rvllm_local.metal_kernels.latent_kernels import LatentKernels
from rvllm_local.metal_kernels.launch import Dispatch
from rvllm_local.metal_kernels.launches import Defines

GATHER_THREADS = 256


class KernelSet(BlockKernels, LatentKernels):
    """All kernels of one attention shape. No array is ever read on the host."""

    def kv_write(
        self,
        arena: mx.array,
        scales: mx.array | None,
        keys: mx.array,
        values: mx.array,
        descriptor: mx.array,
        layer: mx.array,
        fence: mx.array,
        rotation: Rotation | None = None,
        *,
        is_latent: bool = False,
    ) -> mx.array:
        """Write `keys` and `values` `[rows, kv_heads, q_len, D]` in place.

        Any strides and any q_len; values may have a size of their own. `rotation` turns
        the keys, or the values of latents (q_len 1). Returns the next fence.
        """
        c = self.config
        inputs = self._layer_inputs(arena, scales, layer, fence)
        rows, _, q_len, _ = keys.shape
        shape = (rows, c.kv_heads, q_len)
        require("keys", keys, (*shape, c.head_dim), c.dtype)
        require("values", values, (*shape, c.value_width), c.dtype)
        layout.max_blocks_of(descriptor.size, rows)
        inputs |= {"keys": keys, "values": values}
        inputs |= {"descriptor": descriptor, "layer": layer, "fence": fence}
        defines: Defines = {}
        turned = values if is_latent else keys
        add_rotation(defines, inputs, rotation, turned.shape)
        if is_latent:
            defines["RV_TURNS_VALUES"] = 1
        outputs = ("fence_out",)
        parts = ("row_parts.h",)
        text = self._text("kv_write", defines, tuple(inputs), outputs, parts)
        dispatch = Dispatch(
            kernel=text,
            inputs=tuple(inputs.values()),
            grid=(32 * q_len, c.kv_heads, rows),
            threadgroup=(32, 1, 1),
            shapes=((FENCE_SIZE,),),
            dtypes=(mx.int32,),
        )
        return self._run(dispatch)[0]

    def kv_gather(
        self,
        arena: mx.array,
        scales: mx.array | None,
        descriptor: mx.array,
        layer: mx.array,
        fence: mx.array,
        length: int,
        rows: int = 1,
    ) -> tuple[mx.array, mx.array]:
        """The rows' keys and values, dense, in the model's dtype.

        `[rows, kv_heads, length, D]` each, from the tables' first positions on; zeros
        past a row's context.
        """
        c = self.config
        inputs = self._layer_inputs(arena, scales, layer, fence)
        layout.max_blocks_of(descriptor.size, rows)
        if length < 1:
            raise ValueError(
                f"kv_gather needs a length of at least 1 token, not {length}"
            )
        inputs |= {"descriptor": descriptor, "layer": layer}
        inputs["length"] = mx.full((FENCE_SIZE,), length, dtype=mx.int32)
        inputs["fence"] = fence
        defines: Defines = {"RV_GATHER_THREADS": GATHER_THREADS}
        outputs = ("keys", "values")
        parts = ("row_parts.h",)
        text = self._text("kv_gather", defines, tuple(inputs), outputs, parts)
        vectors = length * (max(c.head_dim, c.value_width) // 8)
        groups = -(-vectors // GATHER_THREADS)
        shape = (rows, c.kv_heads, length)
        dispatch = Dispatch(
            kernel=text,
            inputs=tuple(inputs.values()),
            grid=(groups * GATHER_THREADS, 2, rows * c.kv_heads),
            threadgroup=(GATHER_THREADS, 1, 1),
            shapes=((*shape, c.head_dim), (*shape, c.value_width)),
            dtypes=(c.dtype, c.dtype),
        )
        keys, values = self._run(dispatch)
        return keys, values
