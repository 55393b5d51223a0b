"""The decode call as one compiled graph.

It takes 5-10 us of Python to build a custom kernel's call, in every layer. The in-place
write survives `mx.compile` as long as its fence is an argument and a result. Whatever
the kernels read is an argument too. Shapes go in buckets, so that few graphs are
traced.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import mlx.core as mx
import numpy as np
import numpy.typing as npt
from mlx import nn

from rvllm_local.attention.geometry import CallGeometry, DecodeRow
from rvllm_local.attention.in_order import token_depths
from rvllm_local.attention.kernel_session import KernelSession, KernelState
from rvllm_local.attention.kernels import KernelBackend
from rvllm_local.attention.residual import JoinedAdds
from rvllm_local.attention.rotation import StepOffset
from rvllm_local.attention.seam import session_caches, state_after
from rvllm_local.engine.prepared_step import (
    Outputs,
    PreparedStep,
    Words,
    prepare_step,
)
from rvllm_local.memory.layout import KVLayout
from rvllm_local.memory.state import Arrays, are_alike, stacked
from rvllm_local.metal_kernels import default_backend, descriptor
from rvllm_local.models.adapted import AdapterChoice

_SMALLEST_TABLE = 8  # blocks a row


class CompiledDecode:
    """Logits, or greedy tokens, of one token a row.

    They come from a compiled graph of the model and the kernels.
    """

    def __init__(
        self,
        model: nn.Module,
        layout: KVLayout,
        backend: KernelBackend,
        *,
        rotates: bool,
        joined: JoinedAdds | None = None,
        adapters: AdapterChoice | None = None,
        compile_step: Callable[..., Any] = mx.compile,
        copies: bool | None = None,
        prepares: bool = False,
    ) -> None:
        """With `rotates` the kernels rotate queries and keys (see `attention.rotation`).

        With `copies` the device reads descriptors from a copy that a step begins with.
        What the host wrote lies in managed memory on CUDA, whose pages seem to move back
        to the host when it writes the next step's: a profile had kernels that took 0.1
        ms more, amid a step. None: on CUDA alone.

        `joined` is described in `attention.residual`. The rows' `adapters` are an
        argument of the graph, as the states of recurrent layers are.

        With `prepares` the graph of a step that checks drafts is built ahead; see
        `engine.prepared_step`. Only for kernels that are described before they run.
        """
        self._model = model
        self._rotates = rotates
        self._copies = default_backend() == "cuda" if copies is None else copies
        self._adapters = adapters or AdapterChoice(0)
        self._joined: Callable[[], contextlib.AbstractContextManager[None]]
        self._joined = contextlib.nullcontext
        if joined is not None:
            self._joined = joined.on
        # Each array from the host costs a step time, and the descriptor has the
        # positions.
        self._unused = mx.zeros((1,), dtype=mx.int32)
        mx.eval(self._unused)
        self._layout = layout
        self._backend = backend
        self._logits = compile_step(self._trace)
        self._greedy = compile_step(self._trace_greedy)
        # Of rows that read each other's new tokens.
        self._shared_logits = compile_step(self._trace_shared)
        self._shared_greedy = compile_step(self._trace_shared_greedy)
        self._traced: dict[tuple[object, ...], dict[str, int]] = {}
        self._prepares = prepares and not layout.has_state  # states are inputs, too
        self._describe_next: Callable[[], PreparedStep] | None = None
        self._prepared: PreparedStep | None = None

    @staticmethod
    def padded_rows(rows: int) -> int:
        """How many rows the graph for `rows` rows has."""
        return bucket(rows, 1)

    def takes(self, rows: Sequence[DecodeRow]) -> bool:
        """False for rows whose recurrent states cannot stand in one array.

        So it is at a sequence's first token, which has none, and where a row begins
        with what the one before it ends with.
        """
        if not self._layout.has_state:
            return True
        if token_depths(rows) is not None:
            return False
        return are_alike([row.tables.state for row in rows])

    def logits(self, rows: Sequence[DecodeRow], tokens: mx.array) -> mx.array:
        """Logits `[rows, vocab]`, not evaluated.

        `tokens` int32 `[padded_rows]` holds one token a row.
        """
        step = self._shared_logits if rows_share(rows) else self._logits
        logits = self._call(step, rows, tokens)
        return logits[: len(rows)]

    def greedy(
        self,
        rows: Sequence[DecodeRow],
        tokens: mx.array,
        keep: int,
    ) -> mx.array:
        """The most likely token of each row, int32, not evaluated.

        Padding beyond `keep` rows may be there or not.
        """
        step = self._shared_greedy if rows_share(rows) else self._greedy
        drawn = self._call(step, rows, tokens)
        if keep == len(rows):
            return drawn
        return drawn[:keep]

    def _call(
        self,
        step: object,
        rows: Sequence[DecodeRow],
        tokens: mx.array,
    ) -> mx.array:
        backend = self._backend
        size = tokens.shape[0]
        packed = []
        max_blocks = []
        for group in range(len(self._layout.groups)):
            words = self._pack(rows, group, size)
            packed.append(words)
            max_blocks.append(descriptor.max_blocks_of(words.size, size))
        before = backend.counter.snapshot()
        scratch = backend.scratch(size, max_blocks)
        adapters = self._adapters_of(rows, size)
        sizes = [words.size for words in packed]
        key = (step, size, scratch.size, adapters is None, *sizes)
        outputs = self._prepared_outputs(key, rows, size, packed)
        if outputs is None:
            outputs = self._new_outputs(step, rows, tokens, packed, scratch, adapters)
        self._count(key, before)
        result, backend.fence, after = outputs
        for index, row in enumerate(rows):
            row.tables.state.put(after, index)
        self._describe_next = None
        if self._prepares and adapters is None and rows_share(rows):
            self._describe_next = functools.partial(
                self._prepare, step, key, size, sizes, scratch
            )
        return result

    def _new_outputs(
        self,
        step: object,
        rows: Sequence[DecodeRow],
        tokens: mx.array,
        packed: list[Words],
        scratch: mx.array,
        adapters: mx.array | None,
    ) -> Outputs:
        """The outputs of a step that was not prepared."""
        size = tokens.shape[0]
        positions = self._unused
        if not self._rotates:
            positions = mx.array(_positions(rows, size))
        state: Arrays = ()
        if self._layout.has_state:
            state = stacked([row.tables.state for row in rows], size)
        descriptors = [mx.array(words) for words in packed]
        return self._describe(
            step, tokens, positions, descriptors, scratch, state, adapters
        )

    def _describe(
        self,
        step: object,
        tokens: mx.array,
        positions: mx.array,
        descriptors: list[mx.array],
        scratch: mx.array,
        state: Arrays = (),
        adapters: mx.array | None = None,
    ) -> Outputs:
        """Call the compiled step: build its graph, which runs later."""
        backend = self._backend
        assert callable(step)
        outputs: Outputs = step(
            tokens,
            positions,
            descriptors,
            backend.fence,
            backend.arrays,
            backend.scales,
            backend.layers,
            scratch,
            state,
            adapters,
        )
        return outputs

    def prepare(self) -> None:
        """Build the next step's graph, if it is likely to be as the last one.

        So it is after one that checked drafts. Call it while the device computes.
        """
        if self._describe_next is not None:
            self._prepared = self._describe_next()
            self._describe_next = None

    def _prepare(
        self,
        step: object,
        key: tuple[object, ...],
        size: int,
        sizes: Sequence[int],
        scratch: mx.array,
    ) -> PreparedStep:
        num_positions = 0 if self._rotates else 1

        def describe(inputs: Sequence[mx.array]) -> Outputs:
            positions = self._unused if self._rotates else inputs[1]
            descriptors = list(inputs[1 + num_positions :])
            return self._describe(step, inputs[0], positions, descriptors, scratch)

        all_sizes = [size] * (1 + num_positions) + list(sizes)
        return prepare_step(key, self._backend.fence, all_sizes, describe)

    def _prepared_outputs(
        self,
        key: tuple[object, ...],
        rows: Sequence[DecodeRow],
        size: int,
        packed: list[Words],
    ) -> Outputs | None:
        """The outputs of the step that was prepared, if it is this one."""
        prepared = self._prepared
        self._prepared = None
        if prepared is None or not prepared.serves(key, self._backend.fence):
            return None
        if any(row.previous_row is not None for row in rows):
            return None
        words = [_padded([row.token_id for row in rows], size)]
        if not self._rotates:
            words.append(_positions(rows, size))
        return prepared.filled(words + packed)

    def _adapters_of(self, rows: Sequence[DecodeRow], size: int) -> mx.array | None:
        """Each row's adapter, uint32; None where all use the model as it is."""
        numbers = [row.adapter for row in rows]
        if not any(numbers):
            return None
        return mx.array(numbers + [0] * (size - len(rows)), dtype=mx.uint32)

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
        """Count a step's kernels.

        They count themselves where they are described, which happens only while a shape
        is traced.
        """
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
        recurrent: Arrays,
        adapters: mx.array | None,
        *,
        shares: bool = False,
    ) -> tuple[mx.array, mx.array, Arrays]:
        rows = tokens.shape[0]
        if self._copies:  # one launch each, and no text of its own
            packed = [mx.maximum(each, each) for each in packed]
        state = KernelState(arenas, scales, layers, packed, fence, scratch)
        host_positions = np.zeros(rows, dtype=np.int32)  # nobody reads them
        geometry = CallGeometry(host_positions, 1, ())
        session = KernelSession(
            self._backend, geometry, state, fuses=True, shares=shares
        )
        offset: mx.array | StepOffset = positions
        if self._rotates:
            offset = StepOffset(session.rope_table)
        caches = session_caches(
            self._layout,
            session,
            geometry,
            dense=False,
            offset=offset,
            state=tuple(recurrent),
        )
        with self._joined(), self._adapters.traced(adapters):
            logits: mx.array = self._model(tokens[:, None], cache=caches)
        session.finish()
        after: Arrays = ()
        if self._layout.has_state:
            after = state_after(self._layout, caches)
        return logits.squeeze(1), state.fence, after

    def _trace_greedy(self, *inputs: object) -> tuple[mx.array, mx.array, Arrays]:
        return _greedy(self._trace(*inputs))  # type: ignore[arg-type]

    def _trace_shared(self, *inputs: object) -> tuple[mx.array, mx.array, Arrays]:
        return self._trace(*inputs, shares=True)  # type: ignore[arg-type]

    def _trace_shared_greedy(
        self, *inputs: object
    ) -> tuple[mx.array, mx.array, Arrays]:
        return _greedy(self._trace_shared(*inputs))


def _greedy(
    result: tuple[mx.array, mx.array, Arrays],
) -> tuple[mx.array, mx.array, Arrays]:
    logits, fence, after = result
    drawn = mx.argmax(logits, axis=-1)
    return drawn.astype(mx.int32), fence, after


def _positions(rows: Sequence[DecodeRow], size: int) -> Words:
    return _padded([row.position for row in rows], size)


def _padded(values: Sequence[int], size: int) -> Words:
    words = np.zeros(size, dtype=np.int32)
    words[: len(values)] = values
    return words


def rows_share(rows: Sequence[DecodeRow]) -> bool:
    """Rows next to each other are of one sequence: some of its tokens are drafted."""
    for row, next_row in itertools.pairwise(rows):
        if row.tables is next_row.tables:
            return True
    return False


def bucket(count: int, smallest: int) -> int:
    """The next power of two, or one and a half of it, that holds `count`."""
    size = smallest
    while size < count:
        size *= 2
    if size == smallest or size % 4 != 0:
        return size
    middle = size * 3 // 4
    if middle >= count and middle > 4:
        return middle
    return size
