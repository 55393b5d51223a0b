"""Typed launch functions for the paged KV kernels: shapes are checked by name, then one dispatch is described.

The ordering contract: every writer takes the newest token and returns the next; every reader takes the newest
token. Inside a step nothing else may touch the arena or the scratch. See README.md for each kernel's contract.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import mlx.core as mx

from rvllm_local.metal_kernels import descriptor as layout
from rvllm_local.metal_kernels.config import (
    BLOCK,
    MAX_QUERY_LEN,
    TOKEN_SIZE,
    KernelConfig,
    text_language,
)
from rvllm_local.metal_kernels.decode import (
    DecodeCall,
    Tuning,
    default_tuning,
    uses_matrix_units,
)
from rvllm_local.metal_kernels.launch import (
    Dispatch,
    DispatchCounter,
    KernelText,
    Launcher,
    MLXLauncher,
    kernel_text,
)

GATHER_THREADS = 256
COPY_THREADS = 256


@dataclass(frozen=True, slots=True)
class Rotation:
    """Rotary embedding that a launch applies: `table` float32 `[rows, dims]` holds each row's cosines, then its sines.

    The first `dims` elements of a head are rotated; partners are neighbours with `pairs`, else half of `dims` apart.
    """

    table: mx.array
    pairs: bool = False


@dataclass(frozen=True, slots=True)
class NewTokens:
    """Keys and values `[rows, kv_heads, q_len, D]` that a decode launch writes before it attends to them."""

    keys: mx.array
    values: mx.array


class KernelSet:
    """The kernels of one attention shape. Arrays made here are constants; no array is ever read on the host."""

    def __init__(
        self,
        config: KernelConfig,
        *,
        backend: str | None = None,
        launcher: Launcher | None = None,
        counter: DispatchCounter | None = None,
        tuning: Tuning | None = None,
    ) -> None:
        self.config = config
        self.backend = text_language(backend)
        self.counter = DispatchCounter() if counter is None else counter
        self.tuning = default_tuning(config, self.backend) if tuning is None else tuning
        self._launcher: Launcher = MLXLauncher() if launcher is None else launcher
        self._texts: dict[tuple[object, ...], KernelText] = {}
        self._no_scales = mx.zeros((TOKEN_SIZE,), dtype=mx.float32)
        mx.eval(self._no_scales)

    @staticmethod
    def first_token() -> mx.array:
        """The token that starts a chain of steps: int32 `[8]`."""
        return mx.zeros((TOKEN_SIZE,), dtype=mx.int32)

    @staticmethod
    def layer_index(layer: int) -> mx.array:
        """A layer's number inside the arena as the kernels take it: int32 `[8]`, made once."""
        return mx.full((TOKEN_SIZE,), layer, dtype=mx.int32)

    def kv_write(
        self,
        arena: mx.array,
        scales: mx.array | None,
        keys: mx.array,
        values: mx.array,
        descriptor: mx.array,
        layer: mx.array,
        token: mx.array,
    ) -> mx.array:
        """Writes `keys`, `values` `[rows, kv_heads, q_len, D]` (any strides, any q_len) in place; the next token."""
        c = self.config
        scales = self._check_arena(arena, scales, token, layer)
        rows, kv_heads, q_len, head_dim = keys.shape
        _require("keys", keys, (rows, c.kv_heads, q_len, c.head_dim), c.dtype)
        _require("values", values, (rows, kv_heads, q_len, head_dim), c.dtype)
        layout.max_blocks_of(descriptor.size, rows)
        names, arrays = self._stored(arena, scales)
        inputs_named = (*names, "keys", "values", "descriptor", "layer", "token")
        text = self._text(
            "kv_write", {}, inputs_named, ("token_out",), ("row_parts.h",)
        )
        inputs = (*arrays, keys, values, descriptor, layer, token)
        grid = (32 * q_len, kv_heads, rows)
        return self._run(
            Dispatch(text, inputs, grid, (32, 1, 1), ((TOKEN_SIZE,),), (mx.int32,))
        )[0]

    def scratch_size(self, rows: int, query_len: int, max_blocks: int) -> int:
        """Floats that `paged_decode` needs as scratch for such a call; 0 where every row fits one split."""
        splits = self.tuning.splits.most(max_blocks)
        return (
            0
            if splits == 1
            else rows
            * self.config.num_heads
            * query_len
            * splits
            * (self.config.head_dim + 2)
        )

    def paged_decode(
        self,
        queries: mx.array,
        arena: mx.array,
        scales: mx.array | None,
        descriptor: mx.array,
        layer: mx.array,
        token: mx.array,
        scratch: mx.array,
        *,
        scale: float,
        window: int = 0,
        softcap: float = 0.0,
        sinks: mx.array | None = None,
        new: NewTokens | None = None,
        rotation: Rotation | None = None,
    ) -> tuple[mx.array, mx.array]:
        """Causal attention of `queries` `[rows, heads, q_len <= 8, D]` over each row's blocks: the same shape, and a token.

        The queries are the row's last `q_len` tokens; with `new` their keys and values are written first, and no other
        row of the call may read them. `rotation` turns queries and new keys (q_len 1). `window=0` sees everything;
        `softcap=0` caps nothing; `sinks` `[heads]` are logits that take weight but add no value. Rows with context 0
        give zeros. `scratch` float32 has at least `scratch_size` elements, and 8; it is written in place.
        """
        c = self.config
        scales = self._check_arena(arena, scales, token, layer)
        rows, heads, q_len, head_dim = queries.shape
        _require("queries", queries, (rows, c.num_heads, q_len, c.head_dim), c.dtype)
        if not 1 <= q_len <= MAX_QUERY_LEN:
            raise ValueError(
                f"paged_decode takes 1 to {MAX_QUERY_LEN} query tokens a row, not {q_len}; use kv_gather"
            )
        if sinks is not None and sinks.shape != (heads,):
            raise ValueError(f"sinks must have shape ({heads},), not {sinks.shape}")
        if window < 0 or softcap < 0:
            raise ValueError(
                f"window and softcap must not be negative, not {window} and {softcap}"
            )
        max_blocks = layout.max_blocks_of(descriptor.size, rows)
        splits, needed = (
            self.tuning.splits.most(max_blocks),
            self.scratch_size(rows, q_len, max_blocks),
        )
        _check_scratch(scratch, needed)
        defines = DecodeCall(q_len, scale, window, softcap).defines(
            c, self.tuning, self.backend
        )
        names, arrays = self._stored(arena, scales)
        inputs = {
            "queries": queries,
            **dict(zip(names, arrays, strict=True)),
            "descriptor": descriptor,
            "layer": layer,
        }
        inputs["token"] = token
        if new is not None:
            _require(
                "new keys", new.keys, (rows, c.kv_heads, q_len, c.head_dim), c.dtype
            )
            _require(
                "new values", new.values, (rows, c.kv_heads, q_len, c.head_dim), c.dtype
            )
            defines["RV_NEW"] = 1
            inputs |= {"keys": new.keys, "values": new.values}
        if rotation is not None:
            inputs["rope"] = _checked_table(rotation, rows, q_len, head_dim)
            defines["RV_ROPE_DIMS"] = rotation.table.shape[1]
            if rotation.pairs:
                defines["RV_ROPE_PAIRS"] = 1
        if splits == 1:
            defines["RV_FINAL"] = 1
            if sinks is not None:
                defines["RV_SINKS"] = 1
                inputs["sinks"] = sinks.astype(mx.float32)
            found = self._attend(
                defines, inputs, rows, splits, (("out", queries.shape, c.dtype),)
            )
            return found[0], found[1]
        (token,) = self._attend(
            defines, {**inputs, "scratch": scratch}, rows, splits, ()
        )
        return self._combine(
            scratch,
            descriptor,
            token,
            sinks,
            (rows, heads, q_len, head_dim),
            splits,
            window,
        )

    def _attend(
        self,
        defines: dict[str, object],
        inputs: dict[str, mx.array],
        rows: int,
        splits: int,
        outputs: tuple[tuple[str, tuple[int, ...], mx.Dtype], ...],
    ) -> tuple[mx.array, ...]:
        """The attention kernel itself; its token is the last output."""
        names = (*(name for name, _, _ in outputs), "token_out")
        body = (
            "paged_decode.cu"
            if uses_matrix_units(self.config, self.backend)
            else "paged_decode.metal"
        )
        parts = (
            "row_parts.h",
            "decode_parts.h",
            *(("ptx.h", "mma_parts.h") if body.endswith(".cu") else ()),
        )
        text = self._text("paged_decode", defines, tuple(inputs), names, parts, body)
        threads = 32 * self.tuning.simdgroups
        tiles = int(str(defines["RV_TILES"]))
        return self._run(
            Dispatch(
                text,
                tuple(inputs.values()),
                (threads * self.config.kv_heads * tiles, rows, splits),
                (threads, 1, 1),
                (*(shape for _, shape, _ in outputs), (TOKEN_SIZE,)),
                (*(dtype for _, _, dtype in outputs), mx.int32),
            )
        )

    def rope_table(
        self, descriptor: mx.array, frequencies: mx.array, rows: int
    ) -> mx.array:
        """A `Rotation.table` for each row's newest token: float32 `[rows, dims]`; `frequencies` float32 `[dims / 2]`."""
        _require("frequencies", frequencies, (frequencies.size,), mx.float32)
        layout.max_blocks_of(descriptor.size, rows)
        dims = 2 * frequencies.size
        text = self._text(
            "rope_table",
            {"RV_ROPE_DIMS": dims},
            ("descriptor", "frequencies"),
            ("table",),
        )
        inputs = (descriptor, frequencies)
        return self._run(
            Dispatch(
                text,
                inputs,
                (32 * rows, 1, 1),
                (32, 1, 1),
                ((rows, dims),),
                (mx.float32,),
            )
        )[0]

    def kv_gather(
        self,
        arena: mx.array,
        scales: mx.array | None,
        descriptor: mx.array,
        layer: mx.array,
        token: mx.array,
        length: int,
    ) -> tuple[mx.array, mx.array]:
        """One row's keys and values, dense: two `[1, kv_heads, length, D]` in the model's dtype.

        Starts at the table's first position; zeros past the context.
        """
        c = self.config
        scales = self._check_arena(arena, scales, token, layer)
        layout.max_blocks_of(descriptor.size, 1)
        if length < 1:
            raise ValueError(
                f"kv_gather needs a length of at least 1 token, not {length}"
            )
        names, arrays = self._stored(arena, scales)
        names = (*names, "descriptor", "layer", "length", "token")
        text = self._text(
            "kv_gather",
            {"RV_GATHER_THREADS": GATHER_THREADS},
            names,
            ("keys", "values"),
        )
        count = mx.full((TOKEN_SIZE,), length, dtype=mx.int32)
        groups = -(-length * (c.head_dim // 8) // GATHER_THREADS)
        shape = (1, c.kv_heads, length, c.head_dim)
        grid = (groups * GATHER_THREADS, 2, c.kv_heads)
        inputs = (*arrays, descriptor, layer, count, token)
        keys, values = self._run(
            Dispatch(
                text,
                inputs,
                grid,
                (GATHER_THREADS, 1, 1),
                (shape, shape),
                (c.dtype, c.dtype),
            )
        )
        return keys, values

    def kv_copy(
        self, arena: mx.array, scales: mx.array | None, pairs: mx.array, token: mx.array
    ) -> mx.array:
        """Copies blocks in place, all layers: `pairs` int32 `[n, 2]` of (source, destination); the next token.

        A pair with equal ends does nothing. A destination may not be another pair's source.
        """
        scales = self._check_arena(arena, scales, token, None)
        if (
            pairs.ndim != 2
            or pairs.shape[1] != 2
            or pairs.shape[0] < 1
            or pairs.dtype != mx.int32
        ):
            raise ValueError(
                f"pairs must be int32 of shape (n, 2), not {pairs.dtype} of {pairs.shape}"
            )
        if pairs.size < TOKEN_SIZE:
            pairs = mx.pad(pairs, [(0, TOKEN_SIZE // 2 - pairs.shape[0]), (0, 0)])
        defines, words = self._block_defines()
        names, arrays = self._stored(arena, scales)
        text = self._text(
            "kv_copy", defines, (*names, "pairs", "token"), ("token_out",)
        )
        groups = -(-words // COPY_THREADS)
        grid = (groups * COPY_THREADS, pairs.shape[0], 1)
        inputs = (*arrays, pairs, token)
        return self._run(
            Dispatch(
                text, inputs, grid, (COPY_THREADS, 1, 1), ((TOKEN_SIZE,),), (mx.int32,)
            )
        )[0]

    def kv_save(
        self,
        arena: mx.array,
        scales: mx.array | None,
        blocks: mx.array,
        token: mx.array,
        count: int,
    ) -> mx.array:
        """The first `count` of `blocks` int32 `[>= 8]` as words: uint32 `[count, block bytes / 4]`, elements then scales."""
        scales = self._check_arena(arena, scales, token, None)
        _require("blocks", blocks, (max(TOKEN_SIZE, count),), mx.int32)
        defines, words = self._block_defines()
        names, arrays = self._stored(arena, scales)
        text = self._text("kv_save", defines, (*names, "blocks", "token"), ("saved",))
        groups = -(-words // COPY_THREADS)
        grid = (groups * COPY_THREADS, count, 1)
        inputs = (*arrays, blocks, token)
        return self._run(
            Dispatch(
                text,
                inputs,
                grid,
                (COPY_THREADS, 1, 1),
                ((count, 4 * words),),
                (mx.uint32,),
            )
        )[0]

    def kv_load(
        self,
        arena: mx.array,
        scales: mx.array | None,
        blocks: mx.array,
        saved: mx.array,
        token: mx.array,
    ) -> mx.array:
        """Writes `saved` (as `kv_save` gave it) into the first blocks of `blocks`, in place; the next token."""
        scales = self._check_arena(arena, scales, token, None)
        defines, words = self._block_defines()
        _require("saved", saved, (saved.shape[0], 4 * words), mx.uint32)
        _require("blocks", blocks, (max(TOKEN_SIZE, saved.shape[0]),), mx.int32)
        names, arrays = self._stored(arena, scales)
        text = self._text(
            "kv_load", defines, (*names, "blocks", "saved", "token"), ("token_out",)
        )
        groups = -(-words // COPY_THREADS)
        grid = (groups * COPY_THREADS, saved.shape[0], 1)
        inputs = (*arrays, blocks, saved, token)
        return self._run(
            Dispatch(
                text, inputs, grid, (COPY_THREADS, 1, 1), ((TOKEN_SIZE,),), (mx.int32,)
            )
        )[0]

    def _block_defines(self) -> tuple[dict[str, object], int]:
        """The sizes of one block in 16-byte words, as macros, and their sum."""
        c = self.config
        tokens = c.num_layers * 2 * c.kv_heads * BLOCK  # K and V rows of one block
        block_words = tokens * c.head_dim * c.kv_dtype.size // 16
        scale_words = tokens * 4 // 16 if c.quantized else 0
        defines: dict[str, object] = {
            "RV_BLOCK_WORDS": block_words, "RV_SCALE_WORDS": scale_words, "RV_COPY_THREADS": COPY_THREADS
        }  # fmt: skip
        return defines, block_words + scale_words

    def _stored(
        self, arena: mx.array, scales: mx.array
    ) -> tuple[tuple[str, ...], tuple[mx.array, ...]]:
        """The arena's inputs: each bound buffer costs time at every launch, so scales only where there are any."""
        return (
            (("arena", "scales"), (arena, scales))
            if self.config.quantized
            else (("arena",), (arena,))
        )

    def _combine(
        self,
        scratch: mx.array,
        descriptor: mx.array,
        token: mx.array,
        sinks: mx.array | None,
        shape: tuple[int, ...],
        splits: int,
        window: int,
    ) -> tuple[mx.array, mx.array]:
        rows, heads, q_len, _ = shape
        defines: dict[str, object] = {
            "RV_HEADS": heads, "RV_QUERY_LEN": q_len, "RV_WINDOW": window, "RV_SPLITS": splits,
            "RV_SPLIT_BLOCKS(n)": self.tuning.splits.macro(), "RV_BATCH": min(self.tuning.combined, splits),
        }  # fmt: skip
        names: tuple[str, ...] = ("scratch", "descriptor", "token")
        inputs: tuple[mx.array, ...] = (scratch, descriptor, token)
        if sinks is not None:
            defines["RV_SINKS"] = 1
            names, inputs = (*names, "sinks"), (*inputs, sinks.astype(mx.float32))
        text = self._text(
            "paged_combine", defines, names, ("out", "token_out"), ("decode_parts.h",)
        )
        grid = (32 * heads * q_len, rows, 1)
        shapes = (shape, (TOKEN_SIZE,))
        out, token = self._run(
            Dispatch(
                text, inputs, grid, (32, 1, 1), shapes, (self.config.dtype, mx.int32)
            )
        )
        return out, token

    def _text(
        self,
        kind: str,
        defines: Mapping[str, object],
        inputs: tuple[str, ...],
        outputs: tuple[str, ...],
        parts: tuple[str, ...] = (),
        body: str = "",
    ) -> KernelText:
        key = (kind, *defines.items())
        text = self._texts.get(key)
        if text is None:
            every = {**self.config.defines(self.backend), **defines}
            body = body or f"{kind}.metal"
            text = self._texts[key] = kernel_text(
                kind, body, self.backend, every, inputs, outputs, parts
            )
        return text

    def _run(self, dispatch: Dispatch) -> tuple[mx.array, ...]:
        self.counter.add({dispatch.kernel.kind: 1})
        return tuple(self._launcher(dispatch))

    def _check_arena(
        self,
        arena: mx.array,
        scales: mx.array | None,
        token: mx.array,
        layer: mx.array | None,
    ) -> mx.array:
        """Checks what every kernel takes; the scales, or a placeholder where the arena needs none."""
        c = self.config
        _require("arena", arena, c.arena_shape(arena.shape[0]), c.kv_dtype)
        _require("token", token, (TOKEN_SIZE,), mx.int32)
        if layer is not None:
            _require("layer", layer, (TOKEN_SIZE,), mx.int32)
        if not c.quantized:
            return self._no_scales
        if scales is None:
            raise ValueError(
                "an int8 arena needs its scales [blocks, layers, 2, kv_heads, 32] in float32"
            )
        _require("scales", scales, c.scales_shape(arena.shape[0]), mx.float32)
        return scales


def _require(
    name: str, array: mx.array, shape: tuple[int, ...], dtype: mx.Dtype
) -> None:
    if tuple(array.shape) != shape or array.dtype != dtype:
        raise ValueError(
            f"{name} must be {dtype} of shape {shape}, not {array.dtype} of {tuple(array.shape)}"
        )


def _check_scratch(scratch: mx.array, needed: int) -> None:
    least = max(TOKEN_SIZE, needed)
    if scratch.dtype != mx.float32 or scratch.ndim != 1 or scratch.size < least:
        raise ValueError(
            f"scratch must be float32 with {least} elements or more, not {scratch.dtype} of {scratch.shape}"
        )


def _checked_table(
    rotation: Rotation, rows: int, q_len: int, head_dim: int
) -> mx.array:
    table = rotation.table
    if (
        q_len != 1
        or table.ndim != 2
        or table.shape[0] != rows
        or table.shape[1] % 2
        or table.shape[1] > head_dim
    ):
        raise ValueError(
            f"a rotation needs one query token a row and a table [rows, dims <= {head_dim}], not {q_len} and {table.shape}"
        )
    _require("rotation table", table, table.shape, mx.float32)
    return table
