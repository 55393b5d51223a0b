"""How paged_decode maps an attention shape to threads: the macros of its two bodies.

`paged_decode.metal` runs everywhere. `paged_decode.cu` uses CUDA's matrix units where
queries and KV are halves. README.md explains the macros.
"""

from __future__ import annotations

from dataclasses import dataclass

import mlx.core as mx

from rvllm_local.metal_kernels.config import BLOCK, MAX_GROUP, KernelConfig
from rvllm_local.metal_kernels.splits import SPLIT_RULES, SplitRule

_ONE_VECTOR = 256  # the largest head of which each of 32 lanes owns one vector of eight
_SHARED_FLOATS = 8192  # of the warps' sums at the end, at most


@dataclass(frozen=True, slots=True)
class Tuning:
    """What does not change results beyond rounding.

    query_tile: query rows a tile.
    simdgroups: of a threadgroup.
    step: tokens a stage, 16 or 32; for the matrix units alone.
    resident: threadgroups at once on a multiprocessor; for the matrix units alone.
    combined: splits that are read at once when they are put together. No bit changes.
    slices: of a query row, put together by a simdgroup each. No bit changes.
    """

    query_tile: int
    simdgroups: int
    splits: SplitRule
    step: int = 16
    resident: int = 1
    combined: int = 8
    slices: int = 1


def uses_matrix_units(c: KernelConfig, backend: str) -> bool:
    """True where `paged_decode.cu` serves.

    It takes queries in half precision, and KV in their type or int8, in heads that the
    registers hold.
    """
    if backend != "cuda" or c.dtype == mx.float32:
        return False
    return c.kv_dtype in (c.dtype, mx.int8) and c.head_dim <= _ONE_VECTOR


def default_tuning(c: KernelConfig, backend: str) -> Tuning:
    """The values that were measured to be best on an H200.

    For Metal, those that its register file suggests.
    """
    is_cuda = backend == "cuda"
    rule = backend
    if is_cuda and c.quantized:
        rule = "cuda-int8"
    splits = SPLIT_RULES[rule]
    if uses_matrix_units(c, backend):
        return _matrix_tuning(c, splits)
    if c.head_dim > _ONE_VECTOR:
        # A lane owns two vectors of the output, and of the splits' sums twice as many.
        tile = 4 if is_cuda else 2
        return Tuning(tile, simdgroups=4, splits=splits, combined=4)
    # 8 rows would spill on Apple's 128 registers.
    tile = 8 if is_cuda else 4
    return Tuning(tile, simdgroups=4, splits=splits)


def _matrix_tuning(c: KernelConfig, splits: SplitRule) -> Tuning:
    is_short = c.head_dim <= 128
    is_narrow = is_short and c.group <= 8
    tile = 8
    if is_short and not is_narrow:
        tile = 16
    resident = 1
    if is_narrow and c.quantized:
        resident = 4
    return Tuning(
        query_tile=tile,
        simdgroups=4,
        splits=splits,
        step=16,
        resident=resident,
        combined=16 if is_short else 8,
    )


@dataclass(frozen=True, slots=True)
class DecodeCall:
    """One launch's constants."""

    query_len: int
    scale: float
    window: int
    softcap: float

    def defines(
        self,
        c: KernelConfig,
        tuning: Tuning,
        backend: str,
    ) -> dict[str, object]:
        """The macros of the body that serves."""
        tile, tiles = _tiles(c.group * self.query_len, tuning.query_tile)
        defines: dict[str, object] = {
            "RV_QUERY_LEN": self.query_len,
            "RV_GROUP_SIZE": c.group,
            "RV_ROWS": c.group * self.query_len,
            "RV_TILE": tile,
            "RV_TILES": tiles,
            "RV_SIMDGROUPS": tuning.simdgroups,
            "RV_SPLIT_BLOCKS(n)": tuning.splits.macro(),
            "RV_SCALE": f"{self.scale:.9e}f",
            "RV_WINDOW": self.window,
        }
        if self.softcap:
            defines["RV_SOFTCAP"] = f"{self.softcap:.9e}f"
        if uses_matrix_units(c, backend):
            return defines | _matrix_defines(c, tuning, tile)
        return defines | _vector_defines(c, tuning, tile)


def _tiles(query_rows: int, largest: int) -> tuple[int, int]:
    """Query rows a tile and tiles a KV head, as even as can be."""
    tiles = -(-query_rows // largest)
    tile = -(-query_rows // tiles)
    return tile, tiles


def _vector_defines(
    c: KernelConfig,
    tuning: Tuning,
    tile: int,
) -> dict[str, object]:
    """Of `paged_decode.metal`.

    Lanes that share a token's products, loads in flight, threadgroup memory.
    """
    dim = c.head_dim
    vectors = dim // 8
    padded = _power_of_two(tile)
    lanes = min(32, _power_of_two(vectors))
    parts = -(-dim // (8 * lanes))
    key_lanes = 4 if vectors % 4 == 0 else 2
    loads = min(4, lanes)
    key_stages = vectors // key_lanes
    value_stages = lanes * parts // loads
    most_merged = 2048 // (tuning.simdgroups * dim)
    merge = max(1, min(tile, most_merged))
    scratch = tuning.simdgroups * max(BLOCK * padded, merge * dim)
    return {
        "RV_PAD": padded,
        "RV_LANES": lanes,
        "RV_KEY_LANES": key_lanes,
        "RV_LOADS": loads,
        "RV_KEY_STAGES": key_stages,
        "RV_PARTS": parts,
        "RV_STAGES": key_stages + value_stages,
        "RV_MERGE": merge,
        "RV_SHARED_VECTORS": (tile * dim + scratch) // 4,
    }


def _matrix_defines(
    c: KernelConfig,
    tuning: Tuning,
    tile: int,
) -> dict[str, object]:
    """Of `paged_decode.cu`.

    Columns of eight query rows, words a load, the scale of the weights.
    """
    columns = -(-tile // 8)
    key_words = 4
    value_words = 4
    if c.quantized and c.head_dim % 64:
        key_words = 2
    if c.quantized and c.head_dim % 128:
        value_words = 2
    bias = "0.0f"
    if c.quantized or c.dtype == mx.float16:
        bias = "14.0f"  # half has few small numbers
    row = tuning.simdgroups * c.head_dim + 8
    merge = max(1, min(tile, _SHARED_FLOATS // row))
    return {
        "RV_PAD": 8 * columns,
        "RV_N": columns,
        "RV_STEP": tuning.step,
        "RV_RESIDENT": tuning.resident,
        "RV_KEY_WORDS": key_words,
        "RV_VALUE_WORDS": value_words,
        "RV_BIAS": bias,
        "RV_MERGE": merge,
        "RV_MERGE_VECTORS": max(merge * row // 4, 8 * columns * c.head_dim // 8),
    }


def _power_of_two(count: int) -> int:
    return 1 << (count - 1).bit_length()


assert MAX_GROUP <= 16  # two columns of eight hold every group
