"""The list of chats, with search through all messages.

Chats are opened, renamed, pinned, put into folders and deleted from here.
"""

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
from rvllm_local.tui.shelf import Shelf


class ChatsScreen(Pick):
    """Answers with the chat to open, and the message that was found.

    That is "chat" or "chat message", by their ids.
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding(
            "ctrl+r",
            "rename",
            "Rename",
            id="chats.rename",
            priority=True,
        ),
        Binding(
            "ctrl+t",
            "pin",
            "Pin",
            id="chats.pin",
            priority=True,
        ),
        Binding(
            "ctrl+o",
            "move_to",
            "Folder",
            id="chats.folder",
            priority=True,
        ),
        Binding(
            "delete",
            "delete",
            "Delete",
            id="chats.delete",
            priority=True,
        ),
    ]

    def __init__(
        self,
        driver: Driver,
        words: str = "",
        now: float | None = None,
        shelf: Shelf | None = None,
    ) -> None:
        history = driver.history
        assert history is not None
        note = (
            "Enter open  Ctrl+R rename  Ctrl+T pin  Ctrl+O move  Del delete  Esc close"
        )
        if history.read_only:
            note += f"\nread-only: {history.read_only}"
        super().__init__("Chats", [], note, words)
        self._driver, self._history = driver, history
        self._now = now
        self._shelf = shelf or Shelf()
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
        for chat in self._shelf.ordered(self._history.chats(200)):
            note = self._doing(chat.id) or age(now - chat.updated)
            choices.append(Choice(chat.id, self._shelf.label(chat), note))
        return choices

    def _doing(self, chat_id: str) -> str:
        """Whether the chat is writing, or has an answer that was not seen yet."""
        sessions = self._driver.sessions
        live = sessions.writing().get(chat_id)
        if live is not None:
            return f"● writing {self._driver.clock() - live.began:.0f} s"
        return "✓ new" if chat_id in sessions.unseen else ""

    def _hits(self, words: str) -> list[Choice]:
        choices = []
        listed = set()
        for hit in self._history.search(words):
            if hit.message_id is None and hit.chat_id in listed:
                continue  # its title holds the words, too
            listed.add(hit.chat_id)
            value = f"{hit.chat_id} {hit.message_id or ''}".strip()
            note = hit.excerpt or "in its title"
            choices.append(Choice(value, hit.title or "Untitled", note))
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

    def action_pin(self) -> None:
        """Pin the chat under the cursor, or take its pin away."""
        if self.highlighted is not None:
            self._shelf.toggle_pin(self.highlighted.split()[0])
            self._show_changes()

    def action_move_to(self) -> None:
        """Put the chat under the cursor into a folder."""
        if self.highlighted is None:
            return
        chat_id = self.highlighted.split()[0]

        def move(name: str | None) -> None:
            self._shelf.move(chat_id, name or "")
            self._show_changes()

        present = self._shelf.folders.get(chat_id, "")
        note = "an empty name takes the chat out of its folder"
        self.app.push_screen(Ask("Folder", present, note), move)

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
