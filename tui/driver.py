"""Holds the chats that are open, and what a person can do with them.

Knows no interface: the app and the plain mode listen to it. Effects are done by
`EffectWorker`, whose events come back here.
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
from rvllm_local.tui.effect_worker import EffectWorker
from rvllm_local.tui.effects import Effect, KeepDraft, Notify, ReturnPrompt, UpdateChat
from rvllm_local.tui.events import (
    Change,
    ChatChanged,
    ChatOpened,
    ChatStarted,
    CompactionAsked,
    ConnectionChanged,
    Event,
    OtherChatChanged,
    PromptEdited,
    PromptSubmitted,
    PromptUnqueued,
    ReplyContinued,
    ReplyRegenerated,
    ReplyStopped,
    SavingFailed,
)
from rvllm_local.tui.payload import typed_text
from rvllm_local.tui.sessions import ChatSessions
from rvllm_local.tui.state import ChatSession, ReplyStats

Listener = Callable[[ChatSession, Change], None]
_BRANCH = " (branch)"
UNDOABLE = 50  # deletions that can be undone, one after the other


class Driver(EffectWorker):
    """`on_change` is called after each event; `on_effect` gets what is for the person.

    That is `Notify`, `ReturnPrompt` and `KeepDraft`.
    """

    def __init__(
        self,
        on_change: Listener,
        on_effect: Callable[[Effect], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(clock)
        self.sessions = ChatSessions(Chat(new_id()))
        self._on_change, self._on_effect = on_change, on_effect
        self._deleted: deque[tuple[ChatHistory, Deleted]] = deque(maxlen=UNDOABLE)

    @property
    def session(self) -> ChatSession:
        """The chat that is shown."""
        return self.sessions.present

    @property
    def is_writing(self) -> bool:
        """Whether a reply is being written in any chat."""
        return any(session.live is not None for session in self.sessions.all())

    @property
    def store(self) -> ChatHistory:
        """Where the present chat is kept."""
        return self.store_of(self.session.chat.id)

    def dispatch(self, event: Event) -> None:
        """Something happened, in the present chat or in one that it names."""
        for session in self.sessions.targets(event):
            is_present = session is self.sessions.present
            self._reduce(session, event)
            if is_present:
                self._on_change(self.session, event)
            else:
                other = OtherChatChanged(session.chat, event)
                self._on_change(self.session, other)

    def _reduce(
        self,
        session: ChatSession,
        event: Event,
    ) -> None:
        effects = self.sessions.reduce(session, event)
        chat_id = session.chat.id
        if isinstance(event, ChatOpened | ChatStarted):
            chat_id = event.chat.id
            self._note_store(event)
        for effect in effects:
            self.add_effect(chat_id, effect)
        self._share_loss(chat_id)

    def _note_store(self, event: ChatOpened | ChatStarted) -> None:
        if event.is_temporary:
            self.in_memory.add(event.chat.id)
        else:
            self.in_memory.discard(event.chat.id)

    def _share_loss(self, chat_id: str) -> None:
        """A server that one chat has lost is lost to all."""
        session = self.sessions.find(chat_id)
        present = self.session
        if session is None or session.connection is present.connection:
            return
        state, text = session.connection, session.connection_text
        self.dispatch(ConnectionChanged(state, text, self.clock()))

    def show(
        self,
        chat_id: str,
        effect: Effect,
    ) -> None:
        """Hand an effect to the person; one of another chat says of which."""
        session = self.sessions.find(chat_id)
        is_present = chat_id == self.session.chat.id
        if isinstance(effect, ReturnPrompt) and not is_present:
            effect = KeepDraft(chat_id, effect.text)
        elif isinstance(effect, Notify) and not is_present and session is not None:
            title = session.chat.title or "another chat"
            effect = replace(effect, text=f"{title}: {effect.text}")
        self._on_effect(effect)

    async def give_up_saving(
        self,
        chat_id: str,
        error: str,
    ) -> None:
        """Move the chat to memory before anything else is done with it."""
        session = self.sessions.find(chat_id)
        if session is None:
            self._on_effect(Notify(error, "error"))
            return
        event = SavingFailed(error)
        effects = self.sessions.reduce(session, event)
        self.in_memory.add(chat_id)
        for effect in effects:
            await self.perform(chat_id, effect)
        self._on_change(self.session, event)

    async def close(self) -> None:
        """Stop the replies, write what there is, and close all but the server."""
        for session in list(self.sessions.all()):
            if session.live is not None:
                self._reduce(session, ReplyStopped(self.clock()))
        await self.end()

    # What a person does

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

    # Two answers side by side

    def compare(self, model: str) -> bool:
        """Have another model answer the last prompt, too; False where it cannot."""
        self.drop_rival()
        present = self.session
        rival = replace(present, live=None, queue=(), model=model, stats=ReplyStats())
        event = ReplyRegenerated(_last_id(present), new_id(), self.clock())
        self.sessions.rival = rival
        self._reduce(rival, event)
        rival = self.sessions.rival
        if rival is None or rival.live is None:
            self.sessions.rival = None
            return False
        return True

    def take_rival(self) -> None:
        """Go on with the other answer; the present one stays as a version."""
        rival, present = self.sessions.rival, self.session
        if rival is None:
            return
        if present.live is not None:
            self._reduce(present, ReplyStopped(self.clock()))
        self.sessions.rival = None
        self.sessions.present = replace(rival, siblings=self.session.siblings)
        self._keep_head()
        shown = self.session
        self.dispatch(ChatChanged({"model": shown.model}))
        opened = ChatOpened(
            shown.chat, shown.messages, shown.siblings, shown.is_temporary
        )
        self._on_change(shown, opened)

    def drop_rival(self) -> None:
        """Go on with the present answer; the other one stays as a version."""
        rival = self.sessions.rival
        if rival is None:
            return
        if rival.live is not None:
            self._reduce(rival, ReplyStopped(self.clock()))
        self.sessions.rival = None
        self._keep_head()

    def _keep_head(self) -> None:
        """The chat goes on from the answer that is shown, though both are kept."""
        session = self.session
        head_id = _last_id(session)
        if session.live is not None:
            if session.live.saved_at is None:
                return  # its first words will make it the head
            head_id = session.live.reply_id
        chat_id = session.chat.id
        self.add_effect(chat_id, UpdateChat(chat_id, {"head_id": head_id}))


def _last_id(session: ChatSession) -> str:
    """The last message of the thread, or nothing."""
    return session.messages[-1].id if session.messages else ""
