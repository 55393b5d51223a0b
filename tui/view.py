"""How the chat is shown: the thread, the status line, the welcome, the sidebar."""

from __future__ import annotations

from textual import work
from textual.content import Content
from textual.widgets import Static

from rvllm_local.tui.actions import ActionsApp
from rvllm_local.tui.driver import Driver
from rvllm_local.tui.effects import Effect, KeepDraft, Notify, ReturnPrompt
from rvllm_local.tui.events import (
    Change,
    ChatOpened,
    ChatStarted,
    ClockTicked,
    EngineSeen,
    Event,
    OtherChatChanged,
    ReplyBegan,
    ReplyFailed,
    ReplyFinished,
    ReplyGrew,
    UsageReceived,
)
from rvllm_local.tui.launcher import ServerLauncher
from rvllm_local.tui.message_keys import message_keys
from rvllm_local.tui.notices import attempt, tell
from rvllm_local.tui.options import ChatOptions
from rvllm_local.tui.personas import persona_name
from rvllm_local.tui.state import ChatSession, ConnectionState
from rvllm_local.tui.status import others_text, queue_text, status_content
from rvllm_local.tui.widgets.kept_lines import KeptStatic
from rvllm_local.tui.widgets.sidebar import SHOWN

PANEL_WIDTH, SIDEBAR_WIDTH = 41, 34
STATUS_S = 0.5  # between two states of the status line while a reply grows
NARROW = 66  # cells of the chat's column
_SHOWN_APART = (ReplyBegan, ReplyGrew, UsageReceived, ClockTicked, EngineSeen)
_LAST = 8  # characters that show whether the end of a reason is seen
_ENDS = (ReplyFinished, ReplyFailed)


class ChatView(ActionsApp):
    """Shows the state of the chats. Only what an event can have changed is touched."""

    def __init__(
        self,
        options: ChatOptions,
        launcher: ServerLauncher,
        driver: Driver,
    ) -> None:
        super().__init__(options, launcher, driver)
        self._status = KeptStatic("", id="status", markup=False)
        self._queue = Static("", id="queue", markup=False)
        self._below = Static("", id="below", markup=False)
        self._status_shown = Content("")
        self._growth_shown_at = 0.0
        self._told_reason = ""  # why there is no server
        self._draft_of, self._was_temporary = "new", options.is_temporary

    @property
    def draft_name(self) -> str:
        """Under which name the present chat's draft is kept."""
        session = self.driver.session
        return session.chat.id if session.is_kept else "new"

    def show_change(
        self,
        session: ChatSession,
        event: Change,
    ) -> None:
        """Show the new state."""
        if not self.is_running:
            return
        if isinstance(event, ChatOpened | ChatStarted):
            self._change_draft(session)
        elif self._draft_of != self.draft_name:  # its first prompt was sent
            self.drafts.put(self._draft_of, "")
            self._draft_of = self.draft_name
        self._tell_end(session, event)
        if isinstance(event, OtherChatChanged):
            if not isinstance(event.event, _SHOWN_APART):
                self._show_status()
                self.show_sidebar()
            return
        self._show_present(session, event)

    def _show_present(
        self,
        session: ChatSession,
        event: Event,
    ) -> None:
        if not isinstance(event, _SHOWN_APART):
            self._show_thread(session)
            self.show_sidebar()
        elif isinstance(event, EngineSeen) and self.panel.display:
            self.show_engine()
        if isinstance(event, ReplyGrew):
            self._show_live()
            self._show_growth(event)
        elif not isinstance(event, ClockTicked):
            self._show_status()

    def _show_growth(self, event: ReplyGrew) -> None:
        """Bring the status line up to date: at a reply's first words, then twice a second.

        Its figures change with each word, and are read by nobody that often.
        """
        is_due = not 0.0 <= event.at - self._growth_shown_at < STATUS_S
        live = self.driver.session.live
        is_first = live is not None and live.first_at == event.at
        if is_due or is_first:
            self._growth_shown_at = event.at
            self._show_status()

    def _tell_end(
        self,
        session: ChatSession,
        event: Change,
    ) -> None:
        """Draw and announce a reply that has ended, in whatever chat."""
        title, is_present = session.chat.title, True
        if isinstance(event, OtherChatChanged):
            title, is_present = event.chat.title, False
            event = event.event
        if not isinstance(event, _ENDS):
            return
        if is_present:
            self.panel.note(session.stats)
        is_looked_at = is_present and self.app_focus
        self.announcer.reply_ended(event.reply_id, event.at, title, is_looked_at)

    def _change_draft(self, session: ChatSession) -> None:
        """Each chat has its own draft; the one before is put aside."""
        name = self.draft_name
        if name == self._draft_of:
            return
        self.composer.leave_editing()
        if not self._was_temporary:
            self.drafts.put(self._draft_of, self.composer.draft)
        self.composer.take()
        self._draft_of, self._was_temporary = name, session.is_temporary
        if not session.is_temporary:
            self.composer.load_draft(self.drafts.get(name))

    def _show_thread(self, session: ChatSession) -> None:
        with self.batch_update():
            reply_id = session.live.reply_id if session.live is not None else ""
            if self.transcript.live_id != reply_id:
                self.transcript.end_reply()
            self.transcript.show_messages(session.messages, session.siblings)
            if reply_id and self.transcript.live is None:
                self.transcript.begin_reply(reply_id)
                self.transcript.follow()
                self._show_live()
        waiting = queue_text(session)
        self._queue.display = bool(waiting.plain)
        self._queue.update(waiting)
        if not session.messages:
            self.show_welcome()
        self._show_below()

    def _show_live(self) -> None:
        live, widget = self.driver.session.live, self.transcript.live
        if live is not None and widget is not None:
            widget.tell(live, self.driver.clock())
        self._show_below()

    def _show_below(self) -> None:
        """Say what keys do with the selected message, or that there is more below."""
        text = self._selected_keys() or self._lines_below()
        self._below.display = bool(text)
        if text:
            self._below.update(text, layout=False)

    def _selected_keys(self) -> str:
        """What can be done with the message that is selected, if one is."""
        transcript = self.transcript
        message = transcript.target
        is_finding = self.find_bar.display  # keys go into its field then
        if transcript.selected is None or message is None or is_finding:
            return ""
        return message_keys(
            message,
            transcript.num_versions(message),
            self.options.settings.keys,
            self._line_width,
        )

    def _lines_below(self) -> str:
        count = self.transcript.lines_below
        if not count:
            return ""
        return f"↓ {count} new line{'s' if count > 1 else ''} below · Ctrl+End"

    def on_transcript_selected(self) -> None:
        """Say what keys do with the message."""
        self._show_below()

    def show_effect(self, effect: Effect) -> None:
        """Tell the person, or bring a prompt back."""
        if isinstance(effect, Notify):
            tell(self, effect.text, effect.severity)
        elif isinstance(effect, ReturnPrompt):
            self.composer.put(effect.text)
        elif isinstance(effect, KeepDraft):
            draft = self.drafts.get(effect.chat_id)
            texts = [text for text in (effect.text, draft) if text]
            self.drafts.put(effect.chat_id, "\n\n".join(texts))

    def show_state(self) -> None:
        """Show the status line and the welcome anew."""
        self._show_status()
        self.show_welcome()

    @property
    def _line_width(self) -> int:
        """Cells for a line of text in the chat's column."""
        width = self.size.width - 4
        if self.panel.display:
            width -= PANEL_WIDTH
        if self.sidebar.is_on_screen:
            width -= SIDEBAR_WIDTH
        return max(10, width)

    def _show_status(self) -> None:
        session = self.driver.session
        line = status_content(
            session,
            self._line_width,
            self.composer.whole_text,
            self.connection.download,
            persona_name(session.chat, self.presets),
            self._others(),
        )
        if not line.is_same(self._status_shown):
            self._status_shown = line
            self._status.update(line, layout=False)
        self._tell_cut_reason(session, line.plain)
        self.composer.be_narrow(self._line_width < NARROW)
        # Each blink would draw as much as a word does.
        self.composer.cursor_blink = not self.driver.is_writing
        self.announcer.set_title(session.chat.title, self.driver.is_writing)

    def _tell_cut_reason(
        self,
        session: ChatSession,
        line: str,
    ) -> None:
        """Tell once why there is no server, where the status line is too short for it.

        An empty chat shows all of it.
        """
        reason = session.connection_text
        is_lost = session.connection is ConnectionState.LOST and session.messages
        if is_lost and reason[-_LAST:] not in line and reason != self._told_reason:
            self._told_reason = reason
            tell(self, reason, "error")

    def _others(self) -> str:
        """What goes on beside this chat."""
        sessions = self.driver.sessions
        text = others_text(len(sessions.writing()), len(sessions.unseen))
        paused = self.connection.paused
        if paused is None:
            return text
        return f"{text}  paused: {paused.id}".strip()

    def show_sidebar(self) -> None:
        """Bring the list at the side up to date, where it is shown."""
        if self.sidebar.is_on_screen:
            self._fill_sidebar()

    @work(exclusive=True, group="sidebar")
    async def _fill_sidebar(self) -> None:
        driver = self.driver
        history = driver.history
        if history is None:
            return
        await driver.drain()
        chats = await attempt(self, driver.in_thread(history.chats, SHOWN))
        marks = dict.fromkeys(driver.sessions.unseen, "✓")
        marks |= dict.fromkeys(driver.sessions.writing(), "●")
        self.sidebar.show(chats or [], self.shelf, marks, driver.session.chat.id)
