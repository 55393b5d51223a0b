"""The chats beside the conversation, on wide terminals."""

from __future__ import annotations

from collections.abc import Sequence

from textual.content import Content
from textual.message import Message
from textual.widgets import OptionList
from textual.widgets.option_list import Option

from rvllm_local.history.types import Chat
from rvllm_local.tui.sanitise import clean_line
from rvllm_local.tui.shelf import Shelf

SHOWN = 100  # chats
_TITLE_WIDTH = 26


class Sidebar(OptionList, can_focus=False):
    """A click opens a chat. Hidden where there is no room for it."""

    class Opened(Message):
        """A chat was clicked."""

        def __init__(self, chat_id: str) -> None:
            self.chat_id = chat_id
            super().__init__()

    def __init__(self) -> None:
        super().__init__(id="sidebar", markup=False)
        self._shown: list[tuple[str, str]] = []

    @property
    def is_on_screen(self) -> bool:
        """Whether there is room for it, and it was not hidden."""
        return self.display and self.app.screen_stack[0].has_class("wide")

    def show(
        self,
        chats: Sequence[Chat],
        shelf: Shelf,
        marks: dict[str, str],
        present: str,
    ) -> None:
        """Show these chats; `marks` are signs of chats that write or have news."""
        rows = []
        for chat in shelf.ordered(chats)[:SHOWN]:
            sign = "▌" if chat.id == present else marks.get(chat.id, " ")
            title = clean_line(shelf.label(chat), _TITLE_WIDTH)
            rows.append((chat.id, f"{sign} {title}"))
        if rows == self._shown:
            return
        self._shown = rows
        self.clear_options()
        self.add_options([Option(Content(text), id=key) for key, text in rows])

    def on_option_list_option_selected(self, event: OptionList.OptionSelected) -> None:
        """Open the chat that was clicked."""
        event.stop()
        self.post_message(self.Opened(str(event.option.id)))
