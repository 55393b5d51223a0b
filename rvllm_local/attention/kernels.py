"""The kernel back end: the project's own kernels write the arena in place and read it through block tables.

Every kernel that touches the arena takes the newest fence, and every writer returns the next one; this file is the
one place that threads it (the order contract is in metal_kernels/README.md). Nothing is read back on the host.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from rvllm_local.attention.backend import AttentionCall
from rvllm_local.attention.dense import chunk_mask, dense_attention
from rvllm_local.attention.geometry import CallGeometry
from rvllm_local.errors import UnsupportedModelError
from rvllm_local.memory.arena import Arena, KVShape
from rvllm_local.memory.layout import LayerSlot
from rvllm_local.metal_kernels import (
    KernelConfig,
    KernelSet,
    NewTokens,
    default_backend,
    descriptor,
)
from rvllm_local.metal_kernels.config import FENCE_SIZE, MAX_GROUP, MAX_QUERY_LEN
from rvllm_local.metal_kernels.launch import DispatchCounter, Launcher

_CUDA_GRAIN = 256  # cuDNN plans each shape of attention anew, which takes 40 to 900 ms


@dataclass(slots=True)
class KernelState:
    """What the kernels of one call read and write; under `mx.compile` these are the trace's own arrays.

    `fence` is replaced by every kernel that writes, to the arenas or to the scratch.
    """

    arenas: list[mx.array]
    scales: list[mx.array | None]  # of int8 arenas
    layers: list[mx.array]  # each layer's number as the kernels take it
    descriptors: list[mx.array]  # one a group
    fence: mx.array
    scratch: mx.array  # what a row's splits hand to the combine step


class KernelBackend:
    """Reads and writes the arenas with the kernels. Raises `UnsupportedModelError` for a shape without a variant."""

    name = "kernels"
    overlaps = True
    mixes = False
    runs_by_layer = False

    def __init__(
        self,
        arenas: Sequence[Arena],
        launcher: Launcher | None = None,
        heads: int | None = None,
    ) -> None:
        """`heads` are the model's query heads, the most that a layer has; None if that is not known: each layer will show."""
        self.arenas = tuple(arenas)
        self._heads = (
            MAX_GROUP * max(arena.shape.kv_heads for arena in arenas)
            if heads is None
            else heads
        )
        self._scratch = mx.zeros((FENCE_SIZE,), dtype=mx.float32)
        self.arrays = [arena.array for arena in arenas]
        self.scales = [arena.scales for arena in arenas]
        self.counter = DispatchCounter()
        self.prefill_grain = _CUDA_GRAIN if default_backend() == "cuda" else 1
        self.fence = KernelSet.first_fence()
        self._launcher = launcher
        self._sets: dict[tuple[int, int], KernelSet] = {}
        most_layers = max(arena.shape.num_layers for arena in arenas)
        self.layers = [KernelSet.layer_index(layer) for layer in range(most_layers)]
        for group, arena in enumerate(self.arenas):
            kv_heads = arena.shape.kv_heads
            self.kernels(group, kv_heads)
            if heads is not None and heads % kv_heads == 0:
                self.kernels(group, heads)
        mx.eval(self.fence, self.layers)

    def begin(self, geometry: CallGeometry, *, by_row: bool = False) -> KernelSession:
        """Prepare one model call; the kernels go by row in any case."""
        contexts = geometry.context_lens.tolist()
        descriptors = [
            mx.array(
                descriptor.pack(
                    contexts,
                    view.first_positions.tolist(),
                    view.tables.tolist(),
                    geometry.query_len,
                )
            )
            for view in geometry.groups
        ]
        widths = [view.tables.shape[1] for view in geometry.groups]
        scratch = self.scratch(
            geometry.rows, widths, min(geometry.query_len, MAX_QUERY_LEN)
        )
        state = KernelState(
            self.arrays, self.scales, self.layers, descriptors, self.fence, scratch
        )
        return KernelSession(self, geometry, state)

    def begin_mixed(
        self,
        geometry: CallGeometry,
        decode: CallGeometry,
        chunks: Sequence[CallGeometry],
    ) -> KernelSession:
        """Refused: a GPU gains nothing from prompt tokens in a decode call."""
        raise UnsupportedModelError(
            f"the kernels take no prompt tokens in a decode call ({len(chunks)} chunks "
            f"beside {decode.rows} rows); prefill the chunks in calls of their own"
        )

    def scratch(
        self, rows: int, max_blocks: Sequence[int], query_len: int = 1
    ) -> mx.array:
        """The scratch, grown if a call of `rows` rows with so many blocks in each group needs more.

        One array for all calls: the fence orders them. It grows in large steps, since every size is traced anew.
        """
        needed = max(
            self.kernels(group, self._heads_of(group)).scratch_size(
                rows, query_len, blocks
            )
            for group, blocks in enumerate(max_blocks)
        )
        if needed > self._scratch.size:
            size = self._scratch.size
            while size < needed:
                size *= 4
            self._scratch = mx.zeros((size,), dtype=mx.float32)
            mx.eval(self._scratch)
        return self._scratch

    def _heads_of(self, group: int) -> int:
        """The most query heads that a layer of this group can have."""
        kv_heads = self.arenas[group].shape.kv_heads
        return (
            self._heads
            if self._heads % kv_heads == 0 and self._heads // kv_heads <= MAX_GROUP
            else MAX_GROUP * kv_heads
        )

    def flush(self) -> None:
        """Run the writes that have been described; what the model computed beside them is left alone."""
        mx.eval(self.fence)

    def save_blocks(self, group: int, block_ids: Sequence[int]) -> list[bytes]:
        """Each block as bytes: its elements, then its scales."""
        if not block_ids:
            return []
        saved = self._block_kernels(group).kv_save(
            self.arrays[group],
            self.scales[group],
            _block_list(block_ids),
            self.fence,
            len(block_ids),
        )
        host = np.array(saved)
        return [block.tobytes() for block in host[: len(block_ids)]]

    def load_blocks(
        self,
        group: int,
        block_ids: Sequence[int],
        payloads: Sequence[bytes | bytearray],
    ) -> None:
        """Write saved bytes into blocks. Raises `ValueError` for a payload of the wrong size."""
        if not block_ids:
            return
        words = np.stack(
            [block_words(payload, self.arenas[group].shape) for payload in payloads]
        )
        self.fence = self._block_kernels(group).kv_load(
            self.arrays[group],
            self.scales[group],
            _block_list(block_ids),
            mx.array(words),
            self.fence,
        )
        mx.eval(self.fence)  # the payloads' memory is free again

    def copy_blocks(self, group: int, pairs: Sequence[tuple[int, int]]) -> None:
        """Copy blocks in place."""
        if pairs:
            self.fence = self._block_kernels(group).kv_copy(
                self.arrays[group],
                self.scales[group],
                mx.array(np.array(pairs, dtype=np.int32)),
                self.fence,
            )

    def _block_kernels(self, group: int) -> KernelSet:
        return self.kernels(group, self.arenas[group].shape.kv_heads)

    @property
    def num_dispatches(self) -> int:
        return sum(self.counter.snapshot().values())

    def kernels(self, group: int, heads: int) -> KernelSet:
        """The kernels of one group for layers with this many query heads."""
        kernels = self._sets.get((group, heads))
        if kernels is None:
            config = _config(self.arenas[group].shape, heads)
            kernels = KernelSet(config, launcher=self._launcher, counter=self.counter)
            self._sets[(group, heads)] = kernels
        return kernels


def block_words(payload: bytes | bytearray, shape: KVShape) -> npt.NDArray[np.uint32]:
    """A saved block as 32-bit words. Raises `ValueError` if it is not one of this shape's."""
    if len(payload) != shape.block_bytes:
        raise ValueError(
            f"a saved block has {len(payload)} bytes, and this arena's blocks have {shape.block_bytes}"
        )
    return np.frombuffer(payload, dtype=np.uint32)


def _block_list(block_ids: Sequence[int]) -> mx.array:
    """Block ids as the kernels take them: at least 8 elements, padded with the scratch block."""
    padded = np.zeros(max(8, len(block_ids)), dtype=np.int32)
    padded[: len(block_ids)] = block_ids
    return mx.array(padded)


def _config(shape: KVShape, heads: int) -> KernelConfig:
    if shape.key_dim != shape.value_dim:
        raise UnsupportedModelError(
            f"no kernel for keys of {shape.key_dim} and values of {shape.value_dim}; "
            "the reference attention serves this model instead"
        )
    return KernelConfig(
        shape.key_dim,
        heads,
        shape.kv_heads,
        shape.num_layers,
        shape.dtype,
        shape.stored_dtype,
    )


class KernelSession:
    """One model call over the state that it is given; the backend's fence follows the state's.

    With `fuses`, in a compiled step, a write waits for the attention of the same layer, whose launch does both; call `finish`
    at the end. The backend's fence is left to who calls the step: what a trace leaves is no array if the trace fails.
    """

    def __init__(
        self,
        backend: KernelBackend,
        geometry: CallGeometry,
        state: KernelState,
        *,
        fuses: bool = False,
    ) -> None:
        self._backend, self._geometry, self._state = backend, geometry, state
        self._fuses = fuses
        self._waiting: tuple[LayerSlot, NewTokens] | None = None

    def write(self, slot: LayerSlot, keys: mx.array, values: mx.array) -> None:
        self.finish()
        dtype = self._backend.arenas[slot.group].shape.dtype
        self._waiting = slot, NewTokens(keys.astype(dtype), values.astype(dtype))
        if not self._fuses:
            self.finish()

    def finish(self) -> None:
        """Describe the write that still waits, if there is one."""
        if self._waiting is None:
            return
        (slot, new), self._waiting = self._waiting, None
        state, shape = self._state, self._backend.arenas[slot.group].shape
        fence = self._backend.kernels(slot.group, shape.kv_heads).kv_write(
            state.arenas[slot.group],
            state.scales[slot.group],
            new.keys,
            new.values,
            state.descriptors[slot.group],
            state.layers[slot.layer],
            state.fence,
        )
        self._advance(fence)

    def _advance(self, fence: mx.array) -> None:
        self._state.fence = fence
        if not self._fuses:
            self._backend.fence = fence

    def rope_table(self, frequencies: mx.array) -> mx.array:
        """The cosines and sines of each row's newest position."""
        kernels = self._backend.kernels(0, self._backend.arenas[0].shape.kv_heads)
        return kernels.rope_table(
            self._state.descriptors[0], frequencies, self._geometry.rows
        )

    def gather(self, slot: LayerSlot) -> tuple[mx.array, mx.array]:
        if self._geometry.rows != 1:
            raise UnsupportedModelError(
                "several rows cannot be gathered at once; call the model row by row"
            )
        self.finish()
        state, shape = self._state, self._backend.arenas[slot.group].shape
        view = self._geometry.groups[slot.group]
        length = int(self._geometry.context_lens[0] - view.first_positions[0])
        return self._backend.kernels(slot.group, shape.kv_heads).kv_gather(
            state.arenas[slot.group],
            state.scales[slot.group],
            state.descriptors[slot.group],
            state.layers[slot.layer],
            state.fence,
            length,
        )

    def decode(
        self, slot: LayerSlot, queries: mx.array, call: AttentionCall
    ) -> mx.array:
        new = None
        if self._waiting is not None and self._waiting[0] == slot:
            new, self._waiting = self._waiting[1], None
        self.finish()
        state, shape = self._state, self._backend.arenas[slot.group].shape
        attended, fence = self._backend.kernels(
            slot.group, queries.shape[1]
        ).paged_decode(
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

    def prefill(
        self, slot: LayerSlot, queries: mx.array, call: AttentionCall
    ) -> mx.array:
        keys, values = self.gather(slot)
        mask = chunk_mask(self._geometry, slot.group, keys.shape[2])
        return dense_attention(queries, keys, values, call, mask)
