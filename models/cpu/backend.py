"""A packed step where the engine expects a model and a back end.

The back end keeps what moves blocks; the model is called as mlx-lm's are, finds the call's geometry in its caches and
runs the step. Neither describes anything for later: what is returned has happened.
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
        self._token_bytes = [_gathered_bytes(arena) for arena in arenas]

    def __call__(self, tokens: mx.array, cache: Sequence[Any]) -> Any:
        geometry: CallGeometry = cache[0].geometry
        token_ids = np.array(tokens)
        if geometry.query_len > 1:
            return self._prefill(geometry, token_ids[0])
        logits: list[npt.NDArray[np.float32]] = []
        order: list[int] = []
        for rows in self._together(geometry):
            part = geometry if len(rows) == geometry.rows else _only(geometry, rows)
            logits.append(self._step.logits(part, token_ids[rows, 0]))
            order += rows
        if len(logits) == 1:
            return mx.array(logits[0])[:, None]
        whole = np.empty((geometry.rows, logits[0].shape[1]), dtype=np.float32)
        whole[order] = np.concatenate(logits)
        return mx.array(whole)[:, None]

    def scratch_bytes(self, rows: int, chunk: int, context: int) -> int:
        """The most that a call takes beside weights and arenas."""
        gathered = max(_MOST_GATHERED, 2 * context * max(self._token_bytes))
        return gathered + self._step.scratch_bytes(max(rows, chunk), rows)

    def _prefill(
        self, geometry: CallGeometry, token_ids: npt.NDArray[Any]
    ) -> DeferredLogits:
        hidden, start = [], 0
        while start < len(token_ids):
            context = int(geometry.positions[0]) + len(token_ids)
            stop = start + self._step.longest_chunk(context)
            part = token_ids[start:stop]
            chunk = _chunk(geometry, start, len(part))
            hidden.append(self._step.hidden(chunk, part[None]))
            start += len(part)
        return DeferredLogits(self._step, np.concatenate(hidden, axis=1))

    def _together(self, geometry: CallGeometry) -> Iterator[list[int]]:
        """Rows for each call: of like length, and with no more context than the plan has room for."""
        lengths = geometry.context_lens
        if geometry.rows == 1:
            yield [0]
            return
        limit = _MOST_GATHERED // max(self._token_bytes)
        rows: list[int] = []
        total = 0
        for row in np.argsort(-lengths, kind="stable").tolist():
            length = int(lengths[row])
            longest = int(lengths[rows[0]]) if rows else length
            gathered = longest * (len(rows) + 1)
            is_ragged = gathered > _MAX_PADDING * (total + length)
            if rows and (gathered > limit or is_ragged):
                yield rows
                rows, total = [], 0
            rows.append(row)
            total += length
        yield rows


class DeferredLogits:
    """A prompt's logits `[rows, tokens, vocab]`, computed only if somebody wants them."""

    def __init__(self, step: CpuStep, hidden: npt.NDArray[np.float32]) -> None:
        self._step, self._hidden = step, hidden

    def __getitem__(self, index: Any) -> DeferredLogits:
        """Some rows or tokens; the vocabulary stays whole."""
        return DeferredLogits(self._step, self._hidden[index])

    def astype(self, dtype: mx.Dtype) -> mx.array:
        """The logits."""
        return mx.array(self._step.head(self._hidden)).astype(dtype)


def _gathered_bytes(arena: Arena) -> int:
    """Bytes that one layer's attention gathers of a token."""
    shape = arena.shape
    return 2 * shape.kv_heads * shape.width * 4


def _only(geometry: CallGeometry, rows: list[int]) -> CallGeometry:
    """Those rows of a decode call, with no more columns in their tables than they need."""
    positions = geometry.positions[rows]
    groups = []
    for view in geometry.groups:
        first = view.first_positions[rows]
        width = int((positions - first).max()) // BLOCK_TOKENS + 1
        groups.append(
            GroupGeometry(
                view.window,
                view.tables[rows, :width],
                first,
                view.write_blocks[rows],
                view.write_slots[rows],
            )
        )
    return CallGeometry(positions, geometry.query_len, tuple(groups))


def _chunk(geometry: CallGeometry, start: int, count: int) -> CallGeometry:
    """`count` of a prefill call's tokens, from `start` on, over the context that they see."""
    if count == geometry.query_len:
        return geometry
    positions = geometry.positions + np.int32(start)
    stop = start + count
    groups = []
    for view in geometry.groups:
        used = int(positions[0]) + count - int(view.first_positions[0])
        groups.append(
            dataclasses.replace(
                view,
                tables=view.tables[:, : -(-used // BLOCK_TOKENS)],
                write_blocks=view.write_blocks[:, start:stop],
                write_slots=view.write_slots[:, start:stop],
            )
        )
    return CallGeometry(positions, count, tuple(groups))
