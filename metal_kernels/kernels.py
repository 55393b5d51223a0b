"""Typed launch functions for the paged KV kernels: shapes are checked by name, then one dispatch is described.

The ordering contract: every writer takes the newest token and returns the next; every reader takes the newest
token. Inside a step nothing else may touch the arena. See README.md for each kernel's contract.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import mlx.core as mx

from rvllm_local.errors import UnsupportedModelError
from rvllm_local.metal_kernels import descriptor as layout
from rvllm_local.metal_kernels.launch import Dispatch, DispatchCounter, KernelText, Launcher, MLXLauncher, kernel_text
from rvllm_local.metal_kernels.splits import max_splits, split_macro

HEAD_DIMS = (16, 32, 64, 80, 96, 128, 192, 256)
MAX_GROUP = 16
MAX_QUERY_LEN = 8
BLOCK = layout.BLOCK_TOKENS
SIMDGROUPS = 4  # a threadgroup of paged_decode
GATHER_THREADS = 256
COPY_THREADS = 256
TOKEN_SIZE = 8  # fewer elements would move the token to Metal's constant address space
QUERY_TILE = {"metal": 4, "cuda": 8}  # query rows in registers; 8 would spill on Apple's 128 registers

_KINDS = {mx.float32: 0, mx.float16: 1, mx.bfloat16: 2, mx.int8: 3}
_TYPES = {
    "metal": {mx.float32: "float", mx.float16: "half", mx.bfloat16: "bfloat16_t", mx.int8: "int8_t"},
    "cuda": {mx.float32: "float", mx.float16: "__half", mx.bfloat16: "__nv_bfloat16", mx.int8: "int8_t"},
}


def default_backend() -> str:
    """`"metal"` or `"cuda"` where MLX can launch there, else `"none"`: kernels can be described, not run."""
    if mx.metal.is_available():
        return "metal"
    cuda = getattr(mx, "cuda", None)
    return "cuda" if cuda is not None and cuda.is_available() else "none"


@dataclass(frozen=True, slots=True)
class KernelConfig:
    """The attention shape that one `KernelSet` serves.

    Raises `UnsupportedModelError` for a shape that the kernels have no variant for, naming it.
    """

    head_dim: int
    num_heads: int
    kv_heads: int
    num_layers: int
    dtype: mx.Dtype
    kv_dtype: mx.Dtype

    def __post_init__(self) -> None:
        serve = "; the reference attention serves this model instead"
        if self.head_dim not in HEAD_DIMS:
            raise UnsupportedModelError(f"no kernel for head size {self.head_dim} (there are {HEAD_DIMS}){serve}")
        if self.kv_heads < 1 or self.num_heads % self.kv_heads:
            raise UnsupportedModelError(f"{self.num_heads} heads do not divide into {self.kv_heads} KV heads{serve}")
        if self.group > MAX_GROUP:
            raise UnsupportedModelError(f"no kernel for {self.group} heads a KV head (at most {MAX_GROUP}){serve}")
        if self.dtype not in _KINDS or self.dtype == mx.int8:
            raise UnsupportedModelError(f"no kernel for activations in {self.dtype}{serve}")
        if self.kv_dtype not in _KINDS:
            raise UnsupportedModelError(f"no kernel for a KV arena in {self.kv_dtype}{serve}")
        if self.num_layers < 1:
            raise UnsupportedModelError(f"an arena needs at least one layer, not {self.num_layers}{serve}")

    @property
    def group(self) -> int:
        return self.num_heads // self.kv_heads

    @property
    def quantized(self) -> bool:
        return bool(self.kv_dtype == mx.int8)

    def arena_shape(self, num_blocks: int) -> tuple[int, ...]:
        return (num_blocks, self.num_layers, 2, self.kv_heads, BLOCK, self.head_dim)

    def scales_shape(self, num_blocks: int) -> tuple[int, ...]:
        return self.arena_shape(num_blocks)[:-1]


class KernelSet:
    """The kernels of one attention shape. Arrays made here are constants; no array is ever read on the host."""

    def __init__(
        self,
        config: KernelConfig,
        *,
        backend: str | None = None,
        launcher: Launcher | None = None,
        counter: DispatchCounter | None = None,
        query_tile: int | None = None,
    ) -> None:
        chosen = default_backend() if backend is None else backend
        self.config = config
        self.backend = "cuda" if chosen == "cuda" else "metal"
        self.counter = DispatchCounter() if counter is None else counter
        self.query_tile = QUERY_TILE[self.backend] if query_tile is None else query_tile
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
        text = self._text("kv_write", {}, (*names, "keys", "values", "descriptor", "layer", "token"), ("token_out",))
        inputs = (*arrays, keys, values, descriptor, layer, token)
        grid = (32 * q_len, kv_heads, rows)
        return self._run(Dispatch(text, inputs, grid, (32, 1, 1), ((TOKEN_SIZE,),), (mx.int32,)))[0]

    def paged_decode(
        self,
        queries: mx.array,
        arena: mx.array,
        scales: mx.array | None,
        descriptor: mx.array,
        layer: mx.array,
        token: mx.array,
        *,
        scale: float,
        window: int = 0,
        softcap: float = 0.0,
        sinks: mx.array | None = None,
    ) -> mx.array:
        """Causal attention of `queries` `[rows, heads, q_len <= 8, D]` over each row's blocks; the same shape out.

        The queries are the row's last `q_len` tokens. `window=0` sees everything; `softcap=0` caps nothing;
        `sinks` `[heads]` are logits that take weight but add no value. Rows with context 0 give zeros.
        """
        c = self.config
        scales = self._check_arena(arena, scales, token, layer)
        rows, heads, q_len, head_dim = queries.shape
        _require("queries", queries, (rows, c.num_heads, q_len, c.head_dim), c.dtype)
        if not 1 <= q_len <= MAX_QUERY_LEN:
            raise ValueError(f"paged_decode takes 1 to {MAX_QUERY_LEN} query tokens a row, not {q_len}; use kv_gather")
        if sinks is not None and sinks.shape != (heads,):
            raise ValueError(f"sinks must have shape ({heads},), not {sinks.shape}")
        if window < 0 or softcap < 0:
            raise ValueError(f"window and softcap must not be negative, not {window} and {softcap}")
        splits = max_splits(layout.max_blocks_of(descriptor.size, rows))
        defines = _decode_defines(c, q_len, self.query_tile, scale, window, softcap)
        names, arrays = self._stored(arena, scales)
        names = ("queries", *names, "descriptor", "layer", "token")
        text = self._text("paged_decode", defines, names, ("partial", "stats"), ("decode_parts.h",))
        tiles = _tiles(c.group * q_len, self.query_tile)[1]
        partial, stats = self._run(
            Dispatch(
                text,
                (queries, *arrays, descriptor, layer, token),
                (32 * SIMDGROUPS * c.kv_heads * tiles, rows, splits),
                (32 * SIMDGROUPS, 1, 1),
                ((rows, heads, q_len, splits, head_dim), (rows, heads, q_len, splits, 2)),
                (mx.float32, mx.float32),
            )
        )
        return self._combine(partial, stats, descriptor, sinks, q_len, window)

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
            raise ValueError(f"kv_gather needs a length of at least 1 token, not {length}")
        names, arrays = self._stored(arena, scales)
        names = (*names, "descriptor", "layer", "length", "token")
        text = self._text("kv_gather", {"RV_GATHER_THREADS": GATHER_THREADS}, names, ("keys", "values"))
        count = mx.full((TOKEN_SIZE,), length, dtype=mx.int32)
        groups = -(-length * (c.head_dim // 8) // GATHER_THREADS)
        shape = (1, c.kv_heads, length, c.head_dim)
        grid = (groups * GATHER_THREADS, 2, c.kv_heads)
        inputs = (*arrays, descriptor, layer, count, token)
        keys, values = self._run(
            Dispatch(text, inputs, grid, (GATHER_THREADS, 1, 1), (shape, shape), (c.dtype, c.dtype))
        )
        return keys, values

    def kv_copy(self, arena: mx.array, scales: mx.array | None, pairs: mx.array, token: mx.array) -> mx.array:
        """Copies blocks in place, all layers: `pairs` int32 `[n, 2]` of (source, destination); the next token.

        A pair with equal ends does nothing. A destination may not be another pair's source.
        """
        scales = self._check_arena(arena, scales, token, None)
        if pairs.ndim != 2 or pairs.shape[1] != 2 or pairs.shape[0] < 1 or pairs.dtype != mx.int32:
            raise ValueError(f"pairs must be int32 of shape (n, 2), not {pairs.dtype} of {pairs.shape}")
        if pairs.size < TOKEN_SIZE:
            pairs = mx.pad(pairs, [(0, TOKEN_SIZE // 2 - pairs.shape[0]), (0, 0)])
        defines, words = self._block_defines()
        names, arrays = self._stored(arena, scales)
        text = self._text("kv_copy", defines, (*names, "pairs", "token"), ("token_out",))
        groups = -(-words // COPY_THREADS)
        grid = (groups * COPY_THREADS, pairs.shape[0], 1)
        inputs = (*arrays, pairs, token)
        return self._run(Dispatch(text, inputs, grid, (COPY_THREADS, 1, 1), ((TOKEN_SIZE,),), (mx.int32,)))[0]

    def kv_save(
        self, arena: mx.array, scales: mx.array | None, blocks: mx.array, token: mx.array, count: int
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
        return self._run(Dispatch(text, inputs, grid, (COPY_THREADS, 1, 1), ((count, 4 * words),), (mx.uint32,)))[0]

    def kv_load(
        self, arena: mx.array, scales: mx.array | None, blocks: mx.array, saved: mx.array, token: mx.array
    ) -> mx.array:
        """Writes `saved` (as `kv_save` gave it) into the first blocks of `blocks`, in place; the next token."""
        scales = self._check_arena(arena, scales, token, None)
        defines, words = self._block_defines()
        _require("saved", saved, (saved.shape[0], 4 * words), mx.uint32)
        _require("blocks", blocks, (max(TOKEN_SIZE, saved.shape[0]),), mx.int32)
        names, arrays = self._stored(arena, scales)
        text = self._text("kv_load", defines, (*names, "blocks", "saved", "token"), ("token_out",))
        groups = -(-words // COPY_THREADS)
        grid = (groups * COPY_THREADS, saved.shape[0], 1)
        inputs = (*arrays, blocks, saved, token)
        return self._run(Dispatch(text, inputs, grid, (COPY_THREADS, 1, 1), ((TOKEN_SIZE,),), (mx.int32,)))[0]

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

    def _stored(self, arena: mx.array, scales: mx.array) -> tuple[tuple[str, ...], tuple[mx.array, ...]]:
        """The arena's inputs: each bound buffer costs time at every launch, so scales only where there are any."""
        return (("arena", "scales"), (arena, scales)) if self.config.quantized else (("arena",), (arena,))

    def _combine(
        self, partial: mx.array, stats: mx.array, descriptor: mx.array, sinks: mx.array | None, q_len: int, window: int
    ) -> mx.array:
        rows, heads, head_dim = partial.shape[0], self.config.num_heads, self.config.head_dim
        defines: dict[str, object] = {
            "RV_HEADS": heads, "RV_QUERY_LEN": q_len, "RV_WINDOW": window, "RV_SPLIT_BLOCKS(n)": split_macro()
        }  # fmt: skip
        names: tuple[str, ...] = ("partial", "stats", "descriptor")
        inputs: tuple[mx.array, ...] = (partial, stats, descriptor)
        if sinks is not None:
            defines["RV_SINKS"] = 1
            names, inputs = (*names, "sinks"), (*inputs, sinks.astype(mx.float32))
        text = self._text("paged_combine", defines, names, ("out",), ("decode_parts.h",))
        shape = (rows, heads, q_len, head_dim)
        grid = (32 * heads * q_len, rows, 1)
        return self._run(Dispatch(text, inputs, grid, (32, 1, 1), (shape,), (self.config.dtype,)))[0]

    def _text(
        self,
        kind: str,
        defines: Mapping[str, object],
        inputs: tuple[str, ...],
        outputs: tuple[str, ...],
        parts: tuple[str, ...] = (),
    ) -> KernelText:
        key = (kind, *defines.items())
        text = self._texts.get(key)
        if text is None:
            common = _common_defines(self.config, self.backend)
            text = self._texts[key] = kernel_text(kind, self.backend, {**common, **defines}, inputs, outputs, parts)
        return text

    def _run(self, dispatch: Dispatch) -> tuple[mx.array, ...]:
        self.counter.add({dispatch.kernel.kind: 1})
        return tuple(self._launcher(dispatch))

    def _check_arena(
        self, arena: mx.array, scales: mx.array | None, token: mx.array, layer: mx.array | None
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
            raise ValueError("an int8 arena needs its scales [blocks, layers, 2, kv_heads, 32] in float32")
        _require("scales", scales, c.scales_shape(arena.shape[0]), mx.float32)
        return scales


def _require(name: str, array: mx.array, shape: tuple[int, ...], dtype: mx.Dtype) -> None:
    if tuple(array.shape) != shape or array.dtype != dtype:
        raise ValueError(f"{name} must be {dtype} of shape {shape}, not {array.dtype} of {tuple(array.shape)}")


def _common_defines(c: KernelConfig, backend: str) -> dict[str, object]:
    types = _TYPES[backend]
    return {
        "RV_T": types[c.dtype],
        "RV_KV": types[c.kv_dtype],
        "RV_KIND": _KINDS[c.kv_dtype],
        "RV_D": c.head_dim,
        "RV_LAYERS": c.num_layers,
        "RV_KV_HEADS": c.kv_heads,
        "RV_HEADER": layout.HEADER,
        "RV_ROW_FIELDS": layout.ROW_FIELDS,
    }


def _tiles(query_rows: int, largest: int) -> tuple[int, int]:
    """Query rows a tile and tiles a KV head, as even as can be."""
    tiles = -(-query_rows // largest)
    return -(-query_rows // tiles), tiles


def _power_of_two(count: int) -> int:
    return 1 << (count - 1).bit_length()


def _decode_defines(
    c: KernelConfig, q_len: int, largest_tile: int, scale: float, window: int, softcap: float
) -> dict[str, object]:
    """The sizes that paged_decode's thread mapping follows from; README.md explains them."""
    tile, tiles = _tiles(c.group * q_len, largest_tile)
    padded = _power_of_two(tile)
    lanes = _power_of_two(c.head_dim // 8)
    key_lanes = 2 if c.head_dim // 8 % 4 else 4
    loads = min(4, lanes)
    key_stages = c.head_dim // 8 // key_lanes
    merge = max(1, min(tile, 2048 // (SIMDGROUPS * c.head_dim)))
    scratch = SIMDGROUPS * max(BLOCK * padded, merge * c.head_dim)
    defines: dict[str, object] = {
        "RV_QUERY_LEN": q_len,
        "RV_GROUP_SIZE": c.group,
        "RV_ROWS": c.group * q_len,
        "RV_TILE": tile,
        "RV_TILES": tiles,
        "RV_PAD": padded,
        "RV_LANES": lanes,
        "RV_KEY_LANES": key_lanes,
        "RV_LOADS": loads,
        "RV_KEY_STAGES": key_stages,
        "RV_STAGES": key_stages + lanes // loads,
        "RV_MERGE": merge,
        "RV_SIMDGROUPS": SIMDGROUPS,
        "RV_SHARED_VECTORS": (tile * c.head_dim + scratch) // 4,
        "RV_SPLIT_BLOCKS(n)": split_macro(),
        "RV_SCALE": f"{scale:.9e}f",
        "RV_WINDOW": window,
    }
    if softcap:
        defines["RV_SOFTCAP"] = f"{softcap:.9e}f"
    return defines
