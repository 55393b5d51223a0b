"""Widgets whose lines are kept from one frame to the next."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

from textual.containers import Horizontal, Vertical
from textual.geometry import Region
from textual.strip import Strip
from textual.widgets import Static

if TYPE_CHECKING:
    from textual.widget import Widget as _Base
else:
    # A widget takes its styles from its first base that is a widget.
    _Base = object


class KeptLines(_Base):
    """Keeps what it has drawn until it is refreshed.

    Whatever changes on the screen, Textual asks all widgets of a column for their lines.
    Its own cache is by the line, and what it works out before is dear.
    """

    _kept: tuple[tuple[Any, ...], list[Strip]] | None = None

    def refresh(
        self,
        *regions: Region,
        repaint: bool = True,
        layout: bool = False,
        recompose: bool = False,
    ) -> Self:
        """Draw anew what is shown next."""
        self._kept = None
        super().refresh(*regions, repaint=repaint, layout=layout, recompose=recompose)
        return self

    def render_lines(self, crop: Region) -> list[Strip]:
        """The rows of a region."""
        key = (crop, self.size, self.app.theme, self.scroll_offset)
        if self._kept is None or self._kept[0] != key:
            self._kept = key, super().render_lines(crop)
        return self._kept[1]


class KeptStatic(KeptLines, Static):
    """A text that seldom changes."""


class KeptVertical(KeptLines, Vertical):
    """A column that is drawn under others."""


class KeptHorizontal(KeptLines, Horizontal):
    """A row that is drawn under others."""
