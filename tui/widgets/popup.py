"""What the word before the cursor could become, above the composer."""

from __future__ import annotations

from collections.abc import Sequence

from textual.content import Content
from textual.widgets import Static

from rvllm_local.tui.complete import Completion
from rvllm_local.tui.sanitise import clean_line

ROWS = 8  # shown at once; the rest scrolls
_NAME_WIDTH = 24


class CompletionPopup(Static):
    """A list with one row marked. Hidden while there is nothing to offer."""

    def __init__(self) -> None:
        super().__init__("", id="popup", markup=False)
        self._offers: Sequence[Completion] = ()
        self._index = 0
        self.display = False

    def offer(self, offers: Sequence[Completion]) -> None:
        """Show other offers, with the first marked; none hides the list."""
        if list(offers) == list(self._offers):
            return
        self._offers, self._index = offers, 0
        self.display = bool(offers)
        self._draw()

    def move(self, step: int) -> None:
        """Mark the row before or after, round the ends."""
        self._index = (self._index + step) % max(len(self._offers), 1)
        self._draw()

    @property
    def marked(self) -> Completion | None:
        """The marked offer, while the list is shown."""
        return self._offers[self._index] if self.display and self._offers else None

    def _draw(self) -> None:
        start = min(max(0, self._index - ROWS + 1), max(0, len(self._offers) - ROWS))
        lines = []
        for index, offer in enumerate(self._offers[start : start + ROWS], start):
            name = clean_line(offer.name, 60).ljust(_NAME_WIDTH)
            is_marked = index == self._index
            sign = ("▸ ", "bold $accent") if is_marked else "  "
            style = "bold $accent" if is_marked else "bold"
            note = (f" {offer.note}", "$muted")
            lines.append(Content.assemble(sign, (name, style), note))
        hidden = len(self._offers) - ROWS
        if hidden > 0:
            count = f"  {self._index + 1}/{len(self._offers)}"
            lines.append(Content.styled(count, "$muted"))
        self.update(Content("\n").join(lines))
