"""How a row's blocks are split among threadgroups: by its own context alone, never by the batch.

So a row's sums are added in the same order whatever else runs beside it. The kernels get a rule as a macro.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class SplitRule:
    """Blocks a split: `(up to this many blocks, blocks a split)` in ascending order, and for all longer rows `largest`."""

    tiers: tuple[tuple[int, int], ...]
    largest: int

    def blocks(self, num_blocks: int) -> int:
        """Blocks a split for a row that reads `num_blocks` blocks."""
        return next(
            (size for limit, size in self.tiers if num_blocks <= limit), self.largest
        )

    def most(self, max_blocks: int) -> int:
        """The most splits that any row with at most `max_blocks` blocks needs: the grid's extent."""
        candidates = [max_blocks] + [
            limit for limit, _ in self.tiers if limit < max_blocks
        ]
        return max(-(-count // self.blocks(count)) for count in candidates)

    def macro(self) -> str:
        """`blocks` as a C expression in `n`."""
        tests = "".join(f"(n) <= {limit} ? {size} : " for limit, size in self.tiers)
        return f"({tests}{self.largest})"


# A row that fits one split needs no combine step. Metal's values were not measured.
SPLIT_RULES = {
    "metal": SplitRule(((16, 16), (64, 8), (256, 16)), 32),
    "cuda": SplitRule(((32, 32), (128, 16), (512, 32)), 64),
    "cuda-int8": SplitRule(
        ((32, 32), (128, 16)), 32
    ),  # half the bytes a token: more threadgroups to keep busy
}
