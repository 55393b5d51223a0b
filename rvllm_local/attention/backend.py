"""The protocol of a KV back end: it writes new keys and values, and attends to contexts.

The seam and the runner call it. `cpu/reference.py` and `kernels.py` implement it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import mlx.core as mx

from rvllm_local.attention.geometry import CallGeometry
from rvllm_local.memory.block_io import BlockIO
from rvllm_local.memory.layout import LayerSlot
from rvllm_local.metal_kernels import Rotation


@dataclass(frozen=True, slots=True)
class AttentionCall:
    """The arithmetic of one layer's attention.

    scale: of the logits.
    sinks: learned, `[heads]`; None for a layer without.
    rotation: queries and new keys are still to be rotated so; only a compiled step
        asks for that.
    softcap: bounds the logits; 0 for no bound.
    rotated: of latent attention, the queries' part that meets rotated keys: `[rows,
        heads, 1, value_dim]`, multiplied by `scale` already.
    """

    scale: float
    sinks: mx.array | None = None
    rotation: Rotation | None = None
    softcap: float = 0.0
    rotated: mx.array | None = None


class CallSession(Protocol):
    """One model call over the arenas.

    New keys and values are `[rows, kv_heads, query_len, dim]`.
    """

    def write(
        self,
        slot: LayerSlot,
        keys: mx.array,
        values: mx.array,
    ) -> None:
        """Store the call's new keys and values of one layer."""

    def gather(self, slot: LayerSlot) -> tuple[mx.array, mx.array]:
        """The keys and values of each row's whole context, padded to the longest.

        Both are `[rows, kv_heads, width, dim]`.
        """

    def decode(
        self,
        slot: LayerSlot,
        queries: mx.array,
        call: AttentionCall,
    ) -> mx.array:
        """Attention of one new token a row.

        `[rows, heads, 1, key_dim]` in, `[rows, heads, 1, value_dim]` out; of latent
        attention `[rows, heads, 1, key_dim]` out.
        """

    def prefill(
        self,
        slot: LayerSlot,
        queries: mx.array,
        call: AttentionCall,
    ) -> mx.array:
        """Causal attention of one row's chunk.

        `[1, heads, query_len, key_dim]` in, `[1, heads, query_len, value_dim]` out.
        """


class KVBackend(BlockIO, Protocol):
    """Owns the contents of the arenas. Statistics and logs show its `name`.

    prefill_grain: a prompt's chunk should end at a multiple of so many tokens, since
        every other shape costs the device time to prepare.
    overlaps: a step may be described before the step before it has run, because the
        back end orders its own reads and writes.
    mixes: `begin_mixed` serves. One pass over the weights for decode rows and prompt
        tokens then costs less than two passes.
    verifies: several rows of a decode call may be of one sequence, next to each other.
        A later row then sees the keys and values of the earlier ones.
    runs_by_layer: each layer is computed before the next one is described. A few layers
        then show how much memory a call takes.
    """

    name: str
    prefill_grain: int
    overlaps: bool
    mixes: bool
    verifies: bool
    runs_by_layer: bool

    @property
    def num_dispatches(self) -> int:
        """Kernels launched so far; 0 for a back end without any."""

    def begin(self, geometry: CallGeometry, *, by_row: bool = False) -> CallSession:
        """Prepare one model call.

        With `by_row` a row's attention does not depend on the other rows' lengths.
        """

    def begin_mixed(
        self,
        geometry: CallGeometry,
        decode: CallGeometry,
        chunks: Sequence[CallGeometry],
    ) -> CallSession:
        """Prepare a decode call that carries tokens of prompts and padding.

        `geometry` covers all rows: those of `decode` first, then one row for each token
        of `chunks`, then padding. Raises `UnsupportedModelError` without `mixes`.
        """

    def flush(self) -> None:
        """Return when every write that was described has happened."""
