"""The step descriptor: one int32 array with the rows, contexts and blocks of a step.

`[rows, query_len, max_blocks, 0...]`, then `[context_len, first_position]` a row, then
the tables `[rows, max_blocks]`. The kernels get `HEADER` and `ROW_FIELDS` from here;
nothing else knows the layout.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

BLOCK_TOKENS = 32
# At least 8 elements: smaller arrays would land in another Metal address space.
HEADER = 8
ROW_FIELDS = 2


def pack(
    context_lens: Sequence[int],
    first_positions: Sequence[int],
    tables: Sequence[Sequence[int]],
    query_len: int,
    *,
    rows: int | None = None,
    max_blocks: int | None = None,
) -> npt.NDArray[np.int32]:
    """The descriptor of one step, padded to `rows` rows and `max_blocks` blocks a row.

    `context_lens` count the new tokens too. `first_positions` are those of the first
    token that each table covers: multiples of the block size. Padding rows have context
    0 and block 0. Raises `ValueError` if a row has too few blocks or does not fit the
    bucket.
    """
    count = len(context_lens)
    if len(first_positions) != count or len(tables) != count:
        raise ValueError(
            f"{count} contexts need as many positions and tables, "
            f"not {len(first_positions)}, {len(tables)}"
        )
    longest = max((len(table) for table in tables), default=1)
    if rows is None:
        rows = count
    if max_blocks is None:
        max_blocks = max(longest, 1)
    if rows < count or max_blocks < longest:
        raise ValueError(
            f"{count} rows of {longest} blocks do not fit "
            f"a bucket of {rows} rows of {max_blocks} blocks"
        )
    tables_start = HEADER + rows * ROW_FIELDS
    packed = np.zeros(tables_start + rows * max_blocks, dtype=np.int32)
    packed[:3] = rows, query_len, max_blocks
    fields = packed[HEADER:tables_start].reshape(rows, ROW_FIELDS)
    blocks = packed[tables_start:].reshape(rows, max_blocks)
    for row, table in enumerate(tables):
        context = context_lens[row]
        first = first_positions[row]
        _check_row(row, context, first, len(table), query_len)
        fields[row] = context, first
        blocks[row, : len(table)] = table
    return packed


def pack_decode(
    context_lens: Sequence[int],
    first_positions: Sequence[int],
    tables: Sequence[Sequence[int]],
    rows: int,
    max_blocks: int,
) -> npt.NDArray[np.int32]:
    """`pack` for one new token a row, every step: the same layout without the checks.

    The caller guarantees that the tables cover their contexts and fit the bucket.
    """
    start = HEADER + rows * ROW_FIELDS
    packed = np.zeros(start + rows * max_blocks, dtype=np.int32)
    packed[:3] = rows, 1, max_blocks
    fields_end = HEADER + ROW_FIELDS * len(context_lens)
    packed[HEADER:fields_end:ROW_FIELDS] = context_lens
    packed[HEADER + 1 : fields_end + 1 : ROW_FIELDS] = first_positions
    for table in tables:
        packed[start : start + len(table)] = table
        start += max_blocks
    return packed


def _check_row(
    row: int,
    context: int,
    first: int,
    num_blocks: int,
    query_len: int,
) -> None:
    if context == 0:
        return
    if context < query_len or first % BLOCK_TOKENS or first < 0:
        raise ValueError(
            f"row {row}: context {context} must hold its {query_len} new tokens "
            f"and start at a block, not at {first}"
        )
    if first + num_blocks * BLOCK_TOKENS < context:
        raise ValueError(
            f"row {row}: {num_blocks} blocks from position {first} "
            f"do not cover {context} tokens"
        )


def max_blocks_of(size: int, rows: int) -> int:
    """Blocks a row of a descriptor with `size` elements.

    Raises `ValueError` if it does not describe `rows` rows.
    """
    tables = size - HEADER - rows * ROW_FIELDS
    if rows < 1 or tables < rows or tables % rows:
        raise ValueError(
            f"a descriptor of {size} elements does not describe {rows} rows; "
            "use descriptor.pack"
        )
    return tables // rows
