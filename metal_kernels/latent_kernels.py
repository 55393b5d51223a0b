"""Launch function of a decode step's attention over latents."""

from __future__ import annotations

import mlx.core as mx

from rvllm_local.errors import UnsupportedModelError
from rvllm_local.metal_kernels import descriptor as layout
from rvllm_local.metal_kernels.arguments import (
    NewTokens,
    Rotation,
    check_decode_options,
    check_scratch,
    require,
)
from rvllm_local.metal_kernels.decode_kernels import DecodeKernels, add_rotation
from rvllm_local.metal_kernels.latent import LatentCall, uses_matrix_units
from rvllm_local.metal_kernels.launch import Dispatch
from rvllm_local.metal_kernels.launches import Defines

_PARTS = ("row_parts.h", "decode_parts.h")
_LANE_PARTS = (*_PARTS, "latent_parts.h")
_MATRIX_PARTS = (*_PARTS, "ptx.h", "latent_mma.h")


class LatentKernels(DecodeKernels):
    """Attends to each row's latents. README.md holds the kernel's contract.

    The arena keeps a latent as the key and its rotated part as the value, of one head.
    """

    def latent_decode(
        self,
        queries: mx.array,
        rotated: mx.array,
        arena: mx.array,
        scales: mx.array | None,
        descriptor: mx.array,
        layer: mx.array,
        fence: mx.array,
        scratch: mx.array,
        *,
        scale: float,
        rotated_by: float = 1.0,
        new: NewTokens | None = None,
        rotation: Rotation | None = None,
    ) -> tuple[mx.array, mx.array]:
        """Causal attention of `queries` `[rows, heads, q_len <= 8, rank]`.

        `rotated` `[rows, heads, q_len, rope]` meets the rotated parts of the keys; it is
        multiplied by `rotated_by` first.
        Returns weighted latents in the shape of `queries`, and the next fence. `new`,
        `rotation` (of `rotated` and of new rotated parts), padding rows and `scratch`
        are as in `paged_decode`.
        """
        inputs = self._query_inputs(queries, rotated)
        arena_inputs = self._layer_inputs(arena, scales, layer, fence)
        inputs.update(arena_inputs)
        inputs["descriptor"] = descriptor
        inputs["layer"] = layer
        inputs["fence"] = fence
        rows, heads, q_len, _ = queries.shape
        check_decode_options(q_len, heads, 0, 0.0, None)
        max_blocks = layout.max_blocks_of(descriptor.size, rows)
        needed = self.scratch_size(rows, q_len, max_blocks)
        check_scratch(scratch, needed)
        call = LatentCall(q_len, scale, rotated_by)
        defines = call.defines(self.config, self.tuning, self.backend)
        self._add_new_tokens(defines, inputs, new)
        add_rotation(defines, inputs, rotation, rotated.shape)
        splits = self.tuning.splits.most(max_blocks)
        attend = self._attend_latents
        if splits == 1:
            return self._attend_whole(attend, defines, inputs)
        fence = self._attend_split(attend, defines, inputs, scratch, splits)
        return self._combine(queries, scratch, descriptor, fence, None, splits, 0)

    def _query_inputs(
        self, queries: mx.array, rotated: mx.array
    ) -> dict[str, mx.array]:
        """The checked queries. Raises `UnsupportedModelError` for several KV heads."""
        c = self.config
        if c.kv_heads != 1:
            raise UnsupportedModelError(
                f"latents are one KV head for all query heads, not {c.kv_heads}"
            )
        rows, _, q_len, _ = queries.shape
        latent_shape = (rows, c.num_heads, q_len, c.head_dim)
        rotated_shape = (rows, c.num_heads, q_len, c.value_width)
        require("queries", queries, latent_shape, c.dtype)
        require("rotated", rotated, rotated_shape, c.dtype)
        return {"queries": queries, "rotated": rotated}

    def _attend_latents(
        self,
        defines: Defines,
        inputs: dict[str, mx.array],
        splits: int,
        outputs: tuple[str, ...],
        shapes: tuple[tuple[int, ...], ...],
        dtypes: tuple[mx.Dtype, ...],
    ) -> tuple[mx.array, ...]:
        """The attention kernel itself."""
        body = "latent_decode.metal"
        parts: tuple[str, ...] = _LANE_PARTS
        if uses_matrix_units(self.config, self.backend):
            body = "latent_decode.cu"
            parts = _MATRIX_PARTS
        names = tuple(inputs)
        text = self._text("latent_decode", defines, names, outputs, parts, body)
        threads = 32 * int(str(defines["RV_SIMDGROUPS"]))
        tiles = int(str(defines["RV_TILES"]))
        rows = inputs["queries"].shape[0]
        dispatch = Dispatch(
            kernel=text,
            inputs=tuple(inputs.values()),
            grid=(threads * tiles, rows, splits),
            threadgroup=(threads, 1, 1),
            shapes=shapes,
            dtypes=dtypes,
        )
        return self._run(dispatch)
