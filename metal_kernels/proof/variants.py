"""The kernel variants that both the emulator and the GPU are tested with."""

from __future__ import annotations

from dataclasses import dataclass

import mlx.core as mx

from rvllm_local.metal_kernels.config import KernelConfig
from rvllm_local.metal_kernels.proof.oracle import TOLERANCE

F32, F16, BF16, I8 = mx.float32, mx.float16, mx.bfloat16, mx.int8


@dataclass(frozen=True, slots=True)
class Variant:
    """One paged_decode variant, with contexts that cross its block, split and window edges."""

    name: str
    head_dim: int
    num_heads: int
    kv_heads: int
    dtype: mx.Dtype
    kv_dtype: mx.Dtype
    query_len: int = 1
    contexts: tuple[int, ...] = (1, 31, 33, 300)
    window: int = 0
    softcap: float = 0.0
    sinks: bool = False
    shared: bool = False
    firsts: tuple[int, ...] | None = None
    query_tile: int | None = None

    @property
    def config(self) -> KernelConfig:
        return KernelConfig(
            self.head_dim, self.num_heads, self.kv_heads, 2, self.dtype, self.kv_dtype
        )

    @property
    def tolerance(self) -> float:
        return TOLERANCE[self.dtype]


VARIANTS = (
    Variant("d64-long", 64, 4, 1, F32, F32, contexts=(1, 32, 1024, 1025, 4100)),
    Variant("d64-bf16-g4-q3", 64, 8, 2, BF16, BF16, 3, (3, 64, 130, 517), shared=True),
    Variant(
        "d64-f16-sinks-window",
        64,
        8,
        1,
        F16,
        F16,
        contexts=(1, 127, 128, 129, 700),
        window=128,
        sinks=True,
    ),
    Variant(
        "d64-f16-sinks", 64, 8, 2, F16, F16, contexts=(1, 33, 513, 1100), sinks=True
    ),
    Variant("d80-f16-mha", 80, 2, 2, F16, F16, contexts=(1, 40, 257)),
    Variant("d96-f32-g3-q2", 96, 3, 1, F32, F32, 2, (2, 95, 161)),
    Variant("d128-bf16-g8", 128, 8, 1, BF16, BF16, contexts=(1, 33, 1030), shared=True),
    Variant(
        "d128-bf16-g8-tile8", 128, 8, 1, BF16, BF16, contexts=(5, 260), query_tile=8
    ),
    Variant("d128-bf16-g7", 128, 7, 1, BF16, BF16, contexts=(31, 129)),
    Variant("d128-f32-q8", 128, 2, 2, F32, F32, 8, (8, 9, 200)),
    Variant("d128-f32-g16", 128, 16, 1, F32, F32, contexts=(1, 70)),
    Variant("d128-bf16-g16", 128, 16, 1, BF16, BF16, contexts=(1, 70)),
    Variant("d96-f16-int8-g2", 96, 4, 2, F16, I8, contexts=(1, 200)),
    Variant("d80-bf16-int8-g16", 80, 16, 1, BF16, I8, contexts=(5, 77)),
    Variant("d128-bf16-int8-g4", 128, 8, 2, BF16, I8, contexts=(1, 64, 515)),
    Variant(
        "d64-f32-int8-q5-window",
        64,
        2,
        1,
        F32,
        I8,
        5,
        (5, 100, 333),
        window=64,
        firsts=(0, 0, 256),
    ),
    Variant("d192-f16-g2", 192, 2, 1, F16, F16, contexts=(3, 140)),
    Variant(
        "d256-bf16-softcap-window",
        256,
        4,
        2,
        BF16,
        BF16,
        contexts=(7, 130),
        window=96,
        softcap=50.0,
    ),
    Variant("d256-f32-softcap", 256, 2, 1, F32, F32, contexts=(1, 66), softcap=5.0),
    Variant(
        "d512-f16-g8", 512, 8, 1, F16, F16, contexts=(1, 33, 300, 1030), shared=True
    ),
    Variant(
        "d512-bf16-int8-g2-window", 512, 4, 2, BF16, I8, contexts=(5, 140), window=100
    ),
    Variant("d512-f32-g3-q2", 512, 3, 1, F32, F32, 2, (2, 61)),
    Variant("d32-f32-tiny", 32, 4, 2, F32, F32, 4, (4, 90)),
    Variant("d16-f16-tiny", 16, 4, 2, F16, F16, contexts=(1, 90)),
)
