"""The field that finds words in the chat: from the newest message back, and round."""

from __future__ import annotations

from typing import ClassVar

from textual.binding import Binding, BindingType
from textual.widgets import Input

from rvllm_local.tui.notices import tell
from rvllm_local.tui.ordered_keys import OrderedInput
from rvllm_local.tui.widgets.transcript import Transcript


class FindBar(OrderedInput):
    """Hidden until opened. Enter goes to the next message that holds the words."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding(
            "up",
            "find(1)",
            "Older",
            id="find.older",
            show=False,
        ),
        Binding(
            "down",
            "find(-1)",
            "Newer",
            id="find.newer",
            show=False,
        ),
    ]

    def __init__(self, transcript: Transcript) -> None:
        super().__init__(
            placeholder="find: Enter or Up for the one before, Down for the one after",
            id="find",
        )
        self._transcript = transcript
        self._came_from: float | None = None  # the scroll position before finding

    def open(self, words: str = "") -> None:
        """Show the field, and find at once what is given."""
        if not self.display:
            self._came_from = self._transcript.scroll_y
        self.display = True
        self.value = words or self.value
        self.focus()
        if words:
            self.action_find(1)

    def close(self) -> bool:
        """Hide the field and go back to the place before; False if it was hidden."""
        if not self.display:
            return False
        self.display = False
        self.border_title = ""
        self._transcript.select(None)
        if self._came_from is not None:
            self._transcript.scroll_to(y=self._came_from, animate=False)
            self._came_from = None
        return True

    def on_input_submitted(self, event: Input.Submitted) -> None:
        """Go to the next hit."""
        event.stop()
        self.action_find(1)

    def action_find(self, step: int) -> None:
        """Go `step` hits towards the older messages."""
        hits = self._transcript.holding(self.value)
        if not hits:
            self.border_title = "0 of 0"
            tell(self, "not found in this chat; Ctrl+S searches all", "warning")
            return
        selected = self._transcript.selected
        if selected in hits:
            index = (hits.index(selected) - step) % len(hits)
        else:
            index = len(hits) - 1
        self.border_title = f"{len(hits) - index} of {len(hits)}"
        self._transcript.select(hits[index])
