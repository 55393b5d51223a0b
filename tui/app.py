"""The terminal chat's app: puts the parts together and shows the session's state.

What a person can do is in `actions` and the widgets; what then happens is decided in
`reducer`.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterable
from typing import Any, ClassVar

from textual import events, work
from textual.app import ComposeResult, SystemCommand
from textual.binding import BindingType
from textual.containers import Horizontal, Vertical
from textual.screen import Screen
from textual.widgets import Footer, Input, Static, TextArea
from textual.worker import WorkerError

from rvllm_local.errors import HistoryError
from rvllm_local.history import ChatHistory
from rvllm_local.tui.actions import ActionsApp
from rvllm_local.tui.commands import COMMANDS
from rvllm_local.tui.driver import Driver
from rvllm_local.tui.effects import Effect, Notify, ReturnPrompt
from rvllm_local.tui.events import (
    ChatChanged,
    ChatOpened,
    ChatStarted,
    ClockTicked,
    EngineSeen,
    Event,
    ReplyGrew,
    UsageReceived,
)
from rvllm_local.tui.keymap import bindings, check_keymap
from rvllm_local.tui.launcher import ServerLauncher
from rvllm_local.tui.notices import attempt, copy_text, tell
from rvllm_local.tui.options import ChatOptions
from rvllm_local.tui.render import render_markdown
from rvllm_local.tui.state import ChatSession, ConnectionState, EngineView
from rvllm_local.tui.status import queue_text, status_content
from rvllm_local.tui.themes import (
    CHOICES,
    DEFAULT_THEME,
    TERMINAL_VARIABLES,
    make_themes,
)
from rvllm_local.tui.widgets.composer import Composer
from rvllm_local.tui.widgets.transcript import Transcript
from rvllm_local.tui.widgets.welcome import welcome_content

POLL_S = 0.5
DRAFTS_S = 2.0  # how often a draft that changed is written
INTERRUPT_S = 2.0  # within this a second Ctrl+C quits
NARROW, SHORT, WIDE = 70, 16, 150  # columns and rows where the layout changes
_SHOWN_APART = (ReplyGrew, UsageReceived, ClockTicked, EngineSeen)


class ChatApp(ActionsApp):
    """The chat. The server is looked for once the first frame is painted."""

    CSS_PATH = "app.tcss"
    TITLE = "rvllm chat"
    ENABLE_COMMAND_PALETTE = True
    COMMAND_PALETTE_BINDING = "f24"  # the palette's own binding is in the registry
    BINDINGS: ClassVar[list[BindingType]] = bindings("app")
    ESCAPE_TO_MINIMIZE = False

    def __init__(
        self,
        options: ChatOptions,
        launcher: ServerLauncher,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(options, launcher, Driver(self._changed, self._effect, clock))
        self._keymap = check_keymap(options.settings.keys)
        self._status = Static("", id="status", markup=False)
        self._queue = Static("", id="queue", markup=False)
        self._last_interrupt = -1e9
        self._is_ending = False
        self._draft_of, self._was_temporary = "new", options.is_temporary
        for theme in make_themes():
            self.register_theme(theme)
        name = options.theme or options.settings.theme or DEFAULT_THEME
        self.theme = CHOICES.get(name, DEFAULT_THEME)

    def get_theme_variable_defaults(self) -> dict[str, str]:
        """Colours that Textual's own themes do not name."""
        return TERMINAL_VARIABLES

    def compose(self) -> ComposeResult:
        with Horizontal(id="main"):
            with Vertical(id="column"):
                yield self.transcript
                yield self.find_bar
                yield self.popup
                yield self._queue
                yield self._status
                yield self.composer
            yield self.panel
        yield Footer(show_command_palette=False)

    # Beginning and end

    def on_mount(self) -> None:
        """Paint first; everything that takes time comes after."""
        self.set_keymap(self._keymap)
        self.composer.focus()
        self._show_welcome()
        self._show_status()
        self.call_after_refresh(self._begin)

    @work
    async def _begin(self) -> None:
        self.driver.start()
        await self._open_history()
        self.set_interval(POLL_S, self._tick)
        self.set_interval(DRAFTS_S, self.keep_drafts)
        self.keep_connection()
        await asyncio.sleep(0)
        render_markdown("`x`")  # loads the parser, so that no first word waits for it

    async def _open_history(self) -> None:
        options, driver = self.options, self.driver
        try:
            if options.history is not None:
                driver.history = await driver.in_thread(ChatHistory, options.history)
                await self._read_settings(driver.history)
        except HistoryError as error:
            tell(self, f"{error}. Chats are not kept this time.", "error")
        history = driver.history
        if history is not None and history.read_only:
            reason = "it is opened read-only and new chats are not kept"
            tell(self, f"{history.read_only}; {reason}", "warning")
        driver.new_chat(options.is_temporary)
        if not self.composer.text:
            self.composer.load_draft(self.drafts.get(self.draft_name))
        values: dict[str, Any] = {}
        if options.system:
            values["system"] = options.system
        if options.params:
            values["params"] = dict(options.params)
        if values:
            driver.dispatch(ChatChanged(values))
        if options.resume and history is not None:
            await self._resume(history, options.resume)
        if options.prompt:
            driver.submit(options.prompt)

    async def _resume(self, history: ChatHistory, chat_id: str) -> None:
        if chat_id == "last":
            chats = history.chats(1)
            if not chats:
                return
            chat_id = chats[0].id
        await attempt(self, self.driver.open_chat(chat_id))

    async def _read_settings(self, history: ChatHistory) -> None:
        driver = self.driver
        theme = await driver.in_thread(history.setting, "theme")
        is_chosen = self.options.theme or self.options.settings.theme
        if not is_chosen and theme in CHOICES:
            self.theme = CHOICES[theme]
        kept = await driver.in_thread(history.setting, "presets", {})
        if isinstance(kept, dict):
            self.presets = {**kept, **self.presets}
        self.drafts.load(await driver.in_thread(history.setting, "drafts", {}))

    async def action_copy_or_quit(self, _argument: str = "") -> None:
        """Copy a selection, else stop the reply, else quit when pressed twice."""
        marked = getattr(self.focused, "selected_text", "")
        selected = self.screen.get_selected_text() or marked
        if selected:
            copy_text(self, selected)
            self.screen.clear_selection()
        elif self.driver.session.live is not None:
            self.driver.stop()
        elif self.driver.clock() - self._last_interrupt < INTERRUPT_S:
            await self.action_app_quit()
        else:
            self._last_interrupt = self.driver.clock()
            tell(self, "press Ctrl+C again to quit")

    async def action_app_quit(self, _argument: str = "") -> None:
        """Quit; a server that was there before stays."""
        await self.shut()
        self.exit(0)

    async def shut(self) -> None:
        """Write what there is, and let go of the server."""
        self._is_ending = True
        for group in ("connect", "switch", "look"):
            for worker in self.workers.cancel_group(self, group):
                with contextlib.suppress(WorkerError):
                    await worker.wait()
        await self.keep_drafts()
        await self.driver.close()
        await self.server.stop()

    async def keep_drafts(self) -> None:
        """Write what is being written, where it changed."""
        session = self.driver.session
        waiting = [prompt.typed for prompt in session.queue]
        texts = [*waiting, self.composer.draft]
        text = "\n\n".join(text for text in texts if text.strip())
        if not session.is_temporary:
            self.drafts.put(self._draft_of, text)
        history = self.driver.history
        if self.drafts.is_changed and history is not None and not history.read_only:
            changes = self.drafts.take_changes()
            writing = self.driver.in_thread(history.set_setting, "drafts", changes)
            await attempt(self, writing)

    @property
    def draft_name(self) -> str:
        """Under which name the present chat's draft is kept."""
        session = self.driver.session
        return session.chat.id if session.is_kept else "new"

    # What the session tells

    async def _tick(self) -> None:
        """Twice a second: write what is due, and look at the engine if anybody does."""
        if self._is_ending:
            return
        driver = self.driver
        driver.dispatch(ClockTicked(driver.clock()))
        session = driver.session
        self._show_live()
        if self.connection.download:
            self._show_status()
        is_waiting = session.live is not None and session.live.first_at is None
        is_ready = session.connection is ConnectionState.READY
        is_first = session.engine is None and is_ready
        is_looked_at = is_waiting or self.panel.display
        if driver.endpoint is not None and (is_first or is_looked_at):
            self._look()

    @work(exclusive=True, group="look")
    async def _look(self) -> None:
        endpoint = self.driver.endpoint
        if endpoint is None:
            return
        view = await endpoint.engine(self.driver.session.model)
        self.driver.dispatch(EngineSeen(view or EngineView()))

    def _changed(self, session: ChatSession, event: Event) -> None:
        """Show the new state. Only what the event can have changed is touched."""
        if not self.is_running:
            return
        if isinstance(event, ChatOpened | ChatStarted):
            self._change_draft(session)
        elif self._draft_of != self.draft_name:  # its first prompt was sent
            self.drafts.put(self._draft_of, "")
            self._draft_of = self.draft_name
        if not isinstance(event, _SHOWN_APART):
            self._show_thread(session)
        elif isinstance(event, EngineSeen) and self.panel.display:
            self.panel.show(event.view if event.view.block_map else None)
        if isinstance(event, ReplyGrew):
            self._show_live()
        if not isinstance(event, ClockTicked):
            self._show_status()

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
            if session.live is None:
                self.transcript.end_reply()
            self.transcript.show_messages(session.messages, session.siblings)
            if session.live is not None and self.transcript.live is None:
                self.transcript.begin_reply()
                self.transcript.follow()
                self._show_live()
        waiting = queue_text(session)
        self._queue.display = bool(waiting.plain)
        self._queue.update(waiting)
        if not session.messages:
            self._show_welcome()

    def _show_live(self) -> None:
        live, widget = self.driver.session.live, self.transcript.live
        if live is not None and widget is not None:
            widget.tell(live, self.driver.clock())

    def _effect(self, effect: Effect) -> None:
        if isinstance(effect, Notify):
            tell(self, effect.text, effect.severity)
        elif isinstance(effect, ReturnPrompt):
            self.composer.put(effect.text)

    def _show_status(self) -> None:
        session = self.driver.session
        panel_width = 41 if self.panel.display else 0
        width = max(10, self.size.width - 4 - panel_width)
        draft = self.composer.text
        download = self.connection.download
        line = status_content(session, width, draft, download)
        self._status.update(line, layout=False)

    def _show_welcome(self) -> None:
        self.transcript.welcome(welcome_content(self.driver.session))

    # What the terminal tells

    def on_resize(self, event: events.Resize) -> None:
        """Choose the layout for the size."""
        screen = self.screen_stack[0]
        screen.set_class(event.size.width < NARROW, "narrow")
        screen.set_class(event.size.width >= WIDE, "wide")
        screen.set_class(event.size.height < SHORT, "short")
        self.call_after_refresh(self._show_status)

    def on_key(self, event: events.Key) -> None:
        """What is typed anywhere is written into the composer, unless a key acts."""
        is_elsewhere = not isinstance(self.focused, Input | TextArea)
        if len(self.screen_stack) > 1 or not event.is_printable or not is_elsewhere:
            return
        binding = self.screen.active_bindings.get(event.key)
        if event.character and (binding is None or not binding.enabled):
            event.prevent_default()
            self.transcript.select(None)
            self.composer.type_text(event.character)

    def on_text_area_changed(self, event: TextArea.Changed) -> None:
        """Offer completions, and count the draft."""
        if event.text_area is self.composer:
            self.composer.show_completions()
            self._show_status()

    def on_composer_refused(self, event: Composer.Refused) -> None:
        """Say that a paste was too large."""
        size = f"{event.size:,} characters are too many to paste"
        tell(self, f"{size}; attach the text as a file with @path", "warning")

    def on_composer_sent(self) -> None:
        """Follow the reply."""
        self.transcript.follow()

    @work(group="command", exclusive=False)
    async def on_composer_command_typed(self, event: Composer.CommandTyped) -> None:
        """Do the slash command."""
        await self.do(event.command.id, event.argument)

    def on_transcript_edit_asked(self, event: Transcript.EditAsked) -> None:
        """Bring the prompt into the composer."""
        self.transcript.select(None)
        self.composer.begin_editing(event.message)

    def on_transcript_left(self) -> None:
        """Go back to writing."""
        self.composer.focus()

    def get_system_commands(self, screen: Screen[Any]) -> Iterable[SystemCommand]:
        """The palette's entries, from the registry."""
        for command in COMMANDS:
            if not command.is_hidden:
                hint = f"{command.slash} {command.argument}".strip()
                yield SystemCommand(command.title, hint, self._runner(command.id))

    def _runner(self, command_id: str) -> Callable[[], Any]:
        """A call that does a command."""
        return lambda: self.run_worker(
            self.do(command_id), group="command", exclusive=False
        )

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """The chat's own keys rest while a dialog is open."""
        always = ("app_quit", "copy_or_quit")
        is_own = any(action == command.action for command in COMMANDS)
        if len(self.screen_stack) > 1 and (is_own or action == "do"):
            return action in always
        return True
