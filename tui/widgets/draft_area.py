"""A text that is being written: long pastes are shown as signs, foreign text is harmless."""

from __future__ import annotations

from collections import deque
from typing import Any

from rich.text import Text
from textual import events
from textual.message import Message
from textual.widgets import TextArea

from rvllm_local.tui.ordered_keys import OrderedKeys
from rvllm_local.tui.prompts import draft_token, paste_token, put_pastes
from rvllm_local.tui.sanitise import clean_cells, clean_copy
from rvllm_local.tui.widgets.kept_lines import KeptLines

PASTE_LIMIT = 1_000_000  # characters
TAKEN_PASTES = 8  # pastes of earlier drafts that are known again


class DraftArea(OrderedKeys, KeptLines, TextArea):
    """A `TextArea` whose long pastes stand as short signs until they are sent."""

    class Refused(Message):
        """A paste was too large; `size` is its length in characters."""

        def __init__(self, size: int) -> None:
            self.size = size
            super().__init__()

    def __init__(self, **options: Any) -> None:
        super().__init__(soft_wrap=True, show_line_numbers=False, **options)
        self.pastes: dict[str, str] = {}
        self._taken_pastes: deque[str] = deque(maxlen=TAKEN_PASTES)

    @property
    def whole_text(self) -> str:
        """The text with its pastes."""
        return put_pastes(self.text, self.pastes)

    def get_line(self, line_index: int) -> Text:
        """The line as it is shown: it may turn no text round and hide nothing."""
        line = super().get_line(line_index)
        line.plain = clean_cells(line.plain)
        return line

    async def _on_paste(self, event: events.Paste) -> None:
        event.prevent_default()
        event.stop()
        if len(event.text) > PASTE_LIMIT:
            self.post_message(self.Refused(len(event.text)))
            return
        text = clean_copy(event.text.replace("\r\n", "\n").replace("\r", "\n"))
        token = paste_token(text, len(self.pastes) + 1)
        if token is not None:
            self.pastes[token] = text
            text = token
        start, end = self.selection
        self.replace(text, start, end)
        self.move_cursor(self.cursor_location)

    def newline(self) -> None:
        """A new line at the cursor, in place of what is selected."""
        self.replace("\n", *self.selection)

    @property
    def before_cursor(self) -> str:
        """The text up to the cursor."""
        return self.get_text_range((0, 0), self.cursor_location)

    def replace_before_cursor(self, text: str) -> None:
        """Put other text in place of what stands before the cursor."""
        edited = self.replace(clean_copy(text), (0, 0), self.cursor_location)
        self.move_cursor(edited.end_location)

    def take(self) -> str:
        """The text, which is then gone."""
        text = self.text
        self.load_text("")
        for pasted in self.pastes.values():
            if pasted not in self._taken_pastes:
                self._taken_pastes.append(pasted)
        self.pastes.clear()
        return text

    def put(self, text: str) -> None:
        """Set the text, before what was being written meanwhile."""
        if self.text.strip() and self.text.strip() != text.strip():
            text = f"{text}\n\n{self.text}"
        self.load_draft(text)

    def load_draft(self, text: str) -> None:
        """Set the text, with the cursor at its end.

        A very long one is shown as a sign and sent whole, as a paste is; so is a paste
        that comes back in it.
        """
        text = self._fold_pastes(clean_copy(text))
        token = draft_token(text, len(self.pastes) + 1)
        if token is not None:
            self.pastes[token] = put_pastes(text, self.pastes)
            text = token
        self.load_text(text)
        self.move_cursor(self.document.end)

    def _fold_pastes(self, text: str) -> str:
        """The text with signs in place of what was pasted a while ago."""
        for pasted in self._taken_pastes:
            token = paste_token(pasted, len(self.pastes) + 1)
            if token is not None and pasted in text:
                self.pastes[token] = pasted
                text = text.replace(pasted, token)
        return text

    def type_text(self, text: str) -> None:
        """Take a key that was pressed while something else had the focus."""
        self.focus()
        self.insert(text)
