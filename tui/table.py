"""Tables as text: columns that share the width, cells that wrap, rows that stack."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from textual.content import Content

Alignment = Literal["left", "center", "right"]
LEAST_COLUMN = 8  # cells; narrower columns stack as rows of "name: value"
_GAP = 3  # cells of " │ "
_EMPTY = Content("")


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of cells, the first of them the head, and an alignment a column."""

    rows: Sequence[Sequence[Content]]
    alignments: Sequence[Alignment]


@dataclass(frozen=True, slots=True, eq=False)
class _Row:
    """The cells of a row. Rows are equal if they have the very same cells.

    Contents that are equal may be styled differently.
    """

    cells: tuple[Content, ...]

    def __hash__(self) -> int:
        return hash(tuple(map(id, self.cells)))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, _Row) or len(self.cells) != len(other.cells):
            return False
        pairs = zip(self.cells, other.cells, strict=True)
        return all(cell is same for cell, same in pairs)


def render_table(table: Table, width: int | None) -> Content:
    """The table in at most `width` cells; as wide as it likes where that is None."""
    natural = _natural_widths(table)
    widths = natural if width is None else _fit(natural, width)
    if widths is None:
        return _stack(table)
    lines: list[Content] = []
    for number, row in enumerate(table.rows):
        cells = (*row, *[_EMPTY] * (len(widths) - len(row)))
        for line in _row_lines(_Row(cells), tuple(widths), tuple(table.alignments)):
            lines.append(line.stylize("bold") if number == 0 else line)
        if number == 0:
            rule = "─┼─".join("─" * column for column in widths)
            lines.append(Content.styled(rule, "$muted"))
    return Content("\n").join(lines)


def _natural_widths(table: Table) -> list[int]:
    widths = [1] * max(len(row) for row in table.rows)
    for row in table.rows:
        for index, cell in enumerate(row):
            widths[index] = max(widths[index], cell.cell_length)
    return widths


def _fit(natural: Sequence[int], width: int) -> list[int] | None:
    """Widths that fit, taken from the widest columns; None where none are bearable."""
    widths = list(natural)
    room = width - _GAP * (len(widths) - 1)
    while sum(widths) > room:
        widest = max(widths)
        if widest <= LEAST_COLUMN:
            return None
        widths[widths.index(widest)] -= 1
    return widths


@lru_cache(256)  # a table that grows is rendered again and again
def _row_lines(
    row: _Row,
    widths: tuple[int, ...],
    alignments: tuple[Alignment, ...],
) -> tuple[Content, ...]:
    columns = []
    for cell, width in zip(row.cells, widths, strict=True):
        is_long = cell.cell_length > width
        columns.append(cell.wrap(width) if is_long else [cell])
    bar = Content.styled(" │ ", "$muted")
    lines = []
    for number in range(max(map(len, columns))):
        pieces = []
        for index, column in enumerate(columns):
            piece = column[number] if number < len(column) else Content("")
            pieces.append(_aligned(piece, widths[index], alignments[index]))
        lines.append(bar.join(pieces))
    return tuple(lines)


def _aligned(
    piece: Content,
    width: int,
    alignment: Alignment,
) -> Content:
    space = max(width - piece.cell_length, 0)
    if alignment == "right":
        return piece.pad_left(space)
    if alignment == "center":
        return piece.pad_left(space // 2).pad_right(space - space // 2)
    return piece.pad_right(space)


def _stack(table: Table) -> Content:
    """Each row as lines of "name: value"."""
    head, *rows = table.rows
    blocks = []
    for row in rows:
        lines = []
        for name, cell in zip(head, row, strict=False):
            lines.append(Content.assemble(name.stylize("bold"), ": ", cell))
        blocks.append(Content("\n").join(lines))
    return Content("\n\n").join(blocks)
