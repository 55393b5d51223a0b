"""The box to write in: it grows with its text, and its keys come from the registry."""

from __future__ import annotations

from rich.text import Text
from textual import events
from textual.message import Message
from textual.widgets import TextArea

from rvllm_local.tui.keymap import bindings
from rvllm_local.tui.sanitise import clean_cells, clean_copy

PASTE_LIMIT = 1_000_000  # characters


class Composer(TextArea):
    """A `TextArea` that sends on Enter."""

    BINDINGS = bindings("composer")

    class Refused(Message):
        """A paste was too large; `size` is its length in characters."""

        def __init__(self, size: int) -> None:
            self.size = size
            super().__init__()

    def __init__(self) -> None:
        super().__init__(
            id="composer",
            soft_wrap=True,
            show_line_numbers=False,
            tab_behavior="focus",
            placeholder="Ask anything. / for commands, @file to attach, F1 for help",
        )

    def get_line(self, line_index: int) -> Text:
        """The line as it is shown: what is pasted, recalled or completed may turn no text round and hide nothing."""
        line = super().get_line(line_index)
        line.plain = clean_cells(line.plain)
        return line

    async def _on_paste(self, event: events.Paste) -> None:
        event.prevent_default()
        event.stop()
        if len(event.text) > PASTE_LIMIT:
            self.post_message(self.Refused(len(event.text)))
            return
        start, end = self.selection
        self.replace(
            clean_copy(event.text.replace("\r\n", "\n").replace("\r", "\n")), start, end
        )
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
        self.move_cursor(
            self.replace(clean_copy(text), (0, 0), self.cursor_location).end_location
        )

    def take(self) -> str:
        """The text, which is then gone."""
        text = self.text
        self.load_text("")
        return text

    def put(self, text: str) -> None:
        """Set the text, with the cursor at its end; what was being written meanwhile follows it."""
        if self.text.strip() and self.text.strip() != text.strip():
            text = f"{text}\n\n{self.text}"
        self.load_text(clean_copy(text))
        self.move_cursor(self.document.end)
