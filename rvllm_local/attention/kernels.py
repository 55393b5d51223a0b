"""The kernel back end: the project's kernels write the arena in place and read it.

Every kernel that touches the arena takes the newest fence, and every writer returns
the next one. Only this file and `kernel_session.py` hand fences on
(metal_kernels/README.md states the order).
Nothing is read back on the host.
"""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from rvllm_local.attention.geometry import CallGeometry
from rvllm_local.attention.kernel_session import KernelSession, KernelState
from rvllm_local.errors import UnsupportedModelError
from rvllm_local.memory.arena import Arena, KVShape
from rvllm_local.metal_kernels import (
    KernelConfig,
    KernelSet,
    default_backend,
    descriptor,
)
from rvllm_local.metal_kernels.config import FENCE_SIZE, MAX_GROUP, MAX_QUERY_LEN
from rvllm_local.metal_kernels.launch import DispatchCounter, Launcher

_CUDA_GRAIN = 256  # cuDNN plans each shape of attention anew, which takes 40 to 900 ms


class KernelBackend:
    """Reads and writes the arenas with the kernels.

    Raises `UnsupportedModelError` for a shape without a variant.
    """

    name = "kernels"
    overlaps = True
    mixes = False
    verifies = True
    runs_by_layer = False

    def __init__(
        self,
        arenas: Sequence[Arena],
        launcher: Launcher | None = None,
        heads: int | None = None,
    ) -> None:
        """Make the kernels of each arena.

        `heads` is the largest number of query heads of a layer. With None it is
        unknown, and a layer's kernels are made when it first calls.
        """
        self.arenas = tuple(arenas)
        if heads is None:
            most_kv_heads = max(arena.shape.kv_heads for arena in arenas)
            self._heads = MAX_GROUP * most_kv_heads
        else:
            self._heads = heads
        self._scratch = mx.zeros((FENCE_SIZE,), dtype=mx.float32)
        self.arrays = [arena.array for arena in arenas]
        self.scales = [arena.scales for arena in arenas]
        self.counter = DispatchCounter()
        self.prefill_grain = 1
        if default_backend() == "cuda":
            self.prefill_grain = _CUDA_GRAIN
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
        descriptors = []
        widths = []
        for view in geometry.groups:
            words = descriptor.pack(
                contexts,
                view.first_positions.tolist(),
                view.tables.tolist(),
                geometry.query_len,
            )
            descriptors.append(mx.array(words))
            widths.append(view.tables.shape[1])
        query_len = min(geometry.query_len, MAX_QUERY_LEN)
        state = KernelState(
            arenas=self.arrays,
            scales=self.scales,
            layers=self.layers,
            descriptors=descriptors,
            fence=self.fence,
            scratch=self.scratch(geometry.rows, widths, query_len),
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
        self,
        rows: int,
        max_blocks: Sequence[int],
        query_len: int = 1,
    ) -> mx.array:
        """The scratch, grown if `rows` rows of so many blocks in each group need more.

        All calls share it, for the fence orders them. It grows in large steps, since
        every size is traced anew.
        """
        needed = 0
        for group, blocks in enumerate(max_blocks):
            kernels = self.kernels(group, self._heads_of(group))
            group_size = kernels.scratch_size(rows, query_len, blocks)
            needed = max(needed, group_size)
        size = self._scratch.size
        if needed > size:
            while size < needed:
                size *= 4
            self._scratch = mx.zeros((size,), dtype=mx.float32)
            mx.eval(self._scratch)
        return self._scratch

    def _heads_of(self, group: int) -> int:
        """The most query heads that a layer of this group can have."""
        if self.arenas[group].shape.latent:
            return self._heads
        kv_heads = self.arenas[group].shape.kv_heads
        group_size, rest = divmod(self._heads, kv_heads)
        if rest == 0 and group_size <= MAX_GROUP:
            return self._heads
        return MAX_GROUP * kv_heads

    def flush(self) -> None:
        """Run the writes that were described, and nothing beside them."""
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
        """Write saved bytes into blocks.

        Raises `ValueError` for a payload of the wrong size.
        """
        if not block_ids:
            return
        shape = self.arenas[group].shape
        words = np.stack([block_words(payload, shape) for payload in payloads])
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
        if not pairs:
            return
        host_pairs = np.array(pairs, dtype=np.int32)
        self.fence = self._block_kernels(group).kv_copy(
            self.arrays[group],
            self.scales[group],
            mx.array(host_pairs),
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
    """A saved block as 32-bit words. Raises `ValueError` for another size."""
    if len(payload) != shape.block_bytes:
        raise ValueError(
            f"a saved block has {len(payload)} bytes, "
            f"and this arena's blocks have {shape.block_bytes}"
        )
    return np.frombuffer(payload, dtype=np.uint32)


def _block_list(block_ids: Sequence[int]) -> mx.array:
    """Block ids as the kernels take them: 8 or more, padded with the scratch block."""
    padded = np.zeros(max(8, len(block_ids)), dtype=np.int32)
    padded[: len(block_ids)] = block_ids
    return mx.array(padded)


def _config(shape: KVShape, heads: int) -> KernelConfig:
    return KernelConfig(
        shape.key_dim,
        heads,
        shape.kv_heads,
        shape.num_layers,
        shape.dtype,
        shape.stored_dtype,
        shape.value_dim,
    )
