"""Launch functions of a decode step's attention, and of the rotation that it applies."""

from __future__ import annotations

from collections.abc import Callable

import mlx.core as mx

from rvllm_local.errors import UnsupportedModelError
from rvllm_local.metal_kernels import descriptor as layout
from rvllm_local.metal_kernels.arguments import (
    NewTokens,
    Rotation,
    check_decode_options,
    check_scratch,
    checked_table,
    require,
)
from rvllm_local.metal_kernels.config import FENCE_SIZE
from rvllm_local.metal_kernels.decode import DecodeCall, uses_matrix_units
from rvllm_local.metal_kernels.launch import Dispatch
from rvllm_local.metal_kernels.launches import Defines, KernelLaunches

_ATTEND_PARTS = ("row_parts.h", "decode_parts.h")
_MATRIX_PARTS = ("ptx.h", "mma_parts.h")


# Launches an attention kernel: defines, inputs and splits, then what comes out.
Attend = Callable[..., tuple[mx.array, ...]]


class DecodeKernels(KernelLaunches):
    """Attends to each row's blocks. README.md holds each kernel's contract."""

    def scratch_size(
        self,
        rows: int,
        query_len: int,
        max_blocks: int,
    ) -> int:
        """Floats of scratch that such a `paged_decode` needs.

        0 where one split serves.
        """
        splits = self.tuning.splits.most(max_blocks)
        if splits == 1:
            return 0
        query_rows = rows * self.config.num_heads * query_len
        return query_rows * splits * (self.config.head_dim + 2)

    def paged_decode(
        self,
        queries: mx.array,
        arena: mx.array,
        scales: mx.array | None,
        descriptor: mx.array,
        layer: mx.array,
        fence: mx.array,
        scratch: mx.array,
        *,
        scale: float,
        window: int = 0,
        softcap: float = 0.0,
        sinks: mx.array | None = None,
        new: NewTokens | None = None,
        rotation: Rotation | None = None,
    ) -> tuple[mx.array, mx.array]:
        """Causal attention of `queries` `[rows, heads, q_len <= 8, D]`.

        Returns the same shape, and the next fence. The queries are the row's last
        `q_len` tokens. With `new` their keys and values are written first, and no other
        row of the call may read them. `rotation` turns queries and new keys (q_len 1).
        `window=0` sees everything; `softcap=0` caps nothing; `sinks` `[heads]` are
        logits that take weight but add no value. Rows with context 0 give zeros.
        `scratch` float32 has at least `scratch_size` elements, and 8; it is written in
        place.
        """
        c = self.config
        if c.is_uneven:
            raise UnsupportedModelError(
                f"no kernel attends to keys of {c.head_dim} and values of "
                f"{c.value_width} that are no latents"
            )
        inputs = {"queries": queries}
        inputs |= self._layer_inputs(arena, scales, layer, fence)
        inputs |= {"descriptor": descriptor, "layer": layer, "fence": fence}
        rows, heads, q_len, _ = queries.shape
        require("queries", queries, (rows, c.num_heads, q_len, c.head_dim), c.dtype)
        check_decode_options(q_len, heads, window, softcap, sinks)
        max_blocks = layout.max_blocks_of(descriptor.size, rows)
        check_scratch(scratch, self.scratch_size(rows, q_len, max_blocks))
        call = DecodeCall(q_len, scale, window, softcap)
        defines = call.defines(c, self.tuning, self.backend)
        self._add_new_tokens(defines, inputs, new)
        add_rotation(defines, inputs, rotation, queries.shape)
        splits = self.tuning.splits.most(max_blocks)
        if splits == 1:
            _add_sinks(defines, inputs, sinks)
            return self._attend_whole(self._attend, defines, inputs)
        fence = self._attend_split(self._attend, defines, inputs, scratch, splits)
        return self._combine(queries, scratch, descriptor, fence, sinks, splits, window)

    def _add_new_tokens(
        self,
        defines: Defines,
        inputs: dict[str, mx.array],
        new: NewTokens | None,
    ) -> None:
        if new is None:
            return
        c = self.config
        rows, _, q_len, _ = inputs["queries"].shape
        shape = (rows, c.kv_heads, q_len)
        require("new keys", new.keys, (*shape, c.head_dim), c.dtype)
        require("new values", new.values, (*shape, c.value_width), c.dtype)
        defines["RV_NEW"] = 1
        inputs["keys"] = new.keys
        inputs["values"] = new.values

    def _attend_whole(
        self,
        attend: Attend,
        defines: Defines,
        inputs: dict[str, mx.array],
    ) -> tuple[mx.array, mx.array]:
        """Every row fits one split: the attention kernel writes the output itself."""
        defines["RV_FINAL"] = 1
        out, fence = attend(
            defines,
            inputs,
            1,
            outputs=("out", "fence_out"),
            shapes=(inputs["queries"].shape, (FENCE_SIZE,)),
            dtypes=(self.config.dtype, mx.int32),
        )
        return out, fence

    def _attend_split(
        self,
        attend: Attend,
        defines: Defines,
        inputs: dict[str, mx.array],
        scratch: mx.array,
        splits: int,
    ) -> mx.array:
        """Each split's sums go to the scratch; the next fence."""
        inputs["scratch"] = scratch
        (fence,) = attend(
            defines,
            inputs,
            splits,
            outputs=("fence_out",),
            shapes=((FENCE_SIZE,),),
            dtypes=(mx.int32,),
        )
        return fence

    def _attend(
        self,
        defines: Defines,
        inputs: dict[str, mx.array],
        splits: int,
        outputs: tuple[str, ...],
        shapes: tuple[tuple[int, ...], ...],
        dtypes: tuple[mx.Dtype, ...],
    ) -> tuple[mx.array, ...]:
        """The attention kernel itself."""
        body = "paged_decode.metal"
        parts: tuple[str, ...] = _ATTEND_PARTS
        if uses_matrix_units(self.config, self.backend):
            body = "paged_decode.cu"
            parts += _MATRIX_PARTS
        names = tuple(inputs)
        text = self._text("paged_decode", defines, names, outputs, parts, body)
        threads = 32 * self.tuning.simdgroups
        tiles = int(str(defines["RV_TILES"]))
        rows = inputs["queries"].shape[0]
        dispatch = Dispatch(
            kernel=text,
            inputs=tuple(inputs.values()),
            grid=(threads * self.config.kv_heads * tiles, rows, splits),
            threadgroup=(threads, 1, 1),
            shapes=shapes,
            dtypes=dtypes,
        )
        return self._run(dispatch)

    def _combine(
        self,
        queries: mx.array,
        scratch: mx.array,
        descriptor: mx.array,
        fence: mx.array,
        sinks: mx.array | None,
        splits: int,
        window: int,
    ) -> tuple[mx.array, mx.array]:
        """Merge the splits of each row."""
        rows, heads, q_len, _ = queries.shape
        defines: Defines = {
            "RV_HEADS": heads,
            "RV_QUERY_LEN": q_len,
            "RV_WINDOW": window,
            "RV_SPLITS": splits,
            "RV_SPLIT_BLOCKS(n)": self.tuning.splits.macro(),
            "RV_BATCH": min(self.tuning.combined, splits),
            "RV_SLICES": self.tuning.slices,
            "RV_SHARE": self.config.head_dim // self.tuning.slices,
        }
        inputs = {"scratch": scratch, "descriptor": descriptor, "fence": fence}
        _add_sinks(defines, inputs, sinks)
        outputs = ("out", "fence_out")
        parts = ("decode_parts.h",)
        text = self._text("paged_combine", defines, tuple(inputs), outputs, parts)
        dispatch = Dispatch(
            kernel=text,
            inputs=tuple(inputs.values()),
            grid=(32 * heads * q_len * self.tuning.slices, rows, 1),
            threadgroup=(32, 1, 1),
            shapes=(queries.shape, (FENCE_SIZE,)),
            dtypes=(self.config.dtype, mx.int32),
        )
        out, fence = self._run(dispatch)
        return out, fence

    def rope_table(
        self,
        descriptor: mx.array,
        frequencies: mx.array,
        rows: int,
    ) -> mx.array:
        """A `Rotation.table` for each row's newest token: float32 `[rows, dims]`.

        `frequencies` is float32 `[dims / 2]`.
        """
        require("frequencies", frequencies, (frequencies.size,), mx.float32)
        layout.max_blocks_of(descriptor.size, rows)
        dims = 2 * frequencies.size
        defines: Defines = {"RV_ROPE_DIMS": dims}
        names = ("descriptor", "frequencies")
        text = self._text("rope_table", defines, names, ("table",))
        dispatch = Dispatch(
            kernel=text,
            inputs=(descriptor, frequencies),
            grid=(32 * rows, 1, 1),
            threadgroup=(32, 1, 1),
            shapes=((rows, dims),),
            dtypes=(mx.float32,),
        )
        return self._run(dispatch)[0]


def _add_sinks(
    defines: Defines,
    inputs: dict[str, mx.array],
    sinks: mx.array | None,
) -> None:
    if sinks is None:
        return
    defines["RV_SINKS"] = 1
    inputs["sinks"] = sinks.astype(mx.float32)


def add_rotation(
    defines: Defines,
    inputs: dict[str, mx.array],
    rotation: Rotation | None,
    shape: tuple[int, ...],
) -> None:
    """Have a launch rotate arrays of `shape` `[rows, heads, q_len, D]`."""
    if rotation is None:
        return
    rows, _, q_len, head_dim = shape
    inputs["rope"] = checked_table(rotation, rows, q_len, head_dim)
    defines["RV_ROPE_DIMS"] = rotation.table.shape[1]
    if rotation.pairs:
        defines["RV_ROPE_PAIRS"] = 1
