"""The list of chats, with search through all messages; open, rename or delete from here."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import ClassVar

from textual.binding import Binding, BindingType
from textual.widgets import Input

from rvllm_local.errors import HistoryError
from rvllm_local.history import ChatHistory
from rvllm_local.tui.screens.dialogs import Ask, Choice, Confirm, Pick


class ChatsScreen(Pick):
    """Answers with the id of the chat to open, and of the message that was found: "chat" or "chat message"."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("ctrl+r", "rename", "Rename", id="chats.rename", priority=True),
        Binding("ctrl+d", "delete", "Delete", id="chats.delete", priority=True),
    ]

    def __init__(
        self, history: ChatHistory, words: str = "", now: float | None = None
    ) -> None:
        note = "Enter opens   Ctrl+R renames   Ctrl+D deletes   Esc closes"
        if history.read_only:
            note += f"\nread-only: {history.read_only}"
        super().__init__("Chats", [], note, words)
        self._history = history
        self._now = now
        self.deleted: list[str] = []

    def matching(self, words: str) -> Sequence[Choice]:
        if not words.strip():
            now = time.time() if self._now is None else self._now
            return [
                Choice(one.id, one.title or "Untitled", age(now - one.updated))
                for one in self._history.chats(200)
            ]
        return [
            Choice(
                f"{hit.chat_id} {hit.message_id or ''}".strip(),
                hit.title or "Untitled",
                hit.excerpt,
            )
            for hit in self._history.search(words)
        ]

    def action_rename(self) -> None:
        """Give the chat under the cursor another title."""
        if self.highlighted is None:
            return
        chat_id = self.highlighted.split()[0]

        def rename(title: str | None) -> None:
            if title:
                self._change(lambda: self._history.set_chat(chat_id, title=title))

        chat = self._history.chat(chat_id)
        self.app.push_screen(Ask("New title", chat.title if chat else ""), rename)

    def action_delete(self) -> None:
        """Forget the chat under the cursor, once confirmed."""
        if self.highlighted is None:
            return
        chat_id = self.highlighted.split()[0]

        def delete(is_sure: bool | None) -> None:
            if is_sure:
                self._change(lambda: self._history.delete_chat(chat_id))
                self.deleted.append(chat_id)

        self.app.push_screen(Confirm("Delete this chat and all its messages?"), delete)

    def _change(self, change) -> None:  # type: ignore[no-untyped-def]
        try:
            change()
        except HistoryError as error:
            self.app.notify(str(error), severity="error", markup=False)
        self.refill()
        self.query_one(Input).focus()


def age(seconds: float) -> str:
    """How long ago, for people."""
    for size, name in ((86400, "day"), (3600, "hour"), (60, "minute")):
        if seconds >= size:
            count = int(seconds // size)
            return f"{count} {name}{'s' if count > 1 else ''} ago"
    return "just now"
