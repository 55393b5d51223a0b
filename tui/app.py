"""The terminal chat's app: puts the parts together and shows the session's state.

What a person can do is in `actions` and the widgets; what then happens is decided in
`reducer`.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, ClassVar

from textual import events, work
from textual.app import ComposeResult, SystemCommand
from textual.binding import BindingType
from textual.screen import Screen
from textual.widgets import Input, TextArea
from textual.worker import WorkerError

from rvllm_local.errors import HistoryError, ParameterError
from rvllm_local.history import ChatHistory
from rvllm_local.tui.commands import COMMANDS
from rvllm_local.tui.drafts import SETTING as DRAFTS
from rvllm_local.tui.drafts import merge_drafts
from rvllm_local.tui.driver import Driver
from rvllm_local.tui.events import ChatChanged, ClockTicked, EngineSeen
from rvllm_local.tui.keymap import bindings, check_keymap
from rvllm_local.tui.launcher import ServerLauncher
from rvllm_local.tui.notices import attempt, copy_text, tell
from rvllm_local.tui.options import ChatOptions
from rvllm_local.tui.prompts import prepare
from rvllm_local.tui.render import render_markdown
from rvllm_local.tui.shelf import SETTING
from rvllm_local.tui.state import ConnectionState, EngineView
from rvllm_local.tui.themes import (
    CHOICES,
    TERMINAL_VARIABLES,
    make_themes,
    textual_theme,
)
from rvllm_local.tui.view import ChatView
from rvllm_local.tui.widgets.composer import Composer
from rvllm_local.tui.widgets.kept_lines import KeptHorizontal, KeptVertical
from rvllm_local.tui.widgets.key_line import KeyLine
from rvllm_local.tui.widgets.sidebar import Sidebar
from rvllm_local.tui.widgets.transcript import Transcript

POLL_S = 0.5
DRAFTS_S = 2.0  # how often a draft that changed is written
INTERRUPT_S = 2.0  # within this a second Ctrl+C quits
NARROW, SHORT, WIDE = 70, 16, 160  # columns and rows where the layout changes


class ChatApp(ChatView):
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
        driver = Driver(self.show_change, self.show_effect, clock)
        super().__init__(options, launcher, driver)
        self._keymap = check_keymap(options.settings.keys)
        self._last_interrupt = -1e9
        self._is_ending = False
        self._told_unsaved = 0  # chats that end with the app, as it was told
        self._is_first_start = False  # whether a model is still to be offered
        for theme in make_themes():
            self.register_theme(theme)
        name = options.theme or options.settings.theme
        name = name or options.default_theme
        self.theme = textual_theme(name, self.no_color)

    def get_theme_variable_defaults(self) -> dict[str, str]:
        """Colours that Textual's own themes do not name."""
        return TERMINAL_VARIABLES

    def compose(self) -> ComposeResult:
        with KeptHorizontal(id="main"):
            yield self.sidebar
            with KeptVertical(id="column"):
                yield self.transcript
                yield self._below
                yield self.find_bar
                yield self.popup
                yield self._queue
                yield self._status
                yield self.composer
            yield self.panel
        yield KeyLine()

    # Beginning and end

    def on_mount(self) -> None:
        """Paint first; everything that takes time comes after."""
        self.set_keymap(self._keymap)
        self.composer.focus()
        self.show_welcome()
        self._show_status()
        self.call_after_refresh(self._begin)

    @work
    async def _begin(self) -> None:
        self.driver.start()
        await self._open_history()
        self.set_interval(POLL_S, self._tick)
        self.set_interval(DRAFTS_S, self._tick_drafts)
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
            await self._ask_first(options.prompt)

    async def _ask_first(self, text: str) -> None:
        """Send the question of the command line, with the files that it names."""
        try:
            prompt = await asyncio.to_thread(prepare, text, {}, Path.cwd())
        except ParameterError as error:
            tell(self, str(error), "error")
            self.composer.put(text)
            return
        self.driver.submit(prompt.text, prompt.figures)

    async def _resume(
        self,
        history: ChatHistory,
        chat_id: str,
    ) -> None:
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
            self.theme = textual_theme(theme, self.no_color)
        kept = await driver.in_thread(history.setting, "presets", {})
        if isinstance(kept, dict):
            self.presets = {**kept, **self.presets}
        self.drafts.load(await driver.in_thread(history.setting, DRAFTS, {}))
        self.shelf.load(await driver.in_thread(history.setting, SETTING, {}))
        self._is_first_start = not await driver.in_thread(history.chats, 1)

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
        """Quit, once it is told what was not saved; a server of others stays."""
        count = len(self.driver.unsaved)
        if count > self._told_unsaved:
            self._told_unsaved = count
            chats = "a chat that" if count == 1 else f"{count} chats that"
            text = f"{chats} could not be saved would end with this; /export keeps one"
            tell(self, f"{text}, quitting again drops it", "warning")
            return
        await self.shut()
        self.exit(0)

    async def shut(self) -> None:
        """Write what there is, and let go of the server."""
        self._is_ending = True
        for group in ("connect", "switch", "look", "best", "sidebar"):
            for worker in self.workers.cancel_group(self, group):
                with contextlib.suppress(WorkerError):
                    await worker.wait()
        await self.keep_drafts()
        await self.driver.close()
        await self.server.stop()
        self.announcer.restore_title()

    async def _tick_drafts(self) -> None:
        if not self._is_ending:  # at the end the history is being closed
            await self.keep_drafts()

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
            await self.change_setting(DRAFTS, lambda kept: merge_drafts(kept, changes))

    # What the session tells

    async def _tick(self) -> None:
        """Twice a second: write what is due, and look at the engine if anybody does."""
        if self._is_ending:
            return
        driver = self.driver
        driver.dispatch(ClockTicked(driver.clock()))
        session = driver.session
        for open_session in driver.sessions.all():
            live = open_session.live
            if live is not None:
                self.announcer.note_start(live.reply_id, live.began)
        self._show_live()
        if self.connection.download:
            self._show_status()
            if not session.messages:
                self.show_welcome()
        is_waiting = session.live is not None and session.live.first_at is None
        is_ready = session.connection is ConnectionState.READY
        if is_ready and self._is_first_start and self.server.is_child:
            self._is_first_start = False
            self.look_for_best()
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

    # What the terminal tells

    def on_resize(self, event: events.Resize) -> None:
        """Choose the layout for the size."""
        screen = self.screen_stack[0]
        screen.set_class(event.size.width < NARROW, "narrow")
        screen.set_class(event.size.width >= WIDE, "wide")
        self.call_after_refresh(self.show_sidebar)
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

    def on_draft_area_refused(self, event: Composer.Refused) -> None:
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

    @work(group="command", exclusive=False)
    async def on_sidebar_opened(self, event: Sidebar.Opened) -> None:
        """Show the chat that was clicked."""
        await attempt(self, self.driver.open_chat(event.chat_id))
        self.transcript.follow()
        self.composer.focus()

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

    def check_action(
        self,
        action: str,
        parameters: tuple[object, ...],
    ) -> bool | None:
        """The chat's own keys rest while a dialog is open."""
        always = ("app_quit", "copy_or_quit")
        is_own = any(action == command.action for command in COMMANDS)
        if len(self.screen_stack) > 1 and (is_own or action == "do"):
            return action in always
        return True
