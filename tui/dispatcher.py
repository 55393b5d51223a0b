"""Hands events to the chats that are open, and what follows to those who do it.

Effects are done by `EffectWorker`; the person's share goes to the listeners.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

from rvllm_local.history import ChatHistory
from rvllm_local.history.types import Chat, new_id
from rvllm_local.tui.effect_worker import EffectWorker
from rvllm_local.tui.effects import Effect, KeepDraft, Notify, ReturnPrompt
from rvllm_local.tui.events import (
    Change,
    ChatOpened,
    ChatStarted,
    ConnectionChanged,
    Event,
    OtherChatChanged,
    ReplyStopped,
    SavingFailed,
)
from rvllm_local.tui.sessions import ChatSessions
from rvllm_local.tui.state import ChatSession

Listener = Callable[[ChatSession, Change], None]


class Dispatcher(EffectWorker):
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
        if not session.is_temporary:
            self.unsaved.add(chat_id)
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
