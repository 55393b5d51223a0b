"""Computes chunks of prompts, and accounts for what then has KV."""

from __future__ import annotations

import time

from rvllm_local.attention.geometry import TokenChunk
from rvllm_local.engine.flight import token_chunk
from rvllm_local.engine.kv_cache import KVCacheManager
from rvllm_local.engine.prefill_budget import PrefillBudget
from rvllm_local.engine.runner import ModelRunner
from rvllm_local.engine.scheduler import PrefillChunk
from rvllm_local.engine.sequence import Sequence
from rvllm_local.memory.tables import KVTables


class Prefiller:
    """The prompt side of the engine's step."""

    def __init__(
        self,
        runner: ModelRunner,
        kv: KVTables,
        kv_cache: KVCacheManager,
        budget: PrefillBudget,
    ) -> None:
        self._runner = runner
        self._kv = kv
        self._kv_cache = kv_cache
        self._budget = budget

    def run(self, chunk: PrefillChunk) -> None:
        """Compute the KV of a chunk in a call of its own."""
        sequence = chunk.sequence
        start = sequence.num_computed
        tokens = token_chunk(chunk)
        began = time.monotonic()
        if sequence.scores is None:
            self._runner.prefill(tokens)
        else:
            self._score(sequence, tokens)
        seconds = time.monotonic() - began
        self._budget.record_prefill(chunk.num_tokens, seconds)
        self.account(chunk, began)
        self._kv_cache.cache_scores(sequence, start)

    def _score(self, sequence: Sequence, chunk: TokenChunk) -> None:
        """Compute a chunk, and note how likely each token after one of its own is."""
        assert sequence.scores is not None
        start = chunk.position
        end = start + len(chunk.token_ids)
        targets = sequence.token_ids[start + 1 : end + 1]
        num_top = sequence.scores.num_top
        parts = self._runner.score(chunk, targets, num_top)
        for part in parts:
            sequence.scores.put(start, part)
            start += len(part.logprobs)

    def account(self, chunk: PrefillChunk, began: float) -> None:
        """A chunk has KV now, by a call that began at this monotonic time."""
        sequence = chunk.sequence
        timings = sequence.timings
        timings.admitted = timings.admitted or began
        timings.prefill_chunks += 1
        sequence.num_computed += chunk.num_tokens
        sequence.num_prefilled = sequence.num_computed
        self.share_blocks(sequence)

    def share_blocks(self, sequence: Sequence) -> None:
        """More tokens have KV: share full blocks, free those behind the windows."""
        timings = sequence.timings
        tables = sequence.tables
        timings.blocks_peak = max(timings.blocks_peak, tables.num_blocks)
        self._kv_cache.cache_full_blocks(sequence)
        self._kv.trim_windows(tables, sequence.num_computed - sequence.in_flight)
