"""Where a sequence's KV comes from and goes to: cached prefixes, forks, the disk tier, and swapping.

Works on blocks and keys through `KVTables` and `BlockIO`; decides nothing about who runs.
"""

from __future__ import annotations

import hashlib
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from rvllm_local.engine.sequence import Sequence
from rvllm_local.memory.block_io import BlockIO
from rvllm_local.memory.blocks import BLOCK_TOKENS, blocks_for
from rvllm_local.memory.disk_cache import BlockStore
from rvllm_local.memory.prefix import BlockHistory, Divergence
from rvllm_local.memory.swap import SwapSpace
from rvllm_local.memory.tables import KVTables

_SPILL_BATCH = 8  # blocks an idle step writes out


@dataclass(frozen=True, slots=True)
class CachePolicy:
    """`reuse`: share prefixes at all. `decoded`: also blocks whose KV was computed by decode steps."""

    reuse: bool = True
    decoded: bool = True


class KVCacheManager:
    """The engine's one user of prefix index, block store and swap space."""

    def __init__(
        self,
        kv: KVTables,
        block_io: BlockIO,
        policy: CachePolicy,
        store: BlockStore | None = None,
        swap: SwapSpace | None = None,
        show: Callable[[int], str] = str,
    ) -> None:
        self._kv = kv
        self._io = block_io
        self._policy = policy
        self._store = store
        self._swap = swap or SwapSpace()
        self._show = show  # a token, for people
        self._history = BlockHistory(capacity=4 * kv.blocks_total)
        self._unspilled: OrderedDict[tuple[int, int], bytes] = (
            OrderedDict()
        )  # keys of blocks that idle steps write out
        self._deadline = 0.0
        self.leaders: dict[
            str, Sequence
        ] = {}  # by request id: the choice that the others fork from
        self.hit_tokens = 0
        kv.before_evict = self._before_evict

    @property
    def num_swapped_blocks(self) -> int:
        return self._swap.num_blocks

    @property
    def store(self) -> BlockStore | None:
        return self._store

    def begin_step(self, restore_s: float) -> None:
        """Reading blocks from disk may take this many seconds of the step that begins."""
        self._deadline = time.monotonic() + restore_s

    def count_shared_blocks(self, sequence: Sequence) -> tuple[int, ...]:
        """Blocks of its prompt, by group, that other sequences hold and that it will share."""
        keys = self._reusable_keys(sequence)
        count = self._kv.longest_prefix(keys)
        held = []
        for group, (pool, index) in enumerate(
            zip(self._kv.pools, self._kv.indexes, strict=True)
        ):
            blocks = [
                index.block(key)
                for key in keys[self._kv.first_needed(group, count) : count]
            ]
            held.append(
                sum(block is not None and pool.ref_count(block) > 0 for block in blocks)
            )
        return tuple(held)

    def attach_prefix(self, sequence: Sequence) -> None:
        """Give a newly admitted sequence what is cached of its prompt."""
        leader = self.leaders.get(sequence.request.request_id)
        if (
            leader is not None
            and leader is not sequence
            and self._fork(leader, sequence)
        ):
            return
        self.leaders.setdefault(sequence.request.request_id, sequence)
        keys = self._reusable_keys(sequence)
        self._adopt(sequence, keys, self._kv.longest_prefix(keys))
        if (
            self._kv.layout.has_state
        ):  # where it leaves what others have computed, a snapshot is worth having
            sequence.pause_at = self._kv.longest_attended(keys) * BLOCK_TOKENS
        if (
            self._kv.has_windows
            and sequence.num_computed == 0
            and self._store is not None
        ):
            self._restore_at_once(sequence, keys)
        self.extend_prefix(sequence)

    def extend_prefix(self, sequence: Sequence) -> None:
        """Before a chunk is computed: take blocks that others computed meanwhile, or that lie on disk.

        Stops at the first block that has to be computed, and when the step's time is up: then the sequence is
        `restoring`, and goes on here in the next step.
        """
        sequence.restoring = False
        keys = self._reusable_keys(sequence)
        while (
            sequence.num_computed % BLOCK_TOKENS == 0 and not self._kv.layout.has_state
        ):
            block = sequence.num_computed // BLOCK_TOKENS
            if block >= len(keys) or not self._extend_by(sequence, block, keys[block]):
                break
            if time.monotonic() >= self._deadline and block + 1 < len(keys):
                sequence.restoring = True
                return
        if (
            sequence.timings.miss is None
            and sequence.num_computed < sequence.num_prompt - 1
        ):
            sequence.timings.miss = self._explain_miss(
                sequence, sequence.num_computed // BLOCK_TOKENS
            )

    def cache_full_blocks(self, sequence: Sequence) -> None:
        """Offer the sequence's newly filled blocks to later requests. Call before windows are trimmed."""
        if not self._policy.reuse:
            return
        known = min(sequence.num_computed, len(sequence.token_ids))
        if not self._policy.decoded:
            known = min(known, sequence.num_prefilled)
        full = known // BLOCK_TOKENS
        if full <= sequence.num_published:
            return
        keys = sequence.keys.upto(sequence.token_ids, full)
        for block in range(sequence.num_published, full):
            start = block * BLOCK_TOKENS
            tokens = sequence.token_ids[start : start + BLOCK_TOKENS]
            self._history.record(sequence.keys.parent_of(block), tokens)
            added = self._kv.publish(sequence.tables, block, keys[block])
            if self._store is not None:
                self._unspilled.update(dict.fromkeys(added, keys[block]))
        sequence.num_published = full
        if (
            self._kv.snapshots is not None
            and full * BLOCK_TOKENS == sequence.num_computed
        ):
            self._kv.snapshots.add(keys[full - 1], sequence.tables.state)

    def free(self, sequence: Sequence) -> None:
        """Give back everything that a sequence holds. Safe to call again."""
        self._kv.release(sequence.tables)
        sequence.tables.state.put(())
        if sequence.swapped is not None:
            for blocks in sequence.swapped:
                self._swap.free(blocks)
            sequence.swapped = None
        if self.leaders.get(sequence.request.request_id) is sequence:
            del self.leaders[sequence.request.request_id]

    def swap_out(self, sequence: Sequence) -> None:
        """Save its blocks and give them back; each table keeps its place."""
        parts = []
        for group, table in enumerate(sequence.tables.groups):
            parts.append(
                tuple(self._swap.write(self._io.save_blocks(group, table.block_ids)))
            )
        self._kv.release(sequence.tables)
        sequence.tables.state.detach()
        sequence.swapped = tuple(parts)

    def swap_in(self, sequence: Sequence) -> None:
        """Give it blocks again, with the content that they had."""
        assert sequence.swapped is not None
        for group, (table, parts) in enumerate(
            zip(sequence.tables.groups, sequence.swapped, strict=True)
        ):
            table.block_ids.extend(self._kv.pools[group].allocate(len(parts)))
            self._io.load_blocks(
                group, table.block_ids, [self._swap.read(part) for part in parts]
            )
        for parts in (
            sequence.swapped
        ):  # not before: if one could not be read, all are freed as the sequence ends
            self._swap.free(parts)
        sequence.swapped = None

    @property
    def has_idle_work(self) -> bool:
        return bool(self._unspilled)

    def idle(self) -> None:
        """Write a few cached blocks to the disk tier."""
        assert self._store is not None
        if not self._store.stats().enabled:
            self._unspilled.clear()
        for _ in range(min(_SPILL_BATCH, len(self._unspilled))):
            (group, block_id), key = next(iter(self._unspilled.items()))
            if self._kv.indexes[group].key(block_id) == key and not self._spill(
                group, block_id, key
            ):
                return
            self._unspilled.popitem(last=False)

    def forget_prefixes(self) -> None:
        """After a failed step nobody's KV can be trusted."""
        self._unspilled.clear()
        self._kv.forget_prefixes()

    def close(self) -> None:
        """Write out what is cached, as far as the store takes it, and free the swap space."""
        if self._store is not None:
            deadline = time.monotonic() + 5.0
            while self._unspilled and time.monotonic() < deadline:
                left = len(self._unspilled)
                self.idle()
                if len(self._unspilled) == left:
                    self._store.flush(0.5)
            self._store.close()
        self._swap.close()

    def _reusable_keys(self, sequence: Sequence) -> list[bytes]:
        """Keys of the full blocks before the last token, whose logits are wanted and which is computed anew."""
        if not self._policy.reuse:
            return []
        return sequence.keys.upto(
            sequence.token_ids, (len(sequence.token_ids) - 1) // BLOCK_TOKENS
        )

    def _adopt(self, sequence: Sequence, keys: list[bytes], count: int) -> None:
        """Share the first `count` blocks of the prompt, all of which are in the arena."""
        if count == 0:
            return
        for group, table in enumerate(sequence.tables.groups):
            first = self._kv.first_needed(group, count)
            blocks = [self._kv.indexes[group].block(key) for key in keys[first:count]]
            found = [block for block in blocks if block is not None]
            assert len(found) == len(blocks), "a cached block vanished"
            self._kv.pools[group].share(found)
            table.start_block = first
            table.block_ids.extend(found)
        if self._kv.snapshots is not None:
            sequence.tables.state.put(self._kv.snapshots.get(keys[count - 1]))
        self._count_hit(sequence, count * BLOCK_TOKENS)

    def _count_hit(
        self, sequence: Sequence, num_tokens: int, *, from_disk: bool = False
    ) -> None:
        sequence.num_computed += num_tokens
        sequence.num_prefilled = sequence.num_computed
        sequence.num_published = sequence.num_computed // BLOCK_TOKENS
        sequence.capacity = blocks_for(sequence.num_computed) * BLOCK_TOKENS
        if sequence.timings.token_times:  # a resumed answer is no hit of its prompt
            return
        sequence.timings.cached_tokens += num_tokens
        self.hit_tokens += num_tokens
        if from_disk:
            sequence.timings.cached_from_disk += num_tokens

    def _fork(self, leader: Sequence, sequence: Sequence) -> bool:
        """Share a sibling's prompt: full blocks as they are, the last one as a copy."""
        count = len(sequence.token_ids) - 1
        if leader.request.prompt_token_ids != sequence.request.prompt_token_ids:
            return False
        if (
            leader.swapped is not None
            or leader.num_computed < count
            or count == 0
            or not self._policy.reuse
        ):
            return False
        if (
            self._kv.has_windows or self._kv.layout.has_state
        ) and leader.num_computed > count:
            return False  # what the prompt's end still reads may have slid out of the leader's windows, or was folded in
        forked = self._kv.fork(leader.tables, count)
        if forked is None:
            return False
        sequence.tables, copies = forked
        for copy in copies:
            self._io.copy_blocks(copy.group, [(copy.source, copy.destination)])
        self._count_hit(sequence, count)
        return True

    def _extend_by(self, sequence: Sequence, block: int, key: bytes) -> bool:
        """Take one more block from the arena or from disk; False if a group has it in neither."""
        tables = sequence.tables.groups
        if any(table.start_block + len(table.block_ids) != block for table in tables):
            return False
        places = [index.block(key) for index in self._kv.indexes]
        if None in places and not self._can_restore(
            [g for g, place in enumerate(places) if place is None], key
        ):
            return False
        for pool, place in zip(self._kv.pools, places, strict=True):
            if place is not None:
                pool.share([place])  # first: making room below must not evict it
        loaded: list[int | None] = [
            place if place is not None else self._restore(group, key)
            for group, place in enumerate(places)
        ]
        if (
            None in loaded
        ):  # a damaged file: give back what was taken, and compute the block
            for pool, taken in zip(self._kv.pools, loaded, strict=True):
                pool.release([taken] if taken is not None else [])
            return False
        for table, taken in zip(tables, loaded, strict=True):
            assert taken is not None
            table.block_ids.append(taken)
        self._count_hit(sequence, BLOCK_TOKENS, from_disk=None in places)
        self._kv.trim_windows(sequence.tables, sequence.num_computed)
        return True

    def _restore_at_once(self, sequence: Sequence, keys: list[bytes]) -> None:
        """For windowed layouts: fetch the longest prefix that arena and disk hold together, or nothing."""
        assert self._store is not None
        store = self._store
        count = self._kv.longest_prefix(
            keys, lambda group, key: store.contains(_stored_key(group, key))
        )
        if count == 0:
            return
        for group, table in enumerate(sequence.tables.groups):
            table.start_block = self._kv.first_needed(group, count)
            for key in keys[table.start_block : count]:
                block = self._kv.indexes[group].block(key)
                if block is not None:
                    self._kv.pools[group].share([block])
                elif (
                    self._kv.pools[group].num_free == 0
                    or (block := self._restore(group, key)) is None
                ):
                    self._kv.release(sequence.tables)
                    for other in sequence.tables.groups:
                        other.start_block = 0
                    return
                table.block_ids.append(block)
        self._count_hit(sequence, count * BLOCK_TOKENS, from_disk=True)

    def _can_restore(self, groups: Iterable[int], key: bytes) -> bool:
        if self._store is None:
            return False
        return all(
            self._kv.pools[group].num_free > 0
            and self._store.contains(_stored_key(group, key))
            for group in groups
        )

    def _restore(self, group: int, key: bytes) -> int | None:
        """Read one block from disk into the arena and index it; its id, or None if the file was no good."""
        assert self._store is not None
        payload = self._store.get(_stored_key(group, key))
        if payload is None or self._kv.pools[group].num_free == 0:
            return None
        block = self._kv.pools[group].allocate(1)[0]
        try:
            self._io.load_blocks(group, [block], [payload])
        except ValueError:
            self._kv.pools[group].release([block])
            return None
        if self._kv.indexes[group].add(key, block):
            self._kv.pools[group].keep(block)
        return block

    def _before_evict(self, group: int, block_id: int, key: bytes) -> None:
        self._spill(group, block_id, key)

    def _spill(self, group: int, block_id: int, key: bytes) -> bool:
        """Hand a block to the store. False when the store's queue is full."""
        if self._store is None or self._store.contains(_stored_key(group, key)):
            return True
        payload = self._io.save_blocks(group, [block_id])
        return self._store.put(_stored_key(group, key), payload)

    def _explain_miss(self, sequence: Sequence, block: int) -> str | None:
        """Why reuse ended at `block`: the first token that differed from what was cached, if something was."""
        start = block * BLOCK_TOKENS
        tokens = sequence.token_ids[start : start + BLOCK_TOKENS]
        sequence.keys.upto(sequence.token_ids, block)
        found = self._history.divergence(sequence.keys.parent_of(block), tokens, start)
        if found is None:
            return None
        return describe_divergence(found, self._show)


def describe_divergence(found: Divergence, show: Callable[[int], str]) -> str:
    """One line: where a prompt left what was cached."""
    return (
        f"token {found.position} is {show(found.token_id)}, and after the same beginning "
        f"{show(found.cached_token_id)} was cached"
    )


def _stored_key(group: int, key: bytes) -> bytes:
    """The key of one group's block in the store."""
    return (
        key
        if group == 0
        else hashlib.blake2b(
            bytes([group % 256]), key=key, digest_size=len(key)
        ).digest()
    )
