"""How paged_decode maps an attention shape to threads: the macros of its two bodies. README.md explains them.

`paged_decode.metal` runs everywhere; `paged_decode.cu` uses CUDA's matrix units where queries and KV are halves.
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
    """What does not change results beyond rounding: query rows a tile, simdgroups a threadgroup, tokens a stage, splits.

    `step`, 16 or 32, and `resident`, threadgroups at once on a multiprocessor, count for the matrix units alone;
    `combined` splits are read at once when they are put together, which changes no bit.
    """

    query_tile: int
    simdgroups: int
    splits: SplitRule
    step: int = 16
    resident: int = 1
    combined: int = 8


def uses_matrix_units(c: KernelConfig, backend: str) -> bool:
    """True where `paged_decode.cu` serves: half-precision queries, KV in their type or int8, and registers that suffice."""
    return (
        backend == "cuda"
        and c.dtype != mx.float32
        and c.kv_dtype in (c.dtype, mx.int8)
        and c.head_dim <= _ONE_VECTOR
    )


def default_tuning(c: KernelConfig, backend: str) -> Tuning:
    """The values that were measured to be best on an H200; for Metal, what its register file suggests."""
    splits = SPLIT_RULES["cuda-int8" if backend == "cuda" and c.quantized else backend]
    if uses_matrix_units(c, backend):
        narrow = c.group <= 8 and c.head_dim <= 128
        tile, resident = (
            8 if narrow or c.head_dim > 128 else 16,
            4 if narrow and c.quantized else 1,
        )
        return Tuning(tile, 4, splits, 16, resident, 16 if c.head_dim <= 128 else 8)
    if (
        c.head_dim > _ONE_VECTOR
    ):  # a lane owns two vectors of the output, and of the splits' sums twice as many
        return Tuning(4 if backend == "cuda" else 2, 4, splits, combined=4)
    return Tuning(
        8 if backend == "cuda" else 4, 4, splits
    )  # 8 rows would spill on Apple's 128 registers


@dataclass(frozen=True, slots=True)
class DecodeCall:
    """One launch's constants: what the call computes."""

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
        matrix = uses_matrix_units(c, backend)
        return defines | (
            _matrix_defines(c, tuning, tile)
            if matrix
            else _vector_defines(c, tuning, tile)
        )


def _tiles(query_rows: int, largest: int) -> tuple[int, int]:
    """Query rows a tile and tiles a KV head, as even as can be."""
    tiles = -(-query_rows // largest)
    return -(-query_rows // tiles), tiles


def _vector_defines(
    c: KernelConfig,
    tuning: Tuning,
    tile: int,
) -> dict[str, object]:
    """`paged_decode.metal`: lanes that share a token's products, loads in flight, threadgroup memory."""
    padded = _power_of_two(tile)
    lanes = min(32, _power_of_two(c.head_dim // 8))
    parts = -(-c.head_dim // (8 * lanes))
    key_lanes = 2 if c.head_dim // 8 % 4 else 4
    loads = min(4, lanes)
    key_stages = c.head_dim // 8 // key_lanes
    merge = max(1, min(tile, 2048 // (tuning.simdgroups * c.head_dim)))
    scratch = tuning.simdgroups * max(BLOCK * padded, merge * c.head_dim)
    return {
        "RV_PAD": padded,
        "RV_LANES": lanes,
        "RV_KEY_LANES": key_lanes,
        "RV_LOADS": loads,
        "RV_KEY_STAGES": key_stages,
        "RV_PARTS": parts,
        "RV_STAGES": key_stages + lanes * parts // loads,
        "RV_MERGE": merge,
        "RV_SHARED_VECTORS": (tile * c.head_dim + scratch) // 4,
    }


def _matrix_defines(
    c: KernelConfig,
    tuning: Tuning,
    tile: int,
) -> dict[str, object]:
    """`paged_decode.cu`: columns of eight query rows, words a load, what the weights are scaled by."""
    columns = -(-tile // 8)
    if c.quantized:
        key_words = 4 if c.head_dim % 64 == 0 else 2
        value_words = 4 if c.head_dim % 128 == 0 else 2
    else:
        key_words = value_words = 4
    row = tuning.simdgroups * c.head_dim + 8
    merge = max(1, min(tile, _SHARED_FLOATS // row))
    return {
        "RV_PAD": 8 * columns,
        "RV_N": columns,
        "RV_STEP": tuning.step,
        "RV_RESIDENT": tuning.resident,
        "RV_KEY_WORDS": key_words,
        "RV_VALUE_WORDS": value_words,
        "RV_BIAS": "14.0f"
        if c.quantized or c.dtype == mx.float16
        else "0.0f",  # half has few small numbers
        "RV_MERGE": merge,
        "RV_MERGE_VECTORS": max(merge * row // 4, 8 * columns * c.head_dim // 8),
    }


def _power_of_two(count: int) -> int:
    return 1 << (count - 1).bit_length()


assert MAX_GROUP <= 16  # two columns of eight hold every group
