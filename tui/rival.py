"""Two answers to one prompt: the present chat's and its rival's."""

from __future__ import annotations

from dataclasses import replace

from rvllm_local.history.types import new_id
from rvllm_local.tui.dispatcher import Dispatcher
from rvllm_local.tui.effects import UpdateChat
from rvllm_local.tui.events import (
    ChatChanged,
    ChatOpened,
    ReplyRegenerated,
    ReplyStopped,
)
from rvllm_local.tui.state import ChatSession, ReplyStats


class RivalDriver(Dispatcher):
    """Has a rival answer, and goes on with one of the two."""

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
            shown.chat,
            shown.messages,
            shown.siblings,
            shown.is_temporary,
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
