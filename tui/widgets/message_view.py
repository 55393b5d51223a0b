"""One settled message of the transcript."""

from __future__ import annotations

from textual.message import Message as WidgetMessage
from textual.widgets import Static

from rvllm_local.history.types import ChatMessage
from rvllm_local.tui.render import render_message


class MessageView(Static):
    """One settled message. A click selects it."""

    class Clicked(WidgetMessage):
        """The message was clicked."""

        def __init__(self, message_id: str) -> None:
            self.message_id = message_id
            super().__init__()

    def on_click(self) -> None:
        """Select the message, unless text was marked with the mouse."""
        if not self.screen.get_selected_text():
            self.post_message(self.Clicked(self.message.id))

    def __init__(
        self,
        message: ChatMessage,
        version: tuple[int, int],
        show_reasoning: bool = False,
    ) -> None:
        self.message, self.version, self.show_reasoning = (
            message,
            version,
            show_reasoning,
        )
        super().__init__(
            render_message(message, version, show_reasoning),
            classes=f"message {message.role}",
        )

    def show(self, message: ChatMessage, version: tuple[int, int]) -> None:
        """Show another state of the message."""
        if (message, version) != (self.message, self.version):
            self.message, self.version = message, version
            self.update(render_message(message, version, self.show_reasoning))

    def toggle_reasoning(self) -> None:
        """Unfold the reasoning, or fold it."""
        self.show_reasoning = not self.show_reasoning
        self.update(render_message(self.message, self.version, self.show_reasoning))
