"""One KV arena: a single allocation, block-major, for all layers of one attention shape.

`[blocks, layers, K|V, kv_heads, BLOCK_TOKENS, head_dim]`: a block is one contiguous
range. So copying, spilling and restoring it are single copies. Where keys and values
differ in size, a block's layer is one row: its keys, then its values. Knows nothing of
sequences.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import mlx.core as mx

from rvllm_local.memory.blocks import BLOCK_TOKENS
from rvllm_local.memory.lazy_zeros import lazy_zeros


@dataclass(frozen=True, slots=True)
class KVShape:
    """What one group of layers stores for a token.

    window: None for full attention.
    dtype: the model computes in it.
    quantized: the arena holds int8, and one float32 scale a token and head.
    latent: the key is what keys and values of all heads are made from, and the value is
        a rotated part that is added to the key.
    """

    num_layers: int
    kv_heads: int
    key_dim: int
    value_dim: int
    window: int | None
    dtype: mx.Dtype
    quantized: bool = False
    latent: bool = field(default=False, repr=False)

    @property
    def is_uneven(self) -> bool:
        """True where keys and values differ in size."""
        return self.key_dim != self.value_dim

    @property
    def layer_elements(self) -> int:
        """Elements of one block's keys and values in one layer."""
        return self.kv_heads * BLOCK_TOKENS * (self.key_dim + self.value_dim)

    @property
    def width(self) -> int:
        """Elements of a key or a value: of the wider of the two."""
        return max(self.key_dim, self.value_dim)

    @property
    def stored_dtype(self) -> mx.Dtype:
        return mx.int8 if self.quantized else self.dtype

    @property
    def scale_bytes(self) -> int:
        """Bytes of one block's scales, which follow its elements wherever a block is saved."""
        if not self.quantized:
            return 0
        return self.num_layers * 2 * self.kv_heads * BLOCK_TOKENS * 4

    @property
    def data_bytes(self) -> int:
        """Bytes of one block's keys and values."""
        return self.num_layers * self.layer_elements * self.stored_dtype.size

    @property
    def block_bytes(self) -> int:
        return self.data_bytes + self.scale_bytes


class Arena:
    """The storage behind one `KVShape`.

    `array` and `scales` are allocated once and never replaced.
    """

    def __init__(self, shape: KVShape, num_blocks: int) -> None:
        self.shape = shape
        self.num_blocks = num_blocks
        planes = (num_blocks, shape.num_layers, 2, shape.kv_heads, BLOCK_TOKENS)
        sizes: tuple[int, ...] = (*planes, shape.width)
        if shape.is_uneven:
            sizes = (num_blocks, shape.num_layers, shape.layer_elements)
        self.array = lazy_zeros(sizes, shape.stored_dtype)
        self.scales: mx.array | None = None
        if shape.quantized:
            self.scales = lazy_zeros(planes, mx.float32)

    @property
    def nbytes(self) -> int:
        return self.num_blocks * self.shape.block_bytes
