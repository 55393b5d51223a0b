"""One model call over the arenas through the kernels: what it launches, in order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import mlx.core as mx

from rvllm_local.attention.backend import AttentionCall
from rvllm_local.attention.dense import chunk_mask, dense_attention
from rvllm_local.attention.geometry import CallGeometry
from rvllm_local.memory.arena import Arena
from rvllm_local.memory.blocks import BLOCK_TOKENS
from rvllm_local.memory.layout import LayerSlot
from rvllm_local.metal_kernels import KernelSet, NewTokens, Rotation


@dataclass(slots=True)
class KernelState:
    """What the kernels of one call read and write.

    Under `mx.compile` these are the trace's own arrays. Every kernel that writes, to
    the arenas or to the scratch, replaces `fence`.
    """

    arenas: list[mx.array]
    scales: list[mx.array | None]  # of int8 arenas
    layers: list[mx.array]  # each layer's number as the kernels take it
    descriptors: list[mx.array]  # one a group
    fence: mx.array
    scratch: mx.array  # what a row's splits hand to the combine step


class SessionOwner(Protocol):
    """The back end of a session, which keeps the newest fence between calls."""

    fence: mx.array

    @property
    def arenas(self) -> Sequence[Arena]:
        """The arena of each group."""

    def kernels(self, group: int, heads: int) -> KernelSet:
        """The kernels of one group for layers with this many query heads."""


class KernelSession:
    """One model call over the state that it is given.

    The back end's fence follows the state's. With `fuses`, in a compiled step, a write
    waits for the attention of the same layer, whose launch does both; call `finish` at
    the end. Then the caller of the step sets the back end's fence: a trace that fails
    leaves no array. With `shares` rows of the call read each other's new tokens: all of
    them are written by a launch before attention. A row's bits are the same.
    """

    def __init__(
        self,
        backend: SessionOwner,
        geometry: CallGeometry,
        state: KernelState,
        *,
        fuses: bool = False,
        shares: bool = False,
    ) -> None:
        self._backend = backend
        self._geometry = geometry
        self._state = state
        self._fuses = fuses
        self._shares = shares
        self._waiting: tuple[LayerSlot, NewTokens] | None = None

    def write(
        self,
        slot: LayerSlot,
        keys: mx.array,
        values: mx.array,
    ) -> None:
        self.finish()
        dtype = self._backend.arenas[slot.group].shape.dtype
        new = NewTokens(keys.astype(dtype), values.astype(dtype))
        self._waiting = slot, new
        if not self._fuses:
            self.finish()

    def finish(self) -> None:
        """Describe the write that still waits, if there is one."""
        if self._waiting is None:
            return
        slot, new = self._waiting
        self._waiting = None
        self._write(slot, new, None)

    def _write(
        self,
        slot: LayerSlot,
        new: NewTokens,
        rotation: Rotation | None,
    ) -> None:
        state = self._state
        kv_heads = self._backend.arenas[slot.group].shape.kv_heads
        kernels = self._backend.kernels(slot.group, kv_heads)
        fence = kernels.kv_write(
            state.arenas[slot.group],
            state.scales[slot.group],
            new.keys,
            new.values,
            state.descriptors[slot.group],
            state.layers[slot.layer],
            state.fence,
            rotation,
            is_latent=self._backend.arenas[slot.group].shape.latent,
        )
        self._advance(fence)

    def _advance(self, fence: mx.array) -> None:
        self._state.fence = fence
        if not self._fuses:
            self._backend.fence = fence

    def rope_table(self, frequencies: mx.array) -> mx.array:
        """The cosines and sines of each row's newest position."""
        kv_heads = self._backend.arenas[0].shape.kv_heads
        kernels = self._backend.kernels(0, kv_heads)
        positions = self._state.descriptors[0]
        return kernels.rope_table(positions, frequencies, self._geometry.rows)

    def gather(self, slot: LayerSlot) -> tuple[mx.array, mx.array]:
        self.finish()
        state = self._state
        view = self._geometry.groups[slot.group]
        length = view.tables.shape[1] * BLOCK_TOKENS
        if self._geometry.rows == 1:
            length = int(self._geometry.context_lens[0] - view.first_positions[0])
        kv_heads = self._backend.arenas[slot.group].shape.kv_heads
        kernels = self._backend.kernels(slot.group, kv_heads)
        return kernels.kv_gather(
            state.arenas[slot.group],
            state.scales[slot.group],
            state.descriptors[slot.group],
            state.layers[slot.layer],
            state.fence,
            length,
            self._geometry.rows,
        )

    def decode(
        self,
        slot: LayerSlot,
        queries: mx.array,
        call: AttentionCall,
    ) -> mx.array:
        new = None
        if self._waiting is not None and self._waiting[0] == slot:
            new = self._waiting[1]
            self._waiting = None
        self.finish()
        if new is not None and self._shares:
            self._write(slot, new, call.rotation)
            new = None
        state = self._state
        shape = self._backend.arenas[slot.group].shape
        kernels = self._backend.kernels(slot.group, queries.shape[1])
        if call.rotated is not None:
            return self._decode_latents(slot, queries, call.rotated, call, new)
        attended, fence = kernels.paged_decode(
            queries.astype(shape.dtype),
            state.arenas[slot.group],
            state.scales[slot.group],
            state.descriptors[slot.group],
            state.layers[slot.layer],
            state.fence,
            state.scratch,
            scale=call.scale,
            window=shape.window or 0,
            softcap=call.softcap,
            sinks=call.sinks,
            new=new,
            rotation=call.rotation,
        )
        self._advance(fence)
        return attended

    def _decode_latents(
        self,
        slot: LayerSlot,
        queries: mx.array,
        rotated: mx.array,
        call: AttentionCall,
        new: NewTokens | None,
    ) -> mx.array:
        """Latent attention, whose rotated queries are multiplied by the scale already."""
        state = self._state
        shape = self._backend.arenas[slot.group].shape
        kernels = self._backend.kernels(slot.group, queries.shape[1])
        attended, fence = kernels.latent_decode(
            queries.astype(shape.dtype),
            rotated.astype(shape.dtype),
            state.arenas[slot.group],
            state.scales[slot.group],
            state.descriptors[slot.group],
            state.layers[slot.layer],
            state.fence,
            state.scratch,
            scale=call.scale,
            rotated_by=1.0 / call.scale,
            new=new,
            rotation=call.rotation,
        )
        self._advance(fence)
        return attended

    def prefill(
        self,
        slot: LayerSlot,
        queries: mx.array,
        call: AttentionCall,
    ) -> mx.array:
        keys, values = self.gather(slot)
        mask = chunk_mask(self._geometry, slot.group, keys.shape[2])
        return dense_attention(queries, keys, values, call, mask)
