"""Rows of short texts as columns. Plain text in, plain text out."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from rich.cells import cell_len

GAP = "  "


def aligned(
    rows: Sequence[Sequence[str]],
    numbers: Collection[int] = (),
) -> list[str]:
    """Each row as one line; the columns in `numbers` are set to the right.

    A column that is empty in all rows takes no room.
    """
    widths = column_widths(rows)
    lines = []
    for row in rows:
        cells = []
        for index, cell in enumerate(row):
            if widths[index]:
                cells.append(padded(cell, widths[index], index in numbers))
        lines.append(GAP.join(cells).rstrip())
    return lines


def column_widths(rows: Sequence[Sequence[str]]) -> list[int]:
    """The cells that each column needs."""
    widths: list[int] = []
    for row in rows:
        for index, cell in enumerate(row):
            if index == len(widths):
                widths.append(0)
            widths[index] = max(widths[index], cell_len(cell))
    return widths


def padded(
    cell: str,
    width: int,
    is_right: bool = False,
) -> str:
    """The text in `width` cells, or as it is where it is longer."""
    space = " " * (width - cell_len(cell))
    return space + cell if is_right else cell + space
