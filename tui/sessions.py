"""The chats that are open at once: the one that is shown, and those that still write.

Plain values and the reducer; knows no history, no network and no interface.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

from rvllm_local.history.types import Chat
from rvllm_local.tui.effects import Effect
from rvllm_local.tui.events import (
    ClockTicked,
    ConnectionChanged,
    EngineSeen,
    Event,
    ModelsListed,
    ReplyBegan,
    ReplyFailed,
    ReplyFinished,
    ReplyGrew,
    UsageReceived,
)
from rvllm_local.tui.reducer import reduce
from rvllm_local.tui.state import ChatSession, LiveReply

# Events of one reply, and events that every chat must hear of.
OF_A_REPLY = (ReplyBegan, ReplyGrew, UsageReceived, ReplyFinished, ReplyFailed)
_OF_THE_SERVER = (ClockTicked, ConnectionChanged, ModelsListed, EngineSeen)


class ChatSessions:
    """`present` is shown; `aside` are other chats with a reply or a prompt under way.

    `rival` answers the present chat's last prompt a second time, to be compared.
    `unseen` are chats whose reply ended while another chat was shown.
    """

    def __init__(self, chat: Chat) -> None:
        self.present = ChatSession(chat)
        self.aside: dict[str, ChatSession] = {}
        self.rival: ChatSession | None = None
        self.unseen: set[str] = set()

    def all(self) -> Iterator[ChatSession]:
        """Every session, the present one first."""
        yield self.present
        yield from self.aside.values()
        if self.rival is not None:
            yield self.rival

    def find(self, chat_id: str) -> ChatSession | None:
        """The session of a chat, if it is open."""
        for session in self.all():
            if session.chat.id == chat_id:
                return session
        return None

    def writing(self) -> Mapping[str, LiveReply]:
        """The replies that are being written in other chats, by chat."""
        replies = {}
        for chat_id, session in self.aside.items():
            if session.live is not None:
                replies[chat_id] = session.live
        return replies

    # Events

    def targets(self, event: Event) -> list[ChatSession]:
        """The sessions that an event concerns."""
        if isinstance(event, _OF_THE_SERVER):
            return list(self.all())
        if isinstance(event, OF_A_REPLY):
            for session in self.all():
                if session.live is not None and session.live.reply_id == event.reply_id:
                    return [session]
        return [self.present]

    def reduce(
        self,
        session: ChatSession,
        event: Event,
    ) -> tuple[Effect, ...]:
        """Bring one of the sessions to its next state; returns the effects."""
        state, effects = reduce(session, event)
        self.put(session, state)
        return effects

    def put(
        self,
        session: ChatSession,
        state: ChatSession,
    ) -> None:
        """Put a new state in the place of a session."""
        if session is self.present:
            self.present = state
        elif session is self.rival:
            self.rival = state
        elif state.live is None and not state.queue:
            self.aside.pop(session.chat.id, None)
            self.unseen.add(session.chat.id)
        else:
            self.aside[session.chat.id] = state

    # Which is shown

    def leave_present(self) -> None:
        """Make room for another chat; what is under way here goes on beside it."""
        session = self.present
        if session.live is not None or session.queue:
            self.aside[session.chat.id] = session
        self.present = replace(session, live=None, queue=())

    def bring_back(self, chat_id: str) -> bool:
        """Show a chat that went on beside the present one; False if none did."""
        session = self.aside.get(chat_id)
        if session is None:
            return False
        self.leave_present()
        del self.aside[chat_id]
        present = self.present
        self.present = replace(
            session,
            connection=present.connection,
            connection_text=present.connection_text,
            models=present.models,
            engine=present.engine,
        )
        return True
