"""Decides what one step runs: who is admitted, decodes, prefills how much, makes room.

Policy: higher priority first, then first come, first served; waiting raises a rank
slowly (see `Sequence.rank`), so that everybody is served. A full arena preempts the
lowest ranked sequence, whose blocks are swapped out. So the highest ranked one always
advances and nothing deadlocks. Knows nothing of arrays.
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence as Rows
from dataclasses import dataclass
from typing import Protocol

from rvllm_local.engine.sequence import Sequence
from rvllm_local.memory.blocks import BLOCK_TOKENS, blocks_for
from rvllm_local.memory.tables import KVTables

_MOST_OVERTAKEN = 16  # smaller requests that may pass one that waits for blocks
_LOOK_AHEAD = 8  # waiting requests that are looked at for one that fits
_FIRST_SHARE = 4  # the highest ranked prefill gets one part in so many of the budget


class KVCache(Protocol):
    """Where a sequence's KV comes from and goes to; see `engine.kv_cache`."""

    def count_shared_blocks(self, sequence: Sequence) -> tuple[int, ...]:
        """Blocks of its prompt, by group, that others hold and that it will share."""

    def extend_prefix(self, sequence: Sequence) -> None:
        """Give a sequence that prefills what has become available of its prompt since."""

    def attach_prefix(self, sequence: Sequence) -> None:
        """Give a newly admitted sequence what is cached of its prompt."""

    def swap_out(self, sequence: Sequence) -> None:
        """Save its blocks elsewhere and give them back."""

    def swap_in(self, sequence: Sequence) -> None:
        """Give it blocks again, with their content. The caller has checked the room."""


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
    """Owns the queues; takes and returns blocks through `KVTables` and `KVCache`.

    All lists are in rank order.
    """

    def __init__(
        self,
        kv: KVTables,
        kv_cache: KVCache,
        *,
        max_rows: int,
        prefill_chunk: int,
        grain: int = 1,
    ) -> None:
        """With a `grain` above 1 chunks end at multiples of it, or of a block.

        A prompt's last chunk ends where the prompt does.
        """
        self._kv = kv
        self._kv_cache = kv_cache
        self._max_rows = max_rows
        self._prefill_chunk = prefill_chunk
        self._grain = min(grain, max(prefill_chunk, BLOCK_TOKENS))
        self.waiting: list[Sequence] = []
        self.running: list[Sequence] = []
        self.swapped: list[Sequence] = []
        self.num_preemptions = 0

    @property
    def has_work(self) -> bool:
        return bool(self.waiting or self.running or self.swapped)

    @property
    def longest_sequence(self) -> int:
        """The most tokens, prompt and output, that can ever be admitted."""
        return self._kv.capacity_tokens(self._prefill_chunk)

    @property
    def is_roomy(self) -> bool:
        """True when the next step cannot have to preempt anyone.

        Only prompts take more than a block a row.
        """
        if self.swapped:
            return False
        growth = len(self.running)
        if self.waiting or not all(row.is_decoding for row in self.running):
            chunk_blocks = self._prefill_chunk // BLOCK_TOKENS + 2
            growth += 2 * chunk_blocks
        return all(pool.num_free >= growth for pool in self._kv.pools)

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence that fits `longest_sequence`."""
        _insert(self.waiting, sequence)

    def schedule(self, prefill_tokens: int) -> StepPlan:
        """Resume and admit what fits, then plan a step.

        It prefills at most `prefill_tokens` tokens.
        """
        for row in self.running:
            if not row.is_decoding:
                self._kv_cache.extend_prefix(row)
        self._resume()
        self._admit()
        decodes = self._make_room_for_decodes()
        preempted = self.num_preemptions
        prefills = self._plan_prefills(prefill_tokens)
        if self.num_preemptions != preempted:
            decodes = [row for row in decodes if row.swapped is None]
        return StepPlan(tuple(prefills), tuple(decodes))

    def remove(self, sequence: Sequence) -> None:
        """Take a sequence out, wherever it is.

        Its blocks are the caller's to release.
        """
        for rows in (self.running, self.waiting, self.swapped):
            if sequence in rows:
                rows.remove(sequence)

    def _resume(self) -> None:
        while self.swapped and len(self.running) < self._max_rows:
            sequence = self.swapped[0]
            assert sequence.swapped is not None
            # Spare blocks, so that it is not thrown out again at once.
            spare = len(self.running) + 1 if self.running else 0
            needed = [len(blocks) + spare for blocks in sequence.swapped]
            if not self._fits(needed, margin=bool(self.running)):
                return
            self.swapped.pop(0)
            self._kv_cache.swap_in(sequence)
            _insert(self.running, sequence)

    def _admit(self) -> None:
        while self.waiting and len(self.running) + len(self.swapped) < self._max_rows:
            if self.swapped and self.swapped[0].rank < self.waiting[0].rank:
                return
            sequence = self._next_admission()
            if sequence is None:
                return
            for passed in self.waiting[: self.waiting.index(sequence)]:
                passed.overtaken += 1
            self.waiting.remove(sequence)
            self._kv_cache.attach_prefix(sequence)
            _insert(self.running, sequence)

    def _next_admission(self) -> Sequence | None:
        """The first waiting sequence that fits.

        One that was passed too often holds back the rest.
        """
        for sequence in self.waiting[:_LOOK_AHEAD]:
            if self._waits_for_sibling(sequence):
                continue
            counts = self._prompt_blocks(sequence)
            shared = self._kv_cache.count_shared_blocks(sequence)
            needed = []
            for count, num_shared in zip(counts, shared, strict=True):
                needed.append(max(0, count - num_shared))
            if self._fits(needed):
                return sequence
            if sequence.overtaken >= _MOST_OVERTAKEN:
                return None
        return None

    def _prompt_blocks(self, sequence: Sequence) -> Rows[int]:
        """Blocks by group for its prompt and one more token."""
        num_tokens = len(sequence.token_ids) + 1
        return self._kv.layout.blocks_needed(num_tokens, self._prefill_chunk)

    def _waits_for_sibling(self, sequence: Sequence) -> bool:
        """The choices of one request share their prompt: the first computes it."""
        request = sequence.request
        if request.index == 0:
            return False
        for row in self.running:
            is_sibling = row.request.request_id == request.request_id
            if is_sibling and row.num_to_prefill > 0:
                return True
        return False

    def _fits(self, needed: Rows[int], *, margin: bool = True) -> bool:
        """True if free blocks cover `needed` and, with `margin`, what is promised."""
        promised = [0] * len(needed)
        if margin:
            promised = self._promised_blocks()
        for pool, count, later in zip(self._kv.pools, needed, promised, strict=True):
            if pool.num_free < count + later:
                return False
        return True

    def _promised_blocks(self) -> list[int]:
        """Blocks by group that the running prompts will still take."""
        promised = [0] * len(self._kv.pools)
        for row in self.running:
            if row.num_to_prefill == 0:
                continue
            final = self._prompt_blocks(row)
            for group, table in enumerate(row.tables.groups):
                missing = final[group] - len(table.block_ids)
                promised[group] += max(0, missing)
        return promised

    def _make_room_for_decodes(self) -> list[Sequence]:
        decodes = []
        for row in list(self.running):
            if row.swapped is not None or not row.wants_decode:
                continue
            if row.num_computed < row.capacity or self._grow(row, row.num_computed + 1):
                decodes.append(row)
        return [row for row in decodes if row.swapped is None]

    def room_for(self, sequence: Sequence, count: int) -> int:
        """How many of `count` tokens beyond the next one have room.

        Takes free blocks for them, and nobody's who runs.
        """
        num_tokens = sequence.num_computed + 1 + count
        may_grow = num_tokens > sequence.capacity and self.is_roomy
        if may_grow and self._kv.can_grow(sequence.tables, num_tokens):
            self._grow(sequence, num_tokens)
        return max(0, min(count, sequence.capacity - sequence.num_computed - 1))

    def _grow(self, sequence: Sequence, num_tokens: int) -> bool:
        """Give a sequence room for `num_tokens` tokens.

        False if it has to wait for blocks.
        """
        if not self._make_room(sequence, num_tokens):
            return False
        self._kv.grow(sequence.tables, num_tokens)
        sequence.capacity = blocks_for(num_tokens) * BLOCK_TOKENS
        return True

    def _make_room(self, sequence: Sequence, num_tokens: int) -> bool:
        """Preempt lower ranked sequences until `sequence` can grow.

        False if it cannot, yet.
        """
        while not self._kv.can_grow(sequence.tables, num_tokens):
            victim = self.running[-1]
            if victim is sequence or victim.rank < sequence.rank or victim.in_flight:
                return False
            self._preempt(victim)
        return True

    def _preempt(self, victim: Sequence) -> None:
        self.running.remove(victim)
        self._kv_cache.swap_out(victim)
        victim.timings.preemptions += 1
        self.num_preemptions += 1
        _insert(self.swapped, victim)

    def _plan_prefills(self, budget: int) -> list[PrefillChunk]:
        chunks = []
        for sequence, tokens in self._share_budget(budget):
            if sequence.swapped is not None:
                continue
            start = sequence.num_computed
            count = self._aligned(
                start,
                tokens,
                sequence.num_to_prefill,
                sequence.pauses,
            )
            if self._grow(sequence, start + count):
                chunks.append(PrefillChunk(sequence, count))
        return [chunk for chunk in chunks if chunk.sequence.swapped is None]

    def _share_budget(self, budget: int) -> list[tuple[Sequence, int]]:
        """Short prompts go first, but the highest ranked one always gets its share.

        So it cannot starve.
        """
        rows = []
        for row in self.running:
            if row.num_to_prefill > 0 and not row.restoring:
                rows.append(row)
        if not rows or budget < 1:
            return []
        first = rows[0]
        part = max(1, budget // _FIRST_SHARE)
        first_share = min(first.num_to_prefill, part, self._prefill_chunk)
        shares = {id(first): first_share}
        left = budget - first_share
        for row in sorted(rows, key=lambda row: (row.num_to_prefill, row.rank)):
            given = shares.get(id(row), 0)
            most = min(row.num_to_prefill, self._prefill_chunk)
            more = min(most - given, left)
            if given + more > 0:
                shares[id(row)] = given + more
                left -= more
        return [(row, shares[id(row)]) for row in rows if id(row) in shares]

    def _aligned(
        self,
        start: int,
        count: int,
        remaining: int,
        pauses: tuple[int, ...],
    ) -> int:
        """A chunk that does not end its prompt ends at a block, if it reaches one.

        So blocks fill, and few sizes occur. Several chunks on the way to a block's end
        are of nearly one size: the largest is what others wait for. With recurrent
        layers a chunk ends where a snapshot is to be taken.
        """
        for position in pauses:
            if start < position <= start + min(count, remaining):
                return position - start
        if count >= remaining:
            return remaining
        unit = max(BLOCK_TOKENS, self._grain)
        end = (start + count) // unit * unit
        if end > start:
            return min(end - start, remaining)
        left = unit - start % unit
        if self._grain > 1:
            return min(left, remaining)
        num_chunks = -(-left // count)
        return min(-(-left // num_chunks), remaining)


def _insert(rows: list[Sequence], sequence: Sequence) -> None:
    bisect.insort(rows, sequence, key=lambda row: row.rank)
