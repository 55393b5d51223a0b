"""What was being written in each chat, kept until it is sent.

Plain values. A chat that is not yet kept shares one draft, under the name "new".
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

NEW = "new"
SETTING = "drafts"
_MOST = 200  # chats; the oldest drafts go first


class Drafts:
    """The drafts by chat. What changed here is written into what others have written."""

    def __init__(self) -> None:
        self._texts: dict[str, str] = {}
        self._changed: set[str] = set()

    @property
    def is_changed(self) -> bool:
        """Whether something must be written."""
        return bool(self._changed)

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
        text = text if text.strip() else ""
        if text == self._texts.pop(chat_id, ""):
            if text:
                self._texts[chat_id] = text
            return
        self._changed.add(chat_id)
        if text:
            self._texts[chat_id] = text
        _drop_oldest(self._texts)

    def take_changes(self) -> Mapping[str, str]:
        """The drafts that changed, to be written now; an empty one is forgotten."""
        changes = {chat_id: self.get(chat_id) for chat_id in self._changed}
        self._changed = set()
        return changes


def merge_drafts(kept: Any, changes: Mapping[str, str]) -> dict[str, str]:
    """What was kept, perhaps by another chat meanwhile, with the changes of this one."""
    texts = dict(kept) if isinstance(kept, Mapping) else {}
    for chat_id, text in changes.items():
        texts.pop(chat_id, None)
        if text:
            texts[chat_id] = text
    _drop_oldest(texts)
    return texts


def _drop_oldest(texts: dict[str, str]) -> None:
    while len(texts) > _MOST:
        del texts[next(iter(texts))]
