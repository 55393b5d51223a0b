"""What a person can do with the chats.

Knows no interface: the app and the plain mode listen to it.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from rvllm_local.errors import HistoryError
from rvllm_local.history import ChatHistory
from rvllm_local.history.types import Chat, ChatMessage, Deleted, new_id
from rvllm_local.tui.dispatcher import Listener
from rvllm_local.tui.effects import Effect
from rvllm_local.tui.events import (
    ChatChanged,
    ChatOpened,
    ChatStarted,
    CompactionAsked,
    PromptEdited,
    PromptSubmitted,
    PromptUnqueued,
    ReplyContinued,
    ReplyRegenerated,
    ReplyStopped,
)
from rvllm_local.tui.payload import typed_text
from rvllm_local.tui.rival import RivalDriver

_BRANCH = " (branch)"
UNDOABLE = 50  # deletions that can be undone, one after the other


class Driver(RivalDriver):
    """Holds the chats that are open. What was deleted can be brought back."""

    def __init__(
        self,
        on_change: Listener,
        on_effect: Callable[[Effect], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(on_change, on_effect, clock)
        self._deleted: deque[tuple[ChatHistory, Deleted]] = deque(maxlen=UNDOABLE)

    # Replies

    def submit(
        self,
        text: str,
        figures: Mapping[str, Any] | None = None,
    ) -> None:
        """Send a prompt, or let it wait in line."""
        at = self.clock()
        self.dispatch(
            PromptSubmitted(
                text,
                new_id(),
                new_id(),
                at,
                figures or {},
            )
        )

    def unqueue(self) -> None:
        """Take the last waiting prompt back."""
        self.dispatch(PromptUnqueued())

    def go_on(self, message_id: str) -> None:
        """Let a reply that ended early go on where it ended."""
        self.dispatch(ReplyContinued(message_id, self.clock()))

    def compact(self) -> None:
        """Go on from a summary."""
        self.dispatch(CompactionAsked(new_id(), new_id(), self.clock()))

    def regenerate(self, message_id: str) -> None:
        """Answer a prompt again."""
        self.dispatch(ReplyRegenerated(message_id, new_id(), self.clock()))

    def edit(
        self,
        message_id: str,
        text: str,
        figures: Mapping[str, Any] | None = None,
    ) -> None:
        """Send a prompt in place of an older one."""
        ids = (new_id(), new_id())
        at = self.clock()
        self.dispatch(
            PromptEdited(
                message_id,
                text,
                *ids,
                at,
                figures or {},
            )
        )

    def stop(self) -> None:
        """Stop the reply and keep what came."""
        self.dispatch(ReplyStopped(self.clock()))

    def new_chat(self, is_temporary: bool = False) -> None:
        """Start an empty chat, with the present model."""
        if self.history is None or self.history.read_only is not None:
            is_temporary = True
        self.drop_rival()
        self.sessions.leave_present()
        chat = Chat(new_id(), model=self.session.model)
        self.dispatch(ChatStarted(chat, is_temporary))

    async def open_chat(
        self,
        chat_id: str,
        store: ChatHistory | None = None,
    ) -> None:
        """Show a chat of the history, or one that went on beside this one."""
        is_other = chat_id != self.session.chat.id
        self.sessions.unseen.discard(chat_id)
        if is_other:
            self.drop_rival()
            await self.drain()
        if is_other and self.sessions.bring_back(chat_id):
            back = self.session
            event = ChatOpened(
                back.chat, back.messages, back.siblings, back.is_temporary
            )
            self._on_change(back, event)
            return
        store = store or self.store_of(chat_id)

        def read() -> tuple[Chat | None, list[ChatMessage], dict[str, tuple[int, int]]]:
            return store.chat(chat_id), store.thread(chat_id), store.siblings(chat_id)

        chat, messages, siblings = await self.in_thread(read)
        if chat is None:
            raise HistoryError("this chat is no longer in the history")
        if is_other:
            self.sessions.leave_present()
        self.dispatch(ChatOpened(chat, tuple(messages), siblings, store is self.memory))

    async def switch_sibling(
        self,
        message_id: str,
        step: int,
    ) -> str:
        """Show another version of a message; returns that version's id."""
        store = self.store
        sibling = await self.in_thread(store.switch_sibling, message_id, step)
        await self.open_chat(self.session.chat.id, store)
        return sibling

    async def delete_message(self, message_id: str) -> None:
        """Forget a message and what follows it; `undo` brings it back."""
        store = self.store
        deleted = await self.in_thread(store.delete_message, message_id)
        if deleted is not None:
            self._deleted.append((store, deleted))
        await self.open_chat(self.session.chat.id, store)

    async def undo(self) -> bool:
        """Bring back what was deleted last; False where there is nothing.

        Each further call brings back what was deleted before that.
        """
        if not self._deleted:
            return False
        store, deleted = self._deleted.pop()
        await self.in_thread(store.restore, deleted)
        await self.open_chat(deleted.chat_id, store)
        return True

    async def earlier_prompts(self, limit: int) -> list[str]:
        """What was typed in all kept chats, newest first."""
        store = self.history or self.memory
        messages = await self.in_thread(store.prompts, limit)
        return [typed_text(message) for message in messages]

    async def branch(self, message_id: str) -> None:
        """Copy the thread up to a message into a chat of its own, and open it."""
        store, chat = self.store, self.session.chat
        copy = Chat(
            new_id(),
            f"{chat.title}{_BRANCH}",
            system=chat.system,
            params=chat.params,
            model=chat.model,
        )

        def write() -> None:
            store.add_chat(copy)
            parents: list[str] = []
            for message in store.path_to(message_id):
                parent = parents[-1] if parents else None
                parents.append(new_id())
                store.add_message(
                    replace(message, id=parents[-1], chat_id=copy.id, parent_id=parent)
                )

        await self.in_thread(write)
        await self.open_chat(copy.id, store)

    async def rename_chat(
        self,
        chat_id: str,
        title: str,
    ) -> None:
        """Give a chat another title, the present one or another."""
        if chat_id == self.session.chat.id:
            self.dispatch(ChatChanged({"title": title}))
            await self.drain()
            return
        store = self.history or self.memory
        await self.in_thread(lambda: store.set_chat(chat_id, title=title))

    async def delete_chat(self, chat_id: str) -> None:
        """Forget a chat; if it is the present one, start a new one."""
        is_present = chat_id == self.session.chat.id
        session = self.sessions.find(chat_id)
        if session is not None and session.live is not None:
            self._reduce(session, ReplyStopped(self.clock()))
            await self.drain()
        self.sessions.unseen.discard(chat_id)
        store = self.store_of(chat_id)
        deleted = await self.in_thread(store.delete_chat, chat_id)
        if deleted is not None:
            self._deleted.append((store, deleted))
        if is_present:
            self.new_chat()
