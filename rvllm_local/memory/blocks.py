"""Reference-counted blocks of one arena, and the table that maps a sequence's tokens to them.

Knows ids and counts only, never arrays. Block 0 is scratch for padding rows and is
never handed out.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

BLOCK_TOKENS = 32  # tokens a block
SCRATCH_BLOCK = 0


def blocks_for(num_tokens: int) -> int:
    """How many blocks hold `num_tokens` tokens."""
    return -(-num_tokens // BLOCK_TOKENS)


class BlockPool:
    """Hands out block ids 1 .. num_blocks - 1 and counts who holds them.

    A block without holders is free, or cached if `keep` marked its content. Cached
    blocks are handed out too, least recently used first, once no free one is left.
    `on_evict` is called before that.
    """

    def __init__(
        self,
        num_blocks: int,
        on_evict: Callable[[int], None] | None = None,
    ) -> None:
        if num_blocks < 2:
            raise ValueError(
                f"a pool needs the scratch block and at least one more, not {num_blocks}"
            )
        self._ref_counts = [0] * num_blocks
        self._free: deque[int] = deque(range(1, num_blocks))
        self._kept: set[int] = set()
        # Kept blocks without holders, oldest first.
        self._cached: OrderedDict[int, None] = OrderedDict()
        self.on_evict = on_evict
        self.peak_used = 0

    @property
    def num_total(self) -> int:
        """Blocks that can be handed out (the scratch block is not counted)."""
        return len(self._ref_counts) - 1

    @property
    def num_free(self) -> int:
        """Blocks that can be handed out now: free ones, and cached ones."""
        return len(self._free) + len(self._cached)

    @property
    def num_cached(self) -> int:
        """Blocks without holders whose content is kept."""
        return len(self._cached)

    @property
    def num_shared(self) -> int:
        """Blocks with more than one holder."""
        return sum(count > 1 for count in self._ref_counts)

    def ref_count(self, block_id: int) -> int:
        return self._ref_counts[block_id]

    def block_states(self) -> str:
        """One letter a block: (f)ree, (c)ached, (u)sed, (s)hared."""
        letters = []
        for block_id, count in enumerate(self._ref_counts):
            if block_id == SCRATCH_BLOCK:
                continue
            if count > 1:
                letters.append("s")
            elif count == 1:
                letters.append("u")
            elif block_id in self._cached:
                letters.append("c")
            else:
                letters.append("f")
        return "".join(letters)

    def allocate(self, count: int) -> list[int]:
        """Take `count` blocks, each with one holder.

        The caller has checked `num_free`.
        """
        assert count <= self.num_free, f"{count} blocks asked, {self.num_free} free"
        block_ids = []
        for _ in range(count):
            if self._free:
                block_ids.append(self._free.popleft())
            else:
                block_ids.append(self._evict())
        for block_id in block_ids:
            self._ref_counts[block_id] = 1
        self._note_peak()
        return block_ids

    def share(self, block_ids: Iterable[int]) -> None:
        """Add a holder to blocks that are held or cached."""
        for block_id in block_ids:
            if self._ref_counts[block_id] == 0:
                assert block_id in self._cached, (
                    f"block {block_id} is free and cannot be shared"
                )
                del self._cached[block_id]
            self._ref_counts[block_id] += 1
        self._note_peak()

    def release(self, block_ids: Iterable[int]) -> None:
        """Drop one holder of each block.

        A block without holders is free or cached again. Of one sequence's blocks the
        last ones are evicted first: a prefix is worth more than what follows it.
        """
        for block_id in reversed(list(block_ids)):
            holders = self._ref_counts[block_id]
            assert holders > 0, f"block {block_id} was released twice"
            self._ref_counts[block_id] = holders - 1
            if holders > 1:
                continue
            if block_id in self._kept:
                self._cached[block_id] = None
            else:
                self._free.append(block_id)

    def keep(self, block_id: int) -> None:
        """Mark a held block's content as worth keeping after its last holder."""
        assert self._ref_counts[block_id] > 0, f"block {block_id} is not held"
        self._kept.add(block_id)

    def forget(self, block_id: int) -> None:
        """Unmark a block's content. Without holders the block is free."""
        self._kept.discard(block_id)
        if block_id in self._cached:
            del self._cached[block_id]
            self._free.append(block_id)

    def check_integrity(self) -> None:
        """Raise AssertionError unless every block is either free, cached or held."""
        free = set(self._free)
        assert len(free) == len(self._free), "a block is free twice"
        assert SCRATCH_BLOCK not in free
        assert self._ref_counts[SCRATCH_BLOCK] == 0
        assert free.isdisjoint(self._cached), "a free block is kept"
        assert free.isdisjoint(self._kept), "a free block is kept"
        assert self._kept.issuperset(self._cached)
        for block_id in range(1, len(self._ref_counts)):
            is_idle = block_id in free or block_id in self._cached
            has_no_holder = self._ref_counts[block_id] == 0
            assert has_no_holder == is_idle, f"block {block_id} is lost"

    def _note_peak(self) -> None:
        used = self.num_total - self.num_free
        self.peak_used = max(self.peak_used, used)

    def _evict(self) -> int:
        block_id = next(iter(self._cached))
        if self.on_evict is not None:
            self.on_evict(block_id)
        del self._cached[block_id]
        self._kept.discard(block_id)
        return block_id


@dataclass(slots=True)
class BlockTable:
    """The blocks of one sequence in one arena, oldest first.

    `start_block` counts the blocks that were freed behind a sliding window: the first
    id holds tokens from position `start_block * BLOCK_TOKENS` on.
    """

    block_ids: list[int] = field(default_factory=list)
    start_block: int = 0

    @property
    def first_position(self) -> int:
        return self.start_block * BLOCK_TOKENS

    def missing(self, num_tokens: int) -> int:
        """Blocks still to be added before the sequence can hold `num_tokens` tokens."""
        end_block = self.start_block + len(self.block_ids)
        return max(0, blocks_for(num_tokens) - end_block)

    def drop_before(self, position: int) -> list[int]:
        """Forget, and return, the blocks that lie wholly before `position`."""
        behind = position // BLOCK_TOKENS - self.start_block
        count = min(max(0, behind), len(self.block_ids))
        dropped = self.block_ids[:count]
        self.block_ids = self.block_ids[count:]
        self.start_block += count
        return dropped

    def clear(self) -> list[int]:
        """Forget, and return, every block."""
        dropped = self.block_ids
        self.block_ids = []
        return dropped
