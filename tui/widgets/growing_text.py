"""A text at whose end more is written: rows that stay as they are, are drawn once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

from rich.segment import Segment
from textual.content import Content
from textual.geometry import Region, Size
from textual.reactive import Reactive
from textual.strip import Strip
from textual.style import Style
from textual.widget import Widget


@dataclass(slots=True)
class _Row:
    """One row on the screen.

    `x` and `y` are where it begins in the text: a character of a line. `strip` is how it
    is drawn, None before it was.
    """

    content: Content
    x: int
    y: int
    strip: Strip | None = None

    def is_same(self, row: _Row) -> bool:
        """Whether another row looks the same and stands for the same text."""
        return (self.x, self.y) == (row.x, row.y) and self.content.is_same(row.content)


class GrowingText(Widget):
    """Shows styled text: a part that has settled, and an end that is still changed.

    It can be marked with the mouse, as in a `Static`. It grows by several rows at a
    time: a new height costs a layout of the screen, and all of its rows.
    """

    # A size that a layout gave asks for no layout: Textual would make each one twice.
    virtual_size = Reactive(Size(0, 0))

    def __init__(self) -> None:
        super().__init__()
        self._lines = [Content("")]
        self._rows: list[_Row] = []
        self._wrapped_at = 0  # the width of `_rows`; 0 before the first layout
        # How much of `_lines` and `_rows` has settled.
        self._num_settled_lines = 0
        self._num_settled_rows = 0
        self._height = 0  # rows at the last layout
        self._step = 1  # the height is a multiple of it
        self._look: tuple[Any, ...] = ()  # that the rows were drawn with
        self._style = Style()
        self._blank = Strip([])
        self.num_wrapped = 0  # lines wrapped so far
        self.num_drawn = 0  # rows drawn so far

    def render(self) -> Content:
        """The whole text."""
        return Content("\n").join(self._lines)

    def show(self, end: Content) -> None:
        """Show another end; only rows that differ are drawn anew."""
        old = self._rows[self._num_settled_rows :]
        self._put(end.split("\n", allow_blank=True))
        self._refresh_from(self._num_settled_rows, old)

    def grow_by(self, num_rows: int) -> None:
        """Let the height grow by so many rows at a time; those not needed are blank."""
        if num_rows != self._step:
            self._step = num_rows
            if self._height != self._wanted_height:
                self.refresh(layout=True)

    def settle(
        self,
        settled: Content,
        end: Content,
        is_joined: bool,
    ) -> None:
        """Let the end settle as it is given, and go on with a new one.

        A blank line stands between the two unless they are joined.
        """
        first = self._num_settled_rows
        old = self._rows[first:]
        lines = settled.split("\n", allow_blank=True)
        if not is_joined:
            lines.append(Content(""))
        self._put(lines)
        self._num_settled_lines = len(self._lines)
        self._num_settled_rows = len(self._rows)
        self._put(end.split("\n", allow_blank=True))
        self._refresh_from(first, old)

    def get_content_height(
        self,
        container: Size,
        viewport: Size,
        width: int,
    ) -> int:
        """Rows of the text at a width."""
        if not width:
            return 0
        self._wrap_at(width)
        self._height = self._wanted_height
        return self._height

    @property
    def _wanted_height(self) -> int:
        return math.ceil(len(self._rows) / self._step) * self._step

    def render_lines(self, crop: Region) -> list[Strip]:
        """The rows of a region, with what is marked with the mouse."""
        width = self.size.width
        if self.text_selection is not None or not width:
            return super().render_lines(crop)
        self._wrap_at(width)
        self._look_again()
        strips = [self._strip(y) for y in crop.line_range]
        if crop.column_span != (0, width):
            strips = [strip.crop(*crop.column_span) for strip in strips]
        return strips

    # Rows

    def _put(self, lines: list[Content]) -> None:
        """Put lines behind those that have settled."""
        first = self._num_settled_lines
        num_same = _num_same(self._lines[first:], lines)
        self._lines[first:] = lines
        if self._wrapped_at:
            old = self._rows[self._num_settled_rows :]
            changed_at = first + num_same
            rows = [row for row in old if row.y < changed_at]
            rows += self._wrapped(lines[num_same:], changed_at)
            for index, (before, row) in enumerate(zip(old, rows, strict=False)):
                if before.is_same(row):
                    rows[index] = before
            self._rows[self._num_settled_rows :] = rows

    def _wrapped(
        self,
        lines: list[Content],
        first: int,
    ) -> list[_Row]:
        """The rows of lines, of which the first has the number `first`."""
        rows = []
        self.num_wrapped += len(lines)
        for number, line in enumerate(lines, first):
            x = 0
            for part in line.wrap(self._wrapped_at):
                x = max(x, line.plain.find(part.plain, x))
                rows.append(_Row(part, x, number))
                x += len(part.plain)
        return rows

    def _wrap_at(self, width: int) -> None:
        """Bring the rows to a width."""
        if width == self._wrapped_at:
            return
        self._wrapped_at = width
        num_settled = self._num_settled_lines
        settled = self._wrapped(self._lines[:num_settled], 0)
        self._num_settled_rows = len(settled)
        self._rows = settled + self._wrapped(self._lines[num_settled:], num_settled)

    def _refresh_from(
        self,
        first: int,
        old: list[_Row],
    ) -> None:
        """Draw what differs from the old rows; `first` is the number of their first."""
        rows = self._rows[first:]
        if not self._wrapped_at or self._height != self._wanted_height:
            self.refresh(layout=True)
            return
        changed = []
        for y, (before, row) in enumerate(zip_longest(old, rows)):
            if before is not row:
                changed.append(y)
        if changed:
            height = changed[-1] - changed[0] + 1
            top = first + changed[0]
            self.refresh(Region(0, top, self._wrapped_at, height))

    # Drawing

    def _look_again(self) -> None:
        """Forget what was drawn in other colours, or for another width."""
        filters = tuple(self.get_line_filters())
        style = self.visual_style
        colours = self.background_colors
        look = (style, colours, self.app.theme, filters, self._wrapped_at)
        if look != self._look:
            self._look = look
            self._style = style
            blank = Strip.blank(self._wrapped_at, style.background_style.rich_style)
            self._blank = self._filtered(blank)
            for row in self._rows:
                row.strip = None

    def _strip(self, y: int) -> Strip:
        """How a row is drawn."""
        if y >= len(self._rows):
            return self._blank
        row = self._rows[y]
        if row.strip is None:
            self.num_drawn += 1
            row.strip = self._filtered(self._drawn(row))
        return row.strip

    def _drawn(self, row: _Row) -> Strip:
        """The row's text. Each piece tells where in the text it stands."""
        segments = []
        x = row.x
        for text, style in row.content.render(self._style, "", self._get_style):
            drawn_style = (self._style + style).rich_style_with_offset(x, row.y)
            segments.append(Segment(text, drawn_style))
            x += len(text)
        strip = Strip(segments, row.content.cell_length)
        return strip.extend_cell_length(
            self._wrapped_at, self._style.background_style.rich_style
        )

    def _filtered(self, strip: Strip) -> Strip:
        """The strip in the colours that the terminal has."""
        for line_filter in self.get_line_filters():
            strip = strip.apply_filter(line_filter, self.background_colors[1])
        return strip


def _num_same(old: Sequence[Content], new: Sequence[Content]) -> int:
    """How many lines at the beginning look the same."""
    count = 0
    for before, line in zip(old, new, strict=False):
        if not before.is_same(line):
            break
        count += 1
    return count
