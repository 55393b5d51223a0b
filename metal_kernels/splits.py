"""How a row's blocks are split among threadgroups.

The row's context alone decides, never the batch. So a row's sums are added in the same
order whatever else runs beside it. The kernels get a rule as a macro.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class SplitRule:
    """Blocks a split, by the blocks that a row reads.

    tiers: `(up to this many blocks, blocks a split)` in ascending order.
    largest: blocks a split of all longer rows.
    """

    tiers: tuple[tuple[int, int], ...]
    largest: int

    def blocks(self, num_blocks: int) -> int:
        """Blocks a split for a row that reads `num_blocks` blocks."""
        for limit, size in self.tiers:
            if num_blocks <= limit:
                return size
        return self.largest

    def most(self, max_blocks: int) -> int:
        """The most splits of any row with at most `max_blocks` blocks.

        This is the grid's extent. Within a tier the longest row has the most splits.
        """
        most = self._splits(max_blocks)
        for limit, _ in self.tiers:
            if limit < max_blocks:
                most = max(most, self._splits(limit))
        return most

    def macro(self) -> str:
        """`blocks` as a C expression in `n`."""
        tests = ""
        for limit, size in self.tiers:
            tests += f"(n) <= {limit} ? {size} : "
        return f"({tests}{self.largest})"

    def _splits(self, num_blocks: int) -> int:
        return -(-num_blocks // self.blocks(num_blocks))


# A row that fits one split needs no combine step. Metal's values were not measured.
SPLIT_RULES = {
    "metal": SplitRule(((16, 16), (64, 8), (256, 16)), 32),
    "cuda": SplitRule(((32, 32), (128, 16), (512, 32)), 64),
    # Half the bytes a token: more threadgroups keep the device busy.
    "cuda-int8": SplitRule(((32, 32), (128, 16)), 32),
    # Latents have one head, so that a row has no other threadgroups beside its splits.
    "metal-latent": SplitRule(((8, 8), (64, 4), (256, 8)), 16),
    "cuda-latent": SplitRule(((8, 8), (64, 4), (256, 8), (1024, 16)), 32),
}
