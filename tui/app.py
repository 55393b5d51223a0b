"""The terminal chat's app: puts the widgets together, shows the session's state and starts the driver.

What a person can do is in `actions`; what then happens is decided in `session`.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

from textual import events, work
from textual.app import App, SystemCommand
from textual.containers import Horizontal, Vertical
from textual.content import Content
from textual.screen import Screen
from textual.widgets import Footer, Input, Static, TextArea

from rvllm_local.errors import EndpointError, HistoryError
from rvllm_local.history import ChatHistory
from rvllm_local.tui.chat_actions import ChatActions
from rvllm_local.tui.commands import COMMANDS
from rvllm_local.tui.complete import completions
from rvllm_local.tui.driver import Driver
from rvllm_local.tui.effects import Effect, Notify, ReturnPrompt
from rvllm_local.tui.events import (
    ChatChanged,
    ClockTicked,
    ConnectionChanged,
    EngineSeen,
    Event,
    ModelsListed,
    ReplyGrew,
    UsageReceived,
)
from rvllm_local.tui.keymap import bindings, check_keymap
from rvllm_local.tui.options import ChatOptions
from rvllm_local.tui.render import render_markdown
from rvllm_local.tui.sanitise import clean_line
from rvllm_local.tui.state import ChatSession, ConnectionState, EngineView
from rvllm_local.tui.status import status_text
from rvllm_local.tui.themes import THEMES
from rvllm_local.tui.themes_names import CHOICES, DEFAULT_THEME
from rvllm_local.tui.widgets.composer import Composer
from rvllm_local.tui.widgets.engine_panel import EnginePanel
from rvllm_local.tui.widgets.transcript import Transcript

POLL_S = 0.5
NARROW, SHORT = 70, 16  # columns and rows below which the layout is reduced


class ChatApp(ChatActions, App[int]):
    """The chat. `connect` is called once the first frame is painted and brings the server."""

    CSS_PATH = "app.tcss"
    TITLE = "rvllm chat"
    ENABLE_COMMAND_PALETTE = True
    COMMAND_PALETTE_BINDING = "f24"  # the palette's own binding is in the registry
    BINDINGS: ClassVar[list[Any]] = bindings("app")
    ESCAPE_TO_MINIMIZE = False

    def __init__(
        self,
        options: ChatOptions,
        server: Any,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__()
        self.options, self.server = options, server
        self.keymap = check_keymap(options.settings.keys)
        self.driver = Driver(self._changed, self._effect, clock)
        self.presets: dict[str, Mapping[str, Any]] = dict(options.settings.presets)
        self.editing: str | None = (
            None  # the message whose replacement is in the composer
        )
        self.last_interrupt = -1e9
        self.transcript, self.composer, self.panel = (
            Transcript(),
            Composer(),
            EnginePanel(),
        )
        self._status = Static("", id="status", markup=False)
        self._hints = Static("", id="hints", markup=False)
        for theme in THEMES:
            self.register_theme(theme)
        self.theme = CHOICES.get(
            options.theme or options.settings.theme or DEFAULT_THEME, DEFAULT_THEME
        )

    def compose(self) -> Any:
        with Horizontal(id="main"):
            with Vertical(id="column"):
                yield self.transcript
                yield Input(
                    placeholder="find: Enter for the next, Esc closes", id="find"
                )
                yield self._hints
                yield self._status
                yield self.composer
            yield self.panel
        yield Footer(show_command_palette=False)

    def on_mount(self) -> None:
        """Paint first; everything that takes time comes after."""
        self.set_keymap(self.keymap)
        self.composer.focus()
        self._show_welcome()
        self._show_status()
        self.call_after_refresh(self._begin)

    @work
    async def _begin(self) -> None:
        self.driver.start()
        await self._open_history()
        self.set_interval(POLL_S, self._tick)
        self.connect()
        await asyncio.sleep(0)
        render_markdown(
            "`x`"
        )  # loads the parser, so that the first word does not wait for it

    async def _open_history(self) -> None:
        options, driver = self.options, self.driver
        try:
            if options.history is not None:
                driver.history = await driver.in_thread(ChatHistory, options.history)
                await self._read_settings(driver.history)
        except HistoryError as error:
            self.tell(f"{error}. Chats are not kept this time.", "error")
        if driver.history is not None and driver.history.read_only:
            self.tell(
                f"{driver.history.read_only}; it is opened read-only and new chats are not kept",
                "warning",
            )
        driver.new_chat(options.is_temporary)
        if options.system:
            driver.dispatch(ChatChanged({"system": options.system}))
        if options.resume and driver.history is not None:
            with contextlib.suppress(IndexError):
                chat_id = (
                    driver.history.chats(1)[0].id
                    if options.resume == "last"
                    else options.resume
                )
                await self.attempt(driver.open_chat(chat_id))

    async def _read_settings(self, history: ChatHistory) -> None:
        theme = await self.driver.in_thread(history.setting, "theme")
        if not (self.options.theme or self.options.settings.theme) and theme in CHOICES:
            self.theme = CHOICES[theme]
        kept = await self.driver.in_thread(history.setting, "presets", {})
        self.presets = (
            {**kept, **self.presets} if isinstance(kept, dict) else self.presets
        )

    @work(exclusive=True, group="connect")
    async def connect(self) -> None:
        """Find or start the server, and ask for its models."""
        await self._attach_server(self.server.connect(self._loading))

    async def _attach_server(self, connecting: Any) -> None:
        self.driver.dispatch(
            ConnectionChanged(ConnectionState.CONNECTING, "looking for a server")
        )
        try:
            old, self.driver.endpoint = self.driver.endpoint, None
            if old is not None:
                await old.close()
            self.driver.endpoint = await connecting
            models = await self.driver.endpoint.models()
        except (EndpointError, OSError) as error:
            self.driver.dispatch(
                ConnectionChanged(ConnectionState.LOST, clean_line(error))
            )
            self.tell(
                f"{error}. Start one with rvllm serve, or name one with --endpoint; /retry tries again.",
                "error",
            )
            return
        self.driver.dispatch(ModelsListed(models))
        if self.options.model and any(one.id == self.options.model for one in models):
            self.driver.dispatch(ChatChanged({"model": self.options.model}))
        self.driver.dispatch(ConnectionChanged(ConnectionState.READY))
        self._look()

    def _loading(self, text: str) -> None:
        self.driver.dispatch(
            ConnectionChanged(ConnectionState.LOADING, clean_line(text))
        )

    async def _tick(self) -> None:
        """Twice a second: write what is due, and look at the engine while somebody is looking."""
        driver = self.driver
        driver.dispatch(ClockTicked(driver.clock()))
        live = driver.session.live
        self._show_live()
        is_waiting = live is not None and live.first_at is None
        if driver.endpoint is not None and (
            is_waiting or self.panel.display or driver.session.engine is None
        ):
            if (
                driver.session.engine is None
                and driver.session.connection is not ConnectionState.READY
            ):
                return
            self._look()

    @work(exclusive=True, group="look")
    async def _look(self) -> None:
        endpoint = self.driver.endpoint
        view = (
            await endpoint.engine(self.driver.session.model)
            if endpoint is not None
            else None
        )
        self.driver.dispatch(EngineSeen(view or EngineView()))

    # What the session tells

    def _changed(self, session: ChatSession, event: Event) -> None:
        """Show the new state. Only what the event can have changed is touched."""
        if not self.is_running:
            return
        if isinstance(event, ReplyGrew | UsageReceived | ClockTicked | EngineSeen):
            if isinstance(event, EngineSeen) and self.panel.display:
                self.panel.show(event.view if event.view.block_map else None)
        else:
            self._show_thread(session)
        if isinstance(event, ReplyGrew):
            self._show_live()
        if not isinstance(event, ClockTicked):
            self._show_status()

    def _show_thread(self, session: ChatSession) -> None:
        with self.batch_update():
            if session.live is None:
                self.transcript.end_reply()
            self.transcript.show_messages(session.messages, session.siblings)
            if session.live is not None and self.transcript.live is None:
                self.transcript.begin_reply()
                self.transcript.follow()
                self._show_live()
        if not session.messages:
            self._show_welcome()

    def _show_live(self) -> None:
        live, widget = self.driver.session.live, self.transcript.live
        if live is not None and widget is not None:
            widget.tell(live, self.driver.clock())

    def _effect(self, effect: Effect) -> None:
        if isinstance(effect, Notify):
            self.tell(effect.text, effect.severity)
        elif isinstance(effect, ReturnPrompt):
            self.composer.put(effect.text)

    def tell(self, text: str, severity: Any = "information") -> None:
        """Tell the person something; the text is never parsed."""
        self.notify(clean_line(text, 400), severity=severity, markup=False, timeout=8)

    def _show_status(self) -> None:
        session = self.driver.session
        width = max(10, self.size.width - 4 - (41 if self.panel.display else 0))
        self._status.update(Content(status_text(session, width)), layout=False)

    def _show_welcome(self) -> None:
        session = self.driver.session
        lines = [Content.styled("rvllm", "bold $primary")]
        if session.is_temporary:
            lines.append(Content("This chat is not kept."))
        if session.chat.system:
            lines.append(
                Content(f"System prompt: {clean_line(session.chat.system, 120)}")
            )
        lines.append(
            Content(
                "Ctrl+S opens earlier chats, Ctrl+L chooses a model, F1 shows everything else."
            )
        )
        self.transcript.welcome(Content("\n").join(lines))

    # What the terminal tells

    def on_resize(self, event: events.Resize) -> None:
        self.screen_stack[0].set_class(event.size.width < NARROW, "narrow")
        self.screen_stack[0].set_class(event.size.height < SHORT, "short")
        self._show_status()

    def on_text_area_changed(self, event: TextArea.Changed) -> None:
        if event.text_area is not self.composer:
            return
        found = completions(self.composer.before_cursor, Path.cwd())
        lines = [
            Content.assemble((one.name.ljust(22), "bold"), one.note) for one in found
        ]
        self._hints.update(Content("\n").join(lines))
        self._hints.display = bool(found)

    def on_composer_refused(self, event: Composer.Refused) -> None:
        self.tell(
            f"{event.size:,} characters are too many to paste; attach the text as a file with @path",
            "warning",
        )

    def get_system_commands(self, screen: Screen[Any]) -> Any:
        """The palette's entries, from the registry."""
        for command in COMMANDS:
            if not command.is_hidden:
                hint = f"{command.slash} {command.argument}".strip()
                yield SystemCommand(command.title, hint, self.runner(command.action))

    def runner(self, action: str) -> Callable[[], Any]:
        """A call that runs an action of the app."""
        return lambda: self.run_worker(
            self.run_action(action), group="command", exclusive=False
        )

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """The chat's own keys rest while a dialog is open."""
        is_own = any(action == command.action for command in COMMANDS)
        return not (
            is_own
            and len(self.screen_stack) > 1
            and action not in ("app_quit", "copy_or_quit")
        )

    async def shut(self) -> None:
        """Write what there is and end what was started here."""
        self.workers.cancel_group(self, "connect")
        self.workers.cancel_group(self, "look")
        await self.driver.close()
        await self.server.stop()
