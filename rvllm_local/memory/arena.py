"""One KV arena: a single allocation, block-major, for all layers of one attention shape.

`[blocks, layers, K|V, kv_heads, BLOCK_TOKENS, head_dim]`: a block is one contiguous range, so that
copying, spilling and restoring it are single copies. Knows nothing of sequences.
"""

from __future__ import annotations

from dataclasses import dataclass

import mlx.core as mx

from rvllm_local.memory.blocks import BLOCK_TOKENS


@dataclass(frozen=True, slots=True)
class KVShape:
    """What one group of layers stores for a token. `window` is None for full attention."""

    num_layers: int
    kv_heads: int
    key_dim: int
    value_dim: int
    window: int | None
    dtype: mx.Dtype

    @property
    def width(self) -> int:
        """Elements kept for a key or a value: the wider of the two."""
        return max(self.key_dim, self.value_dim)

    @property
    def block_bytes(self) -> int:
        return self.num_layers * 2 * self.kv_heads * BLOCK_TOKENS * self.width * self.dtype.size


class Arena:
    """The storage behind one `KVShape`; `array` is allocated once and never replaced."""

    def __init__(self, shape: KVShape, num_blocks: int) -> None:
        self.shape = shape
        self.num_blocks = num_blocks
        self.array = mx.zeros(
            (num_blocks, shape.num_layers, 2, shape.kv_heads, BLOCK_TOKENS, shape.width), dtype=shape.dtype
        )
        mx.eval(self.array)

    @property
    def nbytes(self) -> int:
        return self.num_blocks * self.shape.block_bytes
