"""Decides what one step runs: which sequences decode, which prefill how much, and who is admitted.

Policy: first come, first served. A sequence is admitted when the blocks of its whole possible length are
available, so that a running sequence can always grow and nothing deadlocks. Knows nothing of arrays.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from rvllm_local.engine.sequence import Sequence
from rvllm_local.memory.tables import KVTables


@dataclass(frozen=True, slots=True)
class PrefillChunk:
    """`num_tokens` prompt tokens of one sequence, from its `num_computed` on."""

    sequence: Sequence
    num_tokens: int


@dataclass(frozen=True, slots=True)
class StepPlan:
    """What one step runs. Tables already have room for every token in it."""

    prefills: tuple[PrefillChunk, ...]
    decodes: tuple[Sequence, ...]

    @property
    def is_empty(self) -> bool:
        return not self.prefills and not self.decodes


class Scheduler:
    """Owns the waiting queue and the running set; takes and returns blocks through `KVTables`."""

    def __init__(self, kv: KVTables, *, max_rows: int, prefill_chunk: int) -> None:
        self._kv = kv
        self._max_rows = max_rows
        self._prefill_chunk = prefill_chunk
        self._reserved = [0] * len(kv.pools)  # blocks promised to running sequences, by group
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []

    @property
    def has_work(self) -> bool:
        return bool(self.waiting or self.running)

    @property
    def longest_sequence(self) -> int:
        """The most tokens, prompt and output, that can ever be admitted."""
        return self._kv.capacity_tokens(self._prefill_chunk)

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence that fits `longest_sequence`."""
        self.waiting.append(sequence)

    def schedule(self, prefill_tokens: int) -> StepPlan:
        """Admit what fits, then plan a step with at most `prefill_tokens` tokens of prefill."""
        self._admit()
        decodes = tuple(sequence for sequence in self.running if sequence.is_decoding)
        prefills = []
        for sequence in self.running:
            count = min(sequence.num_to_prefill, prefill_tokens, self._prefill_chunk)
            if count > 0:
                prefills.append(PrefillChunk(sequence, count))
                prefill_tokens -= count
        for sequence in decodes:
            self._kv.grow(sequence.tables, sequence.num_computed + 1)
        for chunk in prefills:
            self._kv.grow(chunk.sequence.tables, chunk.sequence.num_computed + chunk.num_tokens)
        return StepPlan(tuple(prefills), decodes)

    def advance(self, sequence: Sequence, num_tokens: int) -> None:
        """Record that `num_tokens` more tokens have KV, and free what slid out of the windows."""
        sequence.num_computed += num_tokens
        self._kv.trim_windows(sequence.tables, sequence.num_computed)

    def finish(self, sequence: Sequence) -> None:
        """Take a sequence out, wherever it is, and free its blocks."""
        if sequence in self.running:
            self.running.remove(sequence)
            self._reserve(sequence, -1)
            self._kv.release(sequence.tables)
        elif sequence in self.waiting:
            self.waiting.remove(sequence)

    def _admit(self) -> None:
        while self.waiting and len(self.running) < self._max_rows and self._fits(self.waiting[0]):
            sequence = self.waiting.popleft()
            self._reserve(sequence, +1)
            self.running.append(sequence)

    def _needed(self, sequence: Sequence) -> tuple[int, ...]:
        return self._kv.layout.blocks_needed(sequence.max_total, self._prefill_chunk)

    def _fits(self, sequence: Sequence) -> bool:
        return all(
            reserved + needed <= pool.num_total
            for reserved, needed, pool in zip(self._reserved, self._needed(sequence), self._kv.pools, strict=True)
        )

    def _reserve(self, sequence: Sequence, sign: int) -> None:
        for group, needed in enumerate(self._needed(sequence)):
            self._reserved[group] += sign * needed
