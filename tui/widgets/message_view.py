"""One settled message of the transcript."""

from __future__ import annotations

from textual.content import Content
from textual.geometry import Size
from textual.message import Message as WidgetMessage
from textual.reactive import Reactive

from rvllm_local.history.types import ChatMessage
from rvllm_local.tui.render import render_message
from rvllm_local.tui.widgets.kept_lines import KeptStatic


class MessageView(KeptStatic):
    """One settled message, laid out for the width it has. A click selects it."""

    virtual_size = Reactive(Size(0, 0))  # as in `GrowingText`

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

    def get_content_height(
        self,
        container: Size,
        viewport: Size,
        width: int,
    ) -> int:
        """Rows at a width; the text is laid out for it before the layout goes on."""
        if width and width != self._laid_out_for:
            self._laid_out_for = width
            self.update(self._content(), layout=False)
        return super().get_content_height(container, viewport, width)

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
