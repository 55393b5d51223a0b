"""How latent_decode maps an attention shape to threads: the macros of its two bodies.

A latent is what a token's keys and values are made from. With the projections absorbed
into queries and outputs it is key and value of all heads at once; a rotated part is
added to the key. `latent_decode.metal` runs everywhere. `latent_decode.cu` uses CUDA's
matrix units.
"""

from __future__ import annotations

from dataclasses import dataclass

import mlx.core as mx

from rvllm_local.metal_kernels.config import KernelConfig
from rvllm_local.metal_kernels.decode import Tuning
from rvllm_local.metal_kernels.splits import SPLIT_RULES

_VECTOR = 8  # elements that a lane loads at once
_STAGE_BYTES = 24 * 1024  # of threadgroup memory for a stage of tokens, at most
_LONGEST_STAGE = 8  # tokens
_LOAD = 32  # elements that the four lanes of a token load at once
_SLICE = 128  # elements of the output that a simdgroup puts together
_RUN = 16  # elements that a product sums


def warps_for(c: KernelConfig, largest: int) -> int:
    """The most warps, up to `largest`, among which a latent divides; 0 if none."""
    for warps in range(largest, 0, -1):
        if c.head_dim % (_LOAD * warps) == 0:
            return warps
    return 0


def uses_matrix_units(c: KernelConfig, backend: str) -> bool:
    """True where `latent_decode.cu` serves: halves, and sizes that warps can share."""
    if backend != "cuda" or c.dtype == mx.float32 or c.kv_dtype != c.dtype:
        return False
    return c.head_dim % _LOAD == 0 and c.value_width % _RUN == 0


def latent_tuning(c: KernelConfig, backend: str) -> Tuning:
    """What suits latents of about 512 elements. Metal's values were not measured."""
    splits = SPLIT_RULES[f"{backend}-latent"]
    slices = 1
    while c.head_dim // slices > _SLICE and c.head_dim % (16 * slices) == 0:
        slices *= 2
    if uses_matrix_units(c, backend):
        return Tuning(
            query_tile=16,
            simdgroups=4,
            splits=splits,
            step=16,
            resident=2,
            combined=16,
            slices=slices,
        )
    return Tuning(
        query_tile=16,
        simdgroups=4 if backend == "cuda" else 8,
        splits=splits,
        combined=16,
        slices=slices,
    )


@dataclass(frozen=True, slots=True)
class LatentCall:
    """One launch's constants."""

    query_len: int
    scale: float
    rotated_by: float

    def defines(
        self,
        c: KernelConfig,
        tuning: Tuning,
        backend: str,
    ) -> dict[str, object]:
        """The macros of the body that serves."""
        query_rows = c.num_heads * self.query_len
        tiles = -(-query_rows // tuning.query_tile)
        tile = -(-query_rows // tiles)
        defines: dict[str, object] = {
            "RV_LATENT": 1,
            "RV_QUERY_LEN": self.query_len,
            "RV_ROWS": query_rows,
            "RV_TILE": tile,
            "RV_TILES": tiles,
            "RV_SPLIT_BLOCKS(n)": tuning.splits.macro(),
            "RV_SCALE": f"{self.scale:.9e}f",
            "RV_ROTATED_BY": f"{self.rotated_by:.9e}f",
            "RV_WINDOW": 0,
        }
        if uses_matrix_units(c, backend):
            return defines | _matrix_defines(c, tuning, tile)
        return defines | _lane_defines(c, tuning, tile)


def _lane_defines(c: KernelConfig, tuning: Tuning, tile: int) -> dict[str, object]:
    """Of `latent_decode.metal`: rows a simdgroup, tokens a stage."""
    own_rows = max(1, tuning.query_tile // tuning.simdgroups)
    elements = c.head_dim + c.value_width
    step = _LONGEST_STAGE
    while step > 1 and step * elements * c.kv_dtype.size > _STAGE_BYTES:
        step //= 2
    return {
        "RV_SIMDGROUPS": -(-tile // own_rows),
        "RV_OWN_ROWS": own_rows,
        "RV_STEP": step,
        "RV_STAGE_VECTORS": step * elements * c.kv_dtype.size // 16 + 1,
    }


def _matrix_defines(c: KernelConfig, tuning: Tuning, tile: int) -> dict[str, object]:
    """Of `latent_decode.cu`: columns of eight query rows, and the scale of weights."""
    columns = -(-tile // 8)
    warps = warps_for(c, tuning.simdgroups)
    queries = 8 * columns * (c.head_dim + c.value_width) // _VECTOR
    parts = 2 * warps * columns * (tuning.step // 16) * 32
    bias = "14.0f" if c.dtype == mx.float16 else "0.0f"  # half has few small numbers
    return {
        "RV_SIMDGROUPS": warps,
        "RV_PAD": 8 * columns,
        "RV_N": columns,
        "RV_STEP": tuning.step,
        "RV_RESIDENT": tuning.resident,
        "RV_BIAS": bias,
        "RV_SHARED_VECTORS": max(queries, parts),
    }
