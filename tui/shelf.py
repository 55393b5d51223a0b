"""Which chats are pinned, and the folder that each is in.

Plain values, kept as one setting of the history.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rvllm_local.history.types import Chat

SETTING = "shelf"
FOLDER_LENGTH = 40  # characters


@dataclass(slots=True)
class Shelf:
    """`pins` are chats that stand first; `folders` maps a chat to its folder's name."""

    pins: list[str] = field(default_factory=list)
    folders: dict[str, str] = field(default_factory=dict)
    # Chats, since it was written: no part of what a shelf is.
    _changed: set[str] = field(default_factory=set, compare=False)

    def load(self, kept: Any) -> None:
        """Take what was kept; what is no text is left out."""
        if not isinstance(kept, Mapping):
            return
        pins, folders = kept.get("pins"), kept.get("folders")
        if isinstance(pins, list):
            self.pins = [chat_id for chat_id in pins if isinstance(chat_id, str)]
        if isinstance(folders, Mapping):
            for chat_id, name in folders.items():
                if isinstance(name, str) and name:
                    self.folders[str(chat_id)] = name

    def values(self) -> dict[str, Any]:
        """What is to be kept."""
        return {"pins": self.pins, "folders": self.folders}

    def merge(self, kept: Any) -> dict[str, Any]:
        """What is to be kept: what was, perhaps by others, with the changes made here.

        The shelf then knows what the others did.
        """
        merged = Shelf()
        merged.load(kept)
        for chat_id in self._changed:
            if (chat_id in self.pins) != (chat_id in merged.pins):
                merged.toggle_pin(chat_id)
            merged.move(chat_id, self.folders.get(chat_id, ""))
        self.pins, self.folders = merged.pins, merged.folders
        self._changed = set()
        return self.values()

    def toggle_pin(self, chat_id: str) -> bool:
        """Pin a chat, or take its pin away; returns whether it is pinned now."""
        self._changed.add(chat_id)
        if chat_id in self.pins:
            self.pins.remove(chat_id)
            return False
        self.pins.append(chat_id)
        return True

    def move(
        self,
        chat_id: str,
        folder: str,
    ) -> None:
        """Put a chat into a folder; an empty name takes it out."""
        self._changed.add(chat_id)
        name = " ".join(folder.split())[:FOLDER_LENGTH]
        if name:
            self.folders[chat_id] = name
        else:
            self.folders.pop(chat_id, None)

    def ordered(self, chats: Sequence[Chat]) -> list[Chat]:
        """Pinned chats first, then folders by name, then the rest; else as they were."""

        def rank(chat: Chat) -> tuple[int, str]:
            if chat.id in self.pins:
                return 0, ""
            folder = self.folders.get(chat.id, "")
            return (1, folder.lower()) if folder else (2, "")

        return sorted(chats, key=rank)

    def label(self, chat: Chat) -> str:
        """The chat's title with its pin and folder."""
        title = chat.title or "Untitled"
        folder = self.folders.get(chat.id)
        if folder:
            title = f"{folder} / {title}"
        return f"★ {title}" if chat.id in self.pins else title
