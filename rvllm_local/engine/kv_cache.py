"""Gives sequences their KV and takes it back: cached prefixes, forks, disk, swapping.

Works on blocks and keys through `KVTables` and `BlockIO`. Decides nothing about who
runs.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from rvllm_local.engine.disk_tier import DiskTier
from rvllm_local.engine.prefix_misses import PrefixMisses
from rvllm_local.engine.prefix_restorer import PrefixRestorer
from rvllm_local.engine.prompt_scores import ScoreCache
from rvllm_local.engine.sequence import Sequence
from rvllm_local.engine.state_keeper import StateKeeper
from rvllm_local.engine.swapper import Swapper
from rvllm_local.memory.block_io import BlockIO
from rvllm_local.memory.blocks import BLOCK_TOKENS, blocks_for
from rvllm_local.memory.disk_cache import BlockStore
from rvllm_local.memory.swap import SwapSpace
from rvllm_local.memory.tables import KVTables

_READ_AHEAD = 3  # blocks of a sequence that are read at once: the disk is kept busy


@dataclass(frozen=True, slots=True)
class CachePolicy:
    """`reuse`: share prefixes at all. `decoded`: also KV that decode steps computed."""

    reuse: bool = True
    decoded: bool = True


class KVCacheManager:
    """The engine's one user of prefix index, disk tier and swap space."""

    def __init__(
        self,
        kv: KVTables,
        block_io: BlockIO,
        policy: CachePolicy,
        disk: DiskTier | None = None,
        swapper: Swapper | None = None,
        show: Callable[[int], str] = str,
    ) -> None:
        """`show` gives a token's text for people."""
        self._kv = kv
        self._io = block_io
        self._policy = policy
        self._disk = disk or DiskTier(kv, block_io, None)
        self._restorer = PrefixRestorer(kv, self._disk, self._is_time_up)
        self._states = StateKeeper(kv, self._disk)
        self._swapper = swapper or Swapper(kv, block_io, SwapSpace())
        self._misses = PrefixMisses(capacity=4 * kv.blocks_total, show=show)
        self._deadline = 0.0
        # By request id: the choice from which the others fork.
        self._leaders: dict[str, Sequence] = {}
        self._scores = ScoreCache()
        self.hit_tokens = 0

    @property
    def num_swapped_blocks(self) -> int:
        return self._swapper.num_blocks

    @property
    def num_spilled_blocks(self) -> int:
        return self._disk.num_spilled_blocks

    @property
    def store(self) -> BlockStore | None:
        return self._disk.store

    def begin_step(self, restore_s: float) -> None:
        """Reading from disk may take so many seconds of the step that begins."""
        self._deadline = time.monotonic() + restore_s

    def count_shared_blocks(self, sequence: Sequence) -> tuple[int, ...]:
        """Blocks of its prompt, by group, that others hold and that it will share."""
        keys = self._reusable_keys(sequence)
        count = self._kv.longest_prefix(keys)
        shared = []
        for group in range(len(self._kv.pools)):
            first = self._kv.first_needed(group, count)
            shared.append(self._kv.count_held(group, keys[first:count]))
        return tuple(shared)

    def attach_prefix(self, sequence: Sequence) -> None:
        """Give a newly admitted sequence what is cached of its prompt."""
        request_id = sequence.request.request_id
        leader = self._leaders.setdefault(request_id, sequence)
        if leader is not sequence and self._fork(leader, sequence):
            return
        keys = self._reusable_keys(sequence)
        count = self._kv.longest_prefix(keys)
        sequence.pauses = self._states.pauses(sequence, keys)
        if self._restores_more(keys, count):
            sequence.restore = self._restored(sequence, keys)
        else:
            self._adopt(sequence, keys, count)
        self.extend_prefix(sequence)

    def _restores_more(self, keys: list[bytes], count: int) -> bool:
        """The disk has a longer prefix than the arena's, which must come as a whole."""
        if self._disk.store is None or not keys:
            return False
        if self._kv.layout.has_state:
            return self._restorer.longest(keys) > count
        return self._kv.has_windows and count == 0

    def _restored(self, sequence: Sequence, keys: list[bytes]) -> Iterator[None]:
        """Restore a prefix; without one, adopt what the arena has."""
        count = yield from self._restorer.restore(sequence.tables, keys)
        if count:
            num_tokens = count * BLOCK_TOKENS
            self._count_hit(sequence, num_tokens, from_disk=True)
        else:
            self._adopt(sequence, keys, self._kv.longest_prefix(keys))

    def _is_time_up(self) -> bool:
        return time.monotonic() >= self._deadline

    def extend_prefix(self, sequence: Sequence) -> None:
        """Before a chunk is computed: take blocks computed meanwhile, or on disk.

        Stops at the first block that has to be computed. Stops as well when the step's
        time is up or a block is still being read: then the sequence is `restoring`, and
        goes on here in the next step.
        """
        sequence.restoring = self._goes_on_restoring(sequence)
        if sequence.restoring:
            return
        keys = self._reusable_keys(sequence)
        while self._may_extend(sequence):
            block = sequence.num_computed // BLOCK_TOKENS
            if block >= len(keys):
                break
            extended = self._extend_by(sequence, block, keys[block])
            if extended is None:
                self._disk.read_ahead(keys[block + 1 : block + _READ_AHEAD])
                sequence.restoring = True
                return
            if not extended:
                break
            has_more = block + 1 < len(keys)
            if has_more and self._is_time_up():
                sequence.restoring = True
                return
        self._misses.note(sequence)

    @staticmethod
    def _goes_on_restoring(sequence: Sequence) -> bool:
        """Go on with a restoration of windows, if there is one; True if it waits."""
        if sequence.restore is not None:
            for _ in sequence.restore:
                return True
            sequence.restore = None
        return False

    def _may_extend(self, sequence: Sequence) -> bool:
        at_block = sequence.num_computed % BLOCK_TOKENS == 0
        return at_block and not self._kv.layout.has_state

    def cache_full_blocks(self, sequence: Sequence) -> None:
        """Offer newly filled blocks to later requests, before windows are trimmed."""
        if not self._policy.reuse:
            return
        num_tokens = min(sequence.num_computed, len(sequence.token_ids))
        if not self._policy.decoded:
            num_tokens = min(num_tokens, sequence.num_prefilled)
        num_full = num_tokens // BLOCK_TOKENS
        if num_full <= sequence.num_published:
            return
        keys = sequence.keys.upto(sequence.token_ids, num_full)
        for block in range(sequence.num_published, num_full):
            key = keys[block]
            self._misses.record(sequence, block)
            added = self._kv.publish(sequence.tables, block, key)
            self._disk.note_cached(added, key)
        sequence.num_published = num_full
        self._states.keep(sequence, keys)

    def free(self, sequence: Sequence) -> None:
        """Give back everything that a sequence holds. Safe to call again."""
        sequence.restore = None
        self._states.end(sequence)
        self._kv.release(sequence.tables)
        self._kv.clear_state(sequence.tables)
        self._swapper.forget(sequence)
        request_id = sequence.request.request_id
        if self._leaders.get(request_id) is sequence:
            del self._leaders[request_id]

    def cache_scores(self, sequence: Sequence, start: int) -> None:
        """Keep what was scored from position `start` on, for later prompts."""
        if sequence.scores is not None and self._policy.reuse:
            keys = self._full_keys(sequence)
            self._scores.keep(sequence.scores, keys, start)

    @staticmethod
    def _full_keys(sequence: Sequence) -> list[bytes]:
        """Keys of the blocks that are full."""
        num_blocks = sequence.num_computed // BLOCK_TOKENS
        return sequence.keys.upto(sequence.token_ids, num_blocks)

    def swap_out(self, sequence: Sequence) -> None:
        """Save its blocks and give them back; each table keeps its place."""
        self._swapper.swap_out(sequence)

    def swap_in(self, sequence: Sequence) -> None:
        """Give it blocks again, with the content that they had."""
        self._swapper.swap_in(sequence)

    @property
    def has_idle_work(self) -> bool:
        return self._disk.has_idle_work

    def idle(self) -> None:
        """Write a few cached blocks to the disk tier."""
        self._disk.idle()

    def forget_prefixes(self) -> None:
        """After a failed step nobody's KV can be trusted."""
        self._disk.forget()
        self._scores.clear()
        self._kv.forget_prefixes()

    def close(self) -> None:
        """Write out what is cached while the store takes it; free the swap space."""
        self._disk.close()
        self._swapper.close()

    def _reusable_keys(self, sequence: Sequence) -> list[bytes]:
        """Keys of the full blocks before the last token.

        The last token's logits are wanted, so that it is computed anew. A prompt that
        is scored reuses only blocks whose log-probabilities are kept as well.
        """
        if not self._policy.reuse:
            return []
        tokens = sequence.token_ids
        num_blocks = (len(tokens) - 1) // BLOCK_TOKENS
        keys = sequence.keys.upto(tokens, num_blocks)
        if sequence.scores is None:
            return keys
        num_top = sequence.scores.num_top
        num_scored = self._scores.count_blocks(keys, tokens, num_top)
        return keys[:num_scored]

    def _adopt(
        self,
        sequence: Sequence,
        keys: list[bytes],
        count: int,
    ) -> None:
        """Share the first `count` blocks of the prompt. All are in the arena."""
        if count == 0:
            return
        for group, table in enumerate(sequence.tables.groups):
            index = self._kv.indexes[group]
            first = self._kv.first_needed(group, count)
            block_ids = []
            for key in keys[first:count]:
                block_id = index.block(key)
                assert block_id is not None, "a cached block vanished"
                block_ids.append(block_id)
            self._kv.pools[group].share(block_ids)
            table.start_block = first
            table.block_ids.extend(block_ids)
        self._kv.resume_state(sequence.tables, keys[count - 1])
        self._count_hit(sequence, count * BLOCK_TOKENS)

    def _count_hit(
        self,
        sequence: Sequence,
        num_tokens: int,
        *,
        from_disk: bool = False,
    ) -> None:
        before = sequence.num_computed
        sequence.num_computed += num_tokens
        if sequence.scores is not None:
            keys = self._full_keys(sequence)
            self._scores.hand_out(sequence.scores, keys, before)
        sequence.num_prefilled = sequence.num_computed
        sequence.num_published = sequence.num_computed // BLOCK_TOKENS
        sequence.capacity = blocks_for(sequence.num_computed) * BLOCK_TOKENS
        timings = sequence.timings
        if timings.token_times:  # a resumed answer is no hit of its prompt
            return
        timings.cached_tokens += num_tokens
        self.hit_tokens += num_tokens
        if from_disk:
            timings.cached_from_disk += num_tokens

    def _fork(self, leader: Sequence, sequence: Sequence) -> bool:
        """Share a sibling's prompt: full blocks as they are, the last one as a copy."""
        count = len(sequence.token_ids) - 1
        if not self._can_fork(leader, sequence, count):
            return False
        forked = self._kv.fork(leader.tables, count)
        if forked is None:
            return False
        sequence.tables, copies = forked
        for copy in copies:
            self._io.copy_blocks(copy.group, [(copy.source, copy.destination)])
        self._count_hit(sequence, count)
        return True

    def _can_fork(
        self,
        leader: Sequence,
        sequence: Sequence,
        count: int,
    ) -> bool:
        if count == 0 or not self._policy.reuse:
            return False
        if leader.request.prompt_token_ids != sequence.request.prompt_token_ids:
            return False
        if leader.swapped is not None or leader.num_computed < count:
            return False
        # What the prompt's end still reads may have slid out of the leader's windows,
        # or was folded into its state.
        forgets = self._kv.has_windows or self._kv.layout.has_state
        return not forgets or leader.num_computed == count

    def _extend_by(
        self,
        sequence: Sequence,
        block: int,
        key: bytes,
    ) -> bool | None:
        """Take one more block; False if a group has none, None while it is read."""
        tables = sequence.tables.groups
        for table in tables:
            if table.start_block + len(table.block_ids) != block:
                return False
        block_ids: list[int | None] = []
        missing = []  # groups whose block is not in the arena
        for group, index in enumerate(self._kv.indexes):
            block_id = index.block(key)
            block_ids.append(block_id)
            if block_id is None:
                missing.append(group)
        if missing and not self._disk.can_restore(missing, key):
            return False
        if missing and not self._disk.is_read(missing, key):
            return None
        for group, block_id in enumerate(block_ids):
            if block_id is not None:  # first: making room below must not evict it
                self._kv.pools[group].share([block_id])
        for group in missing:
            block_ids[group] = self._disk.restore(group, key)
        if None in block_ids:  # a damaged file: give back what was taken
            self._release_each(block_ids)
            return False
        for table, block_id in zip(tables, block_ids, strict=True):
            assert block_id is not None
            table.block_ids.append(block_id)
        self._count_hit(sequence, BLOCK_TOKENS, from_disk=bool(missing))
        self._kv.trim_windows(sequence.tables, sequence.num_computed)
        return True

    def _release_each(self, block_ids: list[int | None]) -> None:
        """Give back a block of each group that has one."""
        for pool, block_id in zip(self._kv.pools, block_ids, strict=True):
            if block_id is not None:
                pool.release([block_id])

    def wait_for_disk(self) -> None:
        """Nothing else can be done: wait a little for a block that is being read."""
        self._disk.wait()
