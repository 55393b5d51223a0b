"""The attention shapes that there are kernels for, and what their texts are specialized with.

Knows types and sizes; nothing of arrays, launches or devices beyond which one there is.
"""

from __future__ import annotations

from dataclasses import dataclass

import mlx.core as mx

from rvllm_local.errors import UnsupportedModelError
from rvllm_local.metal_kernels import descriptor as layout

HEAD_DIMS = (16, 32, 64, 80, 96, 128, 192, 256, 512)
MAX_GROUP = 16
MAX_QUERY_LEN = 8
BLOCK = layout.BLOCK_TOKENS
_VECTOR = 8  # elements that a lane loads at once
FENCE_SIZE = 8  # fewer elements would move the fence to Metal's constant address space

KINDS = {mx.float32: 0, mx.float16: 1, mx.bfloat16: 2, mx.int8: 3}
TYPES = {
    "metal": {
        mx.float32: "float",
        mx.float16: "half",
        mx.bfloat16: "bfloat16_t",
        mx.int8: "int8_t",
    },
    "cuda": {
        mx.float32: "float",
        mx.float16: "__half",
        mx.bfloat16: "__nv_bfloat16",
        mx.int8: "int8_t",
    },
}


def default_backend() -> str:
    """`"metal"` or `"cuda"` where MLX can launch there, else `"none"`: kernels can be described, not run."""
    if mx.metal.is_available():
        return "metal"
    cuda = getattr(mx, "cuda", None)
    return "cuda" if cuda is not None and cuda.is_available() else "none"


def text_language(backend: str | None) -> str:
    """`"cuda"` or `"metal"`: what the texts for a back end are written in, None being the one that is here."""
    return (
        "cuda"
        if (default_backend() if backend is None else backend) == "cuda"
        else "metal"
    )


@dataclass(frozen=True, slots=True)
class KernelConfig:
    """The attention shape that one `KernelSet` serves.

    Raises `UnsupportedModelError` for a shape that the kernels have no variant for,
    naming it.

    value_dim: of values; None where they are as wide as keys. What is
        uneven is written and gathered, and latent attention reads it.
    """

    head_dim: int
    num_heads: int
    kv_heads: int
    num_layers: int
    dtype: mx.Dtype
    kv_dtype: mx.Dtype
    value_dim: int | None = None

    def __post_init__(self) -> None:
        serve = "; the reference attention serves this model instead"
        if self.is_uneven:
            vectors, rest = divmod(self.value_width, _VECTOR)
            if self.head_dim % _VECTOR or rest or not vectors:
                raise UnsupportedModelError(
                    f"no kernel for keys of {self.head_dim} and values of "
                    f"{self.value_width} (multiples of {_VECTOR}){serve}"
                )
        elif self.head_dim not in HEAD_DIMS:
            raise UnsupportedModelError(
                f"no kernel for head size {self.head_dim} (there are {HEAD_DIMS}){serve}"
            )
        if self.kv_heads < 1 or self.num_heads % self.kv_heads:
            raise UnsupportedModelError(
                f"{self.num_heads} heads do not divide into {self.kv_heads} KV heads{serve}"
            )
        if self.group > MAX_GROUP and not self.is_uneven:
            raise UnsupportedModelError(
                f"no kernel for {self.group} heads a KV head (at most {MAX_GROUP}){serve}"
            )
        if self.dtype not in KINDS or self.dtype == mx.int8:
            raise UnsupportedModelError(
                f"no kernel for activations in {self.dtype}{serve}"
            )
        if self.kv_dtype not in KINDS:
            raise UnsupportedModelError(
                f"no kernel for a KV arena in {self.kv_dtype}{serve}"
            )
        if self.num_layers < 1:
            raise UnsupportedModelError(
                f"an arena needs at least one layer, not {self.num_layers}{serve}"
            )

    @property
    def group(self) -> int:
        return self.num_heads // self.kv_heads

    @property
    def quantized(self) -> bool:
        return bool(self.kv_dtype == mx.int8)

    @property
    def value_width(self) -> int:
        return self.head_dim if self.value_dim is None else self.value_dim

    @property
    def is_uneven(self) -> bool:
        """True where keys and values differ in size."""
        return self.value_width != self.head_dim

    @property
    def layer_elements(self) -> int:
        """Elements of one block's keys and values in one layer."""
        return self.kv_heads * BLOCK * (self.head_dim + self.value_width)

    def arena_shape(self, num_blocks: int) -> tuple[int, ...]:
        """Where keys and values are uneven, a layer's lie in one row, keys first."""
        if self.is_uneven:
            return (num_blocks, self.num_layers, self.layer_elements)
        return (num_blocks, self.num_layers, 2, self.kv_heads, BLOCK, self.head_dim)

    def scales_shape(self, num_blocks: int) -> tuple[int, ...]:
        return (num_blocks, self.num_layers, 2, self.kv_heads, BLOCK)

    def defines(self, backend: str) -> dict[str, object]:
        """The macros that every kernel's text begins with."""
        types = TYPES[backend]
        return {
            "RV_T": types[self.dtype],
            "RV_T_BYTES": self.dtype.size,
            "RV_KV": types[self.kv_dtype],
            "RV_KIND": KINDS[self.kv_dtype],
            "RV_D": self.head_dim,
            "RV_VALUE_D": self.value_width,
            "RV_LAYERS": self.num_layers,
            "RV_KV_HEADS": self.kv_heads,
            "RV_HEADER": layout.HEADER,
            "RV_ROW_FIELDS": layout.ROW_FIELDS,
        }
