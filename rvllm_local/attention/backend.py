"""What a KV back end does: write new keys and values, read a context densely, attend one token a row.

The seam calls it; `reference` and `kernels` implement it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import mlx.core as mx

from rvllm_local.attention.geometry import CallGeometry
from rvllm_local.memory.block_io import BlockIO
from rvllm_local.memory.layout import LayerSlot
from rvllm_local.metal_kernels import Rotation


@dataclass(frozen=True, slots=True)
class AttentionCall:
    """The arithmetic of one layer's attention: logit scale, and learned sinks `[heads]` if it has them.

    Logits are bounded by `softcap`, unless that is 0. With `rotation` queries and new keys are still to be rotated; only a
    compiled step asks for that.
    """

    scale: float
    sinks: mx.array | None = None
    rotation: Rotation | None = None
    softcap: float = 0.0


class CallSession(Protocol):
    """One model call over the arenas. Keys and values are `[rows, kv_heads, query_len, dim]`."""

    def write(self, slot: LayerSlot, keys: mx.array, values: mx.array) -> None:
        """Store the call's new keys and values of one layer."""

    def gather(self, slot: LayerSlot) -> tuple[mx.array, mx.array]:
        """The whole context of each row, padded to the longest: `[rows, kv_heads, width, dim]` twice."""

    def decode(
        self, slot: LayerSlot, queries: mx.array, call: AttentionCall
    ) -> mx.array:
        """Attention of one new token a row: `[rows, heads, 1, key_dim]` in, `[rows, heads, 1, value_dim]` out."""

    def prefill(
        self, slot: LayerSlot, queries: mx.array, call: AttentionCall
    ) -> mx.array:
        """Causal attention of one row's chunk: `[1, heads, query_len, key_dim]` in, `[..., value_dim]` out."""


class KVBackend(BlockIO, Protocol):
    """Owns the arenas' contents; `name` is what statistics and logs show.

    A prompt's chunk should end at a multiple of `prefill_grain` tokens: other shapes cost the device time to prepare.
    """

    name: str
    prefill_grain: int

    @property
    def num_dispatches(self) -> int:
        """Kernels launched so far; 0 for a back end without any."""

    def begin(self, geometry: CallGeometry, *, by_row: bool = False) -> CallSession:
        """Prepare one model call. `by_row`: a row's attention must not depend on the other rows' lengths."""

    def flush(self) -> None:
        """Return when every write that was described has happened."""
