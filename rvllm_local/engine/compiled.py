"""The decode call as one compiled graph: building a custom kernel call costs 5-10 us of Python, every layer.

The in-place write survives `mx.compile` as long as its fence is an argument and a result. Whatever the kernels read
is an argument too. Shapes go in buckets, so that few graphs are traced.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import mlx.core as mx
import numpy as np
import numpy.typing as npt
from mlx import nn

from rvllm_local.attention.geometry import CallGeometry, DecodeRow
from rvllm_local.attention.kernels import KernelBackend, KernelSession, KernelState
from rvllm_local.attention.residual import JoinedAdds
from rvllm_local.attention.rotation import StepOffset
from rvllm_local.attention.seam import session_caches
from rvllm_local.memory.layout import KVLayout
from rvllm_local.metal_kernels import descriptor

_SMALLEST_TABLE = 8  # blocks a row


class CompiledDecode:
    """Logits, or greedy tokens, of one token a row through a compiled graph of model and kernels."""

    def __init__(
        self,
        model: nn.Module,
        layout: KVLayout,
        backend: KernelBackend,
        *,
        rotates: bool,
        joined: JoinedAdds | None = None,
        compile_step: Callable[..., Any] = mx.compile,
    ) -> None:
        """`rotates`: the kernels rotate queries and keys (see `attention.rotation`); `joined`: see `attention.residual`."""
        self._model = model
        self._rotates = rotates
        self._joined = contextlib.nullcontext if joined is None else joined.on
        self._unused = mx.zeros(
            (1,), dtype=mx.int32
        )  # each array from the host costs a step: the descriptor is enough
        mx.eval(self._unused)
        self._layout = layout
        self._backend = backend
        self._logits = compile_step(self._trace)
        self._greedy = compile_step(self._trace_greedy)
        self._traced: dict[tuple[object, ...], dict[str, int]] = {}

    @staticmethod
    def padded_rows(rows: int) -> int:
        """How many rows the graph for `rows` rows has."""
        return bucket(rows, 1)

    def logits(self, rows: Sequence[DecodeRow], tokens: mx.array) -> mx.array:
        """Logits `[rows, vocab]`, not evaluated. `tokens` int32 `[padded_rows]` holds one token a row."""
        return self._call(self._logits, rows, tokens)[: len(rows)]

    def greedy(
        self,
        rows: Sequence[DecodeRow],
        tokens: mx.array,
        keep: int,
    ) -> mx.array:
        """The most likely token of each row, int32, not evaluated; padding beyond `keep` rows may be there or not."""
        drawn = self._call(self._greedy, rows, tokens)
        return drawn if keep == len(rows) else drawn[:keep]

    def _call(
        self,
        step: object,
        rows: Sequence[DecodeRow],
        tokens: mx.array,
    ) -> mx.array:
        size = tokens.shape[0]
        packed = [
            self._pack(rows, group, size) for group in range(len(self._layout.groups))
        ]
        before = self._backend.counter.snapshot()
        scratch = self._backend.scratch(
            size, [descriptor.max_blocks_of(part.size, size) for part in packed]
        )
        assert callable(step)
        result, fence = step(
            tokens,
            self._unused if self._rotates else self._positions(rows, size),
            [mx.array(part) for part in packed],
            self._backend.fence,
            self._backend.arrays,
            self._backend.scales,
            self._backend.layers,
            scratch,
        )
        self._count((step, size, scratch.size, *(part.size for part in packed)), before)
        self._backend.fence = fence
        output: mx.array = result
        return output

    @staticmethod
    def _positions(rows: Sequence[DecodeRow], size: int) -> mx.array:
        positions = np.zeros(size, dtype=np.int32)
        positions[: len(rows)] = [row.position for row in rows]
        return mx.array(positions)

    def _pack(
        self,
        rows: Sequence[DecodeRow],
        group: int,
        size: int,
    ) -> npt.NDArray[np.int32]:
        """One group's step descriptor, padded to `size` rows and a bucket of blocks."""
        tables = [row.tables.groups[group] for row in rows]
        longest = max(len(table.block_ids) for table in tables)
        return descriptor.pack_decode(
            [row.position + 1 for row in rows],
            [table.first_position for table in tables],
            [table.block_ids for table in tables],
            size,
            bucket(longest, _SMALLEST_TABLE),
        )

    def _count(self, key: tuple[object, ...], before: dict[str, int]) -> None:
        """Kernels are counted where they are described, which happens only while a shape is traced."""
        if key not in self._traced:
            self._traced[key] = self._backend.counter.since(before)
        else:
            self._backend.counter.add(self._traced[key])

    def _trace(
        self,
        tokens: mx.array,
        positions: mx.array,
        packed: list[mx.array],
        fence: mx.array,
        arenas: list[mx.array],
        scales: list[mx.array | None],
        layers: list[mx.array],
        scratch: mx.array,
    ) -> tuple[mx.array, mx.array]:
        rows = tokens.shape[0]
        state = KernelState(arenas, scales, layers, packed, fence, scratch)
        geometry = CallGeometry(np.zeros(rows, dtype=np.int32), 1, ())
        session = KernelSession(self._backend, geometry, state, fuses=True)
        offset = StepOffset(session.rope_table) if self._rotates else positions
        caches = session_caches(
            self._layout, session, geometry, dense=False, offset=offset
        )
        with self._joined():
            logits: mx.array = self._model(tokens[:, None], cache=caches)
        session.finish()
        return logits.squeeze(1), state.fence

    def _trace_greedy(self, *inputs: object) -> tuple[mx.array, mx.array]:
        logits, fence = self._trace(*inputs)  # type: ignore[arg-type]
        return mx.argmax(logits, axis=-1).astype(mx.int32), fence


def bucket(count: int, smallest: int) -> int:
    """The next power of two, or one and a half of it, that holds `count`."""
    size = smallest
    while size < count:
        size *= 2
    middle = size * 3 // 4
    return (
        middle
        if size > smallest and size % 4 == 0 and middle >= count and middle > 4
        else size
    )
