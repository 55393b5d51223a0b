"""What was being written in each chat, kept until it is sent.

Plain values. A chat that is not yet kept shares one draft, under the name "new".
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

NEW = "new"
SETTING = "drafts"
_MOST = 200  # chats; the oldest drafts go first
_LONGEST = 200_000  # characters


class Drafts:
    """The drafts by chat. `is_changed` says whether they must be written."""

    def __init__(self) -> None:
        self._texts: dict[str, str] = {}
        self.is_changed = False

    def load(self, kept: Any) -> None:
        """Take what was kept; anything else than text by name is left out."""
        if isinstance(kept, Mapping):
            for chat_id, text in kept.items():
                if isinstance(text, str):
                    self._texts.setdefault(str(chat_id), text)

    def get(self, chat_id: str) -> str:
        """The draft of a chat, or nothing."""
        return self._texts.get(chat_id, "")

    def put(
        self,
        chat_id: str,
        text: str,
    ) -> None:
        """Remember a draft; an empty one is forgotten."""
        text = text[:_LONGEST] if text.strip() else ""
        if text == self._texts.pop(chat_id, ""):
            if text:
                self._texts[chat_id] = text
            return
        self.is_changed = True
        if text:
            self._texts[chat_id] = text
        while len(self._texts) > _MOST:
            del self._texts[next(iter(self._texts))]

    def take_changes(self) -> dict[str, str]:
        """All drafts, to be written now."""
        self.is_changed = False
        return dict(self._texts)
