"""How a row's blocks are split among threadgroups: by its own context alone, never by the batch.

So a row's sums are added in the same order whatever else runs beside it. The kernels get `SPLIT_TIERS` as a macro.
"""

from __future__ import annotations

SPLIT_TIERS = ((64, 8), (256, 16))  # (up to this many blocks, blocks a split)
LARGEST_SPLIT = 32


def split_blocks(num_blocks: int) -> int:
    """Blocks a split for a row that reads `num_blocks` blocks."""
    return next((size for limit, size in SPLIT_TIERS if num_blocks <= limit), LARGEST_SPLIT)


def max_splits(max_blocks: int) -> int:
    """The most splits that any row with at most `max_blocks` blocks needs: the grid's extent."""
    candidates = [max_blocks] + [limit for limit, _ in SPLIT_TIERS if limit < max_blocks]
    return max(-(-count // split_blocks(count)) for count in candidates)


def split_macro() -> str:
    """`split_blocks` as a C expression in `n`."""
    tests = "".join(f"(n) <= {limit} ? {size} : " for limit, size in SPLIT_TIERS)
    return f"({tests}{LARGEST_SPLIT})"
