"""Runs the model over sequences' blocks: a chunk of one prompt, or one token of many sequences.

A prefill call only writes KV; the last prompt token is computed by a decode call, so logits are never computed
for tokens that nobody samples from.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import mlx.core as mx
import numpy as np
from mlx import nn

from rvllm_local.attention.backend import KVBackend
from rvllm_local.attention.geometry import DecodeRow, call_geometry
from rvllm_local.attention.seam import make_caches
from rvllm_local.engine.compiled import CompiledDecode
from rvllm_local.engine.sampler import SampledTokens, SamplingBatch, sample
from rvllm_local.memory.block_io import BlockIO
from rvllm_local.memory.layout import KVLayout
from rvllm_local.memory.tables import SequenceTables


@dataclass(frozen=True, slots=True)
class RunMode:
    """How a family can be called. `batched`: many rows a decode call, with an array of offsets.

    `dense`: the model does its own attention arithmetic and gets gathered keys and values.
    """

    batched: bool
    dense: bool


class ModelRunner:
    """Calls the model through the seam. Owns no sequence and no block."""

    def __init__(
        self,
        model: nn.Module,
        layout: KVLayout,
        backend: KVBackend,
        mode: RunMode,
        vocab_size: int,
        compiled: CompiledDecode | None = None,
    ) -> None:
        self._model = model
        self._layout = layout
        self._backend = backend
        self.mode = mode
        self.vocab_size = vocab_size
        self._compiled = compiled

    @property
    def backend_name(self) -> str:
        return self._backend.name

    @property
    def block_io(self) -> BlockIO:
        """What moves whole blocks between the arenas and the host."""
        return self._backend

    @property
    def num_dispatches(self) -> int:
        return self._backend.num_dispatches

    @property
    def overlaps(self) -> bool:
        """True when a decode step can be launched before the host has read the one before."""
        return self._compiled is not None

    def prefill(self, tables: SequenceTables, position: int, token_ids: Sequence[int]) -> None:
        """Compute the KV of `token_ids`, which stand at `position` and after.

        Only the writes are run: what the model returns is never evaluated.
        """
        geometry = call_geometry(self._layout, [tables], [position], len(token_ids))
        caches = make_caches(self._layout, self._backend, geometry, dense=self.mode.dense)
        self._model(mx.array([list(token_ids)]), cache=caches)
        self._backend.flush()

    def sample(
        self, rows: Sequence[DecodeRow], batch: SamplingBatch | None, previous: mx.array | None
    ) -> SampledTokens:
        """Launch one decode step and the drawing of its tokens; without a `batch` the largest logit is taken.

        `previous` are the tokens of the step before. `tokens` of the result may have more entries than there are rows:
        those after the last row mean nothing.
        """
        if batch is not None:
            sampled = sample(self.decode(rows, previous), batch)
        elif self._compiled is not None:
            sampled = SampledTokens(self._compiled.greedy(rows, self._tokens(rows, previous)))
        else:
            sampled = SampledTokens(mx.argmax(self.decode(rows, previous), axis=-1))
        parts = (sampled.tokens, sampled.chosen_logprobs, sampled.top_ids, sampled.top_logprobs)
        mx.async_eval(*[part for part in parts if part is not None])  # type: ignore[no-untyped-call]
        return sampled

    def decode(self, rows: Sequence[DecodeRow], previous: mx.array | None = None) -> mx.array:
        """Logits `[rows, vocab]` of the given tokens, not yet evaluated."""
        if self.mode.batched or len(rows) == 1:
            return self._decode_call(rows, previous)
        return mx.concatenate([self._decode_call([row], previous) for row in rows], axis=0)

    def _decode_call(self, rows: Sequence[DecodeRow], previous: mx.array | None) -> mx.array:
        if self._compiled is not None:
            return self._compiled.logits(rows, self._tokens(rows, previous))
        geometry = call_geometry(self._layout, [row.tables for row in rows], [row.position for row in rows], 1)
        caches = make_caches(self._layout, self._backend, geometry, dense=self.mode.dense)
        logits: mx.array = self._model(mx.array([[row.token_id] for row in rows]), cache=caches)
        return logits[:, -1]

    def _tokens(self, rows: Sequence[DecodeRow], previous: mx.array | None) -> mx.array:
        """[bucket] the rows' tokens, padded; those that only the device knows come from `previous`."""
        assert self._compiled is not None
        size = self._compiled.padded_rows(len(rows))
        known = np.zeros(size, dtype=np.int32)
        known[: len(rows)] = [row.token_id for row in rows]
        places = [row.previous_row for row in rows]
        if previous is None or all(place is None for place in places):
            return mx.array(known)
        if previous.shape[0] == size and places == list(range(len(rows))):
            return previous.astype(mx.int32)
        index = np.zeros(size, dtype=np.int32)
        index[: len(rows)] = [place or 0 for place in places]
        is_known = np.ones(size, dtype=np.bool_)
        is_known[: len(rows)] = [place is None for place in places]
        return mx.where(mx.array(is_known), mx.array(known), previous.astype(mx.int32)[mx.array(index)])
