"""One settled message of the transcript."""

from __future__ import annotations

from textual import events
from textual.content import Content
from textual.message import Message as WidgetMessage
from textual.widgets import Static

from rvllm_local.history.types import ChatMessage
from rvllm_local.tui.render import render_message


class MessageView(Static):
    """One settled message, laid out for the width it has. A click selects it."""

    class Clicked(WidgetMessage):
        """The message was clicked."""

        def __init__(self, message_id: str) -> None:
            self.message_id = message_id
            super().__init__()

    def __init__(
        self,
        message: ChatMessage,
        version: tuple[int, int],
        width: int | None = None,
    ) -> None:
        self.message, self.version = message, version
        self.show_reasoning = False
        self._laid_out_for = width
        super().__init__(self._content(), classes=f"message {message.role}")

    def on_click(self) -> None:
        """Select the message, unless text was marked with the mouse."""
        if not self.screen.get_selected_text():
            self.post_message(self.Clicked(self.message.id))

    def on_resize(self, event: events.Resize) -> None:
        """Lay the text out anew where the width is another."""
        width = self.content_size.width
        if width and width != self._laid_out_for:
            self._laid_out_for = width
            self.update(self._content())

    def show(
        self,
        message: ChatMessage,
        version: tuple[int, int],
    ) -> None:
        """Show another state of the message."""
        if (message, version) != (self.message, self.version):
            self.message, self.version = message, version
            self.update(self._content())

    def toggle_reasoning(self) -> None:
        """Unfold the reasoning, or fold it."""
        self.show_reasoning = not self.show_reasoning
        self.update(self._content())

    def _content(self) -> Content:
        return render_message(
            self.message,
            self.version,
            self.show_reasoning,
            self._laid_out_for,
        )
