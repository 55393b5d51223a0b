"""A packed step where the engine expects a model and a back end.

The back end moves blocks. The model is called as mlx-lm's are, takes the call's geometry
from its caches and runs the step. Neither is lazy: what is returned has been computed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from rvllm_local.attention.cpu.reference import ReferenceBackend
from rvllm_local.attention.cpu.session import ReferenceSession
from rvllm_local.attention.geometry import CallGeometry, GroupGeometry
from rvllm_local.memory.arena import Arena
from rvllm_local.memory.blocks import BLOCK_TOKENS
from rvllm_local.models.cpu.step import CpuStep

_MOST_GATHERED = 32 << 20  # bytes of one layer's context, all rows of a call together
_MAX_PADDING = 2  # a call's rows times its longest context, over what they have


class StepBackend(ReferenceBackend):
    """Moves blocks for a `StepModel`, which reads and writes the arenas itself."""

    name = "onnxruntime"
    mixes = False  # a further row costs a call of few rows nearly its own share
    runs_by_layer = False

    def __init__(self, arenas: Sequence[Arena]) -> None:
        super().__init__(arenas)

    def begin(
        self, geometry: CallGeometry, *, by_row: bool = False
    ) -> ReferenceSession:
        self._note_writes(geometry)
        return self._session(geometry)


class StepModel:
    """Takes `(tokens, cache=caches)` and returns logits, `[rows, tokens, vocab]`."""

    def __init__(self, step: CpuStep, arenas: Sequence[Arena]) -> None:
        self._step = step
        self._arenas = arenas  # kept alive: the step has their addresses
        self._token_bytes = [_gathered_bytes(arena) for arena in arenas]

    def __call__(self, tokens: mx.array, cache: Sequence[Any]) -> Any:
        geometry: CallGeometry = cache[0].geometry
        token_ids = np.array(tokens)
        if geometry.query_len > 1:
            return self._prefill(geometry, token_ids[0])
        logits = self.decode(geometry, token_ids[:, 0])
        return mx.array(logits[:, None])

    def decode(
        self,
        geometry: CallGeometry,
        token_ids: npt.NDArray[Any],
    ) -> npt.NDArray[np.float32]:
        """Logits `[rows, vocab]` of one token a row, `[rows]`. MLX takes no part in it."""
        logits: list[npt.NDArray[np.float32]] = []
        order: list[int] = []
        for rows in self._together(geometry):
            part = geometry
            if len(rows) < geometry.rows:
                part = _only(geometry, rows)
            logits.append(self._step.logits(part, token_ids[rows]))
            order += rows
        if len(logits) == 1:
            return logits[0]
        vocab = logits[0].shape[1]
        whole = np.empty((geometry.rows, vocab), dtype=np.float32)
        start = 0
        for computed in logits:
            stop = start + len(computed)
            whole[order[start:stop]] = computed
            start = stop
        return whole

    def scratch_bytes(self, rows: int, chunk: int, context: int) -> int:
        """The most bytes that a call takes beside weights and arenas."""
        one_row = 2 * context * max(self._token_bytes)
        gathered = max(_MOST_GATHERED, one_row)
        tokens = max(rows, chunk)
        return gathered + self._step.scratch_bytes(tokens, rows)

    def _prefill(
        self,
        geometry: CallGeometry,
        token_ids: npt.NDArray[Any],
    ) -> DeferredLogits:
        context = int(geometry.positions[0]) + len(token_ids)
        longest = self._step.longest_chunk(context)
        hidden = []
        start = 0
        while start < len(token_ids):
            part = token_ids[start : start + longest]
            chunk = _chunk(geometry, start, len(part))
            hidden.append(self._step.hidden(chunk, part[None]))
            start += len(part)
        return DeferredLogits(self._step, np.concatenate(hidden, axis=1))

    def _together(self, geometry: CallGeometry) -> Iterator[list[int]]:
        """Rows for each call.

        They are of like length, with no more context than the plan has room for, and in
        their order. Of two rows of one sequence the earlier one is not in a later call.
        """
        lengths = geometry.context_lens
        if geometry.rows == 1:
            yield [0]
            return
        limit = _MOST_GATHERED // max(self._token_bytes)
        rows: list[int] = []
        total = 0
        shortest_first = np.argsort(lengths, kind="stable")
        for row in shortest_first.tolist():
            length = int(lengths[row])
            gathered = length * (len(rows) + 1)
            is_ragged = gathered > _MAX_PADDING * (total + length)
            if rows and (gathered > limit or is_ragged):
                yield sorted(rows)
                rows = []
                total = 0
            rows.append(row)
            total += length
        yield sorted(rows)


class DeferredLogits:
    """A prompt's logits `[rows, tokens, vocab]`, computed only if somebody wants them."""

    def __init__(self, step: CpuStep, hidden: npt.NDArray[np.float32]) -> None:
        self._step = step
        self._hidden = hidden

    def __getitem__(self, index: Any) -> DeferredLogits:
        """Some rows or tokens; the vocabulary stays whole."""
        return DeferredLogits(self._step, self._hidden[index])

    def astype(self, dtype: mx.Dtype) -> mx.array:
        """The logits."""
        logits = self._step.head(self._hidden)
        return mx.array(logits).astype(dtype)


def _gathered_bytes(arena: Arena) -> int:
    """Bytes that one layer's attention gathers of a token."""
    shape = arena.shape
    return 2 * shape.kv_heads * shape.width * 4


def _only(geometry: CallGeometry, rows: list[int]) -> CallGeometry:
    """Those rows of a decode call.

    Their tables have no more columns than they need.
    """
    positions = geometry.positions[rows]
    groups = []
    for view in geometry.groups:
        first = view.first_positions[rows]
        longest = int((positions - first).max())
        width = longest // BLOCK_TOKENS + 1
        group = GroupGeometry(
            view.window,
            view.tables[rows, :width],
            first,
            view.write_blocks[rows],
            view.write_slots[rows],
        )
        groups.append(group)
    return CallGeometry(positions, geometry.query_len, tuple(groups))


def _chunk(geometry: CallGeometry, start: int, count: int) -> CallGeometry:
    """`count` of a prefill call's tokens from `start` on, over the context they see."""
    if count == geometry.query_len:
        return geometry
    positions = geometry.positions + np.int32(start)
    stop = start + count
    groups = []
    for view in geometry.groups:
        end = int(positions[0]) + count
        used = end - int(view.first_positions[0])
        blocks = -(-used // BLOCK_TOKENS)
        group = dataclasses.replace(
            view,
            tables=view.tables[:, :blocks],
            write_blocks=view.write_blocks[:, start:stop],
            write_slots=view.write_slots[:, start:stop],
        )
        groups.append(group)
    return CallGeometry(positions, count, tuple(groups))
