"""Runs the model over sequences' blocks: a chunk of one prompt, or one token of many sequences.

A prefill call only writes KV; the last prompt token is computed by a decode call, so logits are never computed
for tokens that nobody samples from.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import mlx.core as mx
from mlx import nn

from rvllm_local.attention.backend import KVBackend
from rvllm_local.attention.geometry import call_geometry
from rvllm_local.attention.seam import make_caches
from rvllm_local.engine.compiled import CompiledDecode
from rvllm_local.memory.layout import KVLayout
from rvllm_local.memory.tables import SequenceTables


@dataclass(frozen=True, slots=True)
class RunMode:
    """How a family can be called. `batched`: many rows a decode call, with an array of offsets.

    `dense`: the model does its own attention arithmetic and gets gathered keys and values.
    """

    batched: bool
    dense: bool


@dataclass(frozen=True, slots=True)
class DecodeRow:
    """The token at `position` of one sequence; its KV is written, its logits are wanted."""

    tables: SequenceTables
    position: int
    token_id: int


class ModelRunner:
    """Calls the model through the seam. Owns no sequence and no block."""

    def __init__(
        self,
        model: nn.Module,
        layout: KVLayout,
        backend: KVBackend,
        mode: RunMode,
        compiled: CompiledDecode | None = None,
    ) -> None:
        self._model = model
        self._layout = layout
        self._backend = backend
        self.mode = mode
        self._compiled = compiled

    @property
    def backend_name(self) -> str:
        return self._backend.name

    @property
    def num_dispatches(self) -> int:
        return self._backend.num_dispatches

    def prefill(self, tables: SequenceTables, position: int, token_ids: Sequence[int]) -> None:
        """Compute the KV of `token_ids`, which stand at `position` and after.

        Only the writes are run: what the model returns is never evaluated.
        """
        geometry = call_geometry(self._layout, [tables], [position], len(token_ids))
        caches = make_caches(self._layout, self._backend, geometry, dense=self.mode.dense)
        self._model(mx.array([list(token_ids)]), cache=caches)
        self._backend.flush()

    def decode(self, rows: Sequence[DecodeRow]) -> mx.array:
        """Logits `[rows, vocab]` of the given tokens, not yet evaluated."""
        if self.mode.batched or len(rows) == 1:
            return self._decode_call(rows)
        return mx.concatenate([self._decode_call([row]) for row in rows], axis=0)

    def _decode_call(self, rows: Sequence[DecodeRow]) -> mx.array:
        geometry = call_geometry(self._layout, [row.tables for row in rows], [row.position for row in rows], 1)
        if self._compiled is not None:
            return self._compiled(geometry, [row.token_id for row in rows])
        caches = make_caches(self._layout, self._backend, geometry, dense=self.mode.dense)
        logits: mx.array = self._model(mx.array([[row.token_id] for row in rows]), cache=caches)
        return logits[:, -1]
