"""The decode call as one compiled graph: building a custom kernel call costs 5-10 us of Python, every layer.

The in-place write survives `mx.compile` as long as its token is an argument and a result. Whatever the kernels read
is an argument too. Shapes go in buckets, so that few graphs are traced.
"""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx
import numpy as np
from mlx import nn

from rvllm_local.attention.geometry import CallGeometry
from rvllm_local.attention.kernels import KernelBackend, KernelSession, KernelState
from rvllm_local.attention.seam import session_caches
from rvllm_local.memory.layout import KVLayout
from rvllm_local.metal_kernels import descriptor

_SMALLEST_TABLE = 8  # blocks a row


class CompiledDecode:
    """Logits of one token a row through a compiled graph of model and kernels."""

    def __init__(self, model: nn.Module, layout: KVLayout, backend: KernelBackend) -> None:
        self._model = model
        self._layout = layout
        self._backend = backend
        self._step = mx.compile(self._trace)
        self._traced: dict[tuple[int, ...], dict[str, int]] = {}

    def __call__(self, geometry: CallGeometry, token_ids: Sequence[int]) -> mx.array:
        """Logits `[rows, vocab]`, not evaluated. `token_ids` holds one token a row."""
        rows = bucket(geometry.rows, 1)
        contexts = geometry.context_lens.tolist()
        packed = [
            descriptor.pack(
                contexts,
                view.first_positions.tolist(),
                view.tables.tolist(),
                1,
                rows=rows,
                max_blocks=bucket(view.tables.shape[1], _SMALLEST_TABLE),
            )
            for view in geometry.groups
        ]
        padded = np.zeros((2, rows), dtype=np.int32)
        padded[0, : geometry.rows] = token_ids
        padded[1, : geometry.rows] = geometry.positions
        key = (rows, *(part.size for part in packed))
        before = self._backend.counter.snapshot()
        logits, token = self._step(
            mx.array(padded),
            [mx.array(part) for part in packed],
            self._backend.token,
            self._backend.arrays,
            self._backend.layers,
        )
        self._count(key, before)
        self._backend.token = token
        return logits[: geometry.rows]

    def _count(self, key: tuple[int, ...], before: dict[str, int]) -> None:
        """Kernels are counted where they are described, which happens only while a shape is traced."""
        if key not in self._traced:
            self._traced[key] = self._backend.counter.since(before)
        else:
            self._backend.counter.add(self._traced[key])

    def _trace(
        self,
        inputs: mx.array,
        packed: list[mx.array],
        token: mx.array,
        arenas: list[mx.array],
        layers: list[mx.array],
    ) -> tuple[mx.array, mx.array]:
        rows = inputs.shape[1]
        state = KernelState(arenas, layers, packed, token)
        geometry = CallGeometry(np.zeros(rows, dtype=np.int32), 1, ())
        session = KernelSession(self._backend, geometry, state)
        caches = session_caches(self._layout, session, geometry, dense=False, offset=inputs[1])
        logits: mx.array = self._model(inputs[0][:, None], cache=caches)
        return logits[:, -1], state.token


def bucket(count: int, smallest: int) -> int:
    """The next power of two, or one and a half of it, that holds `count`."""
    size = smallest
    while size < count:
        size *= 2
    middle = size * 3 // 4
    return middle if size > smallest and size % 4 == 0 and middle >= count and middle > 4 else size
