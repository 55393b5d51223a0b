"""The list of chats, with search through all messages; open, rename or delete from here."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import ClassVar

from textual.binding import Binding, BindingType
from textual.widgets import Input

from rvllm_local.errors import HistoryError
from rvllm_local.tui.driver import Driver
from rvllm_local.tui.notices import attempt, tell
from rvllm_local.tui.screens.dialogs import Ask, Choice, Confirm, Pick


class ChatsScreen(Pick):
    """Answers with the id of the chat to open, and of the message that was found: "chat" or "chat message"."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("ctrl+r", "rename", "Rename", id="chats.rename", priority=True),
        Binding("delete", "delete", "Delete", id="chats.delete", priority=True),
    ]

    def __init__(
        self, driver: Driver, words: str = "", now: float | None = None
    ) -> None:
        history = driver.history
        assert history is not None
        note = "Enter opens   Ctrl+R renames   Del deletes   Esc closes"
        if history.read_only:
            note += f"\nread-only: {history.read_only}"
        super().__init__("Chats", [], note, words)
        self._driver, self._history = driver, history
        self._now = now
        self.deleted: list[str] = []

    def matching(self, words: str) -> Sequence[Choice]:
        try:
            return self._hits(words) if words.strip() else self._newest()
        except HistoryError as error:
            tell(self, str(error), "error")
            return []

    def _newest(self) -> list[Choice]:
        now = time.time() if self._now is None else self._now
        choices = []
        for chat in self._history.chats(200):
            when = age(now - chat.updated)
            choices.append(Choice(chat.id, chat.title or "Untitled", when))
        return choices

    def _hits(self, words: str) -> list[Choice]:
        choices = []
        for hit in self._history.search(words):
            value = f"{hit.chat_id} {hit.message_id or ''}".strip()
            choices.append(Choice(value, hit.title or "Untitled", hit.excerpt))
        return choices

    def action_rename(self) -> None:
        """Give the chat under the cursor another title."""
        if self.highlighted is None:
            return
        chat_id = self.highlighted.split()[0]

        async def rename(title: str | None) -> None:
            if title:
                await attempt(self, self._driver.rename_chat(chat_id, title))
                self._show_changes()

        try:
            chat = self._history.chat(chat_id)
        except HistoryError as error:
            tell(self, str(error), "error")
            return
        self.app.push_screen(Ask("New title", chat.title if chat else ""), rename)

    def action_delete(self) -> None:
        """Forget the chat under the cursor, once confirmed."""
        if self.highlighted is None:
            return
        chat_id = self.highlighted.split()[0]

        async def delete(is_sure: bool | None) -> None:
            if is_sure:
                await attempt(self, self._driver.delete_chat(chat_id))
                self.deleted.append(chat_id)
                tell(self, "deleted the chat; Alt+Z or /undo brings it back")
                self._show_changes()

        self.app.push_screen(Confirm("Delete this chat and all its messages?"), delete)

    def _show_changes(self) -> None:
        self.refill()
        self.query_one(Input).focus()


def age(seconds: float) -> str:
    """How long ago, for people."""
    for size, name in ((86400, "day"), (3600, "hour"), (60, "minute")):
        if seconds >= size:
            count = int(seconds // size)
            return f"{count} {name}{'s' if count > 1 else ''} ago"
    return "just now"
