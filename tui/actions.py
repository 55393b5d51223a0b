"""What a person can do with chats, models and the app as a whole.

What is done while writing is in the composer, what is done with a message in the
transcript. An action takes its command's argument, empty when it came from a key.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from textual import work
from textual.app import App
from textual.widget import Widget

from rvllm_local.errors import ParameterError
from rvllm_local.tui.chat_files import export_chat, import_chats
from rvllm_local.tui.commands import BY_ID
from rvllm_local.tui.connection import ServerConnection
from rvllm_local.tui.drafts import Drafts
from rvllm_local.tui.driver import Driver
from rvllm_local.tui.events import ChatChanged
from rvllm_local.tui.launcher import ServerLauncher
from rvllm_local.tui.notices import attempt, tell
from rvllm_local.tui.options import ChatOptions
from rvllm_local.tui.screens.dialogs import Ask, Choice, Confirm, Pick
from rvllm_local.tui.settings import parse_parameter
from rvllm_local.tui.state import ModelInfo
from rvllm_local.tui.themes import CHOICES
from rvllm_local.tui.widgets.composer import Composer
from rvllm_local.tui.widgets.engine_panel import EnginePanel
from rvllm_local.tui.widgets.find_bar import FindBar
from rvllm_local.tui.widgets.popup import CompletionPopup
from rvllm_local.tui.widgets.transcript import Transcript


class ActionsApp(App[int]):
    """The app's parts and its actions; how they are shown is `ChatApp`'s."""

    def __init__(self, options: ChatOptions, launcher: ServerLauncher, driver: Driver):
        super().__init__()
        self.options, self.server, self.driver = options, launcher, driver
        self.connection = ServerConnection(driver, launcher, options.model)
        self.presets: dict[str, Mapping[str, Any]] = dict(options.settings.presets)
        self.drafts = Drafts()
        self.popup = CompletionPopup()
        self.transcript = Transcript(driver)
        self.composer = Composer(driver, self.popup)
        self.panel = EnginePanel()
        self.find_bar = FindBar(self.transcript)

    # Any command

    async def action_do(self, command_id: str) -> None:
        """Do the command of a key."""
        await self.do(command_id)

    async def do(self, command_id: str, argument: str = "") -> None:
        """Do a command where it belongs."""
        command = BY_ID[command_id]
        homes: dict[str, App[int] | Widget] = {
            "app": self,
            "composer": self.composer,
            "transcript": self.transcript,
        }
        action = getattr(homes[command.home], f"action_{command.action}")
        doing = action(argument) if argument else action()
        if hasattr(doing, "__await__"):
            await doing

    # Chats

    def action_chat_new(self, _argument: str = "") -> None:
        """Start a new chat."""
        self.driver.new_chat()
        self.composer.focus()

    def action_chat_temporary(self, _argument: str = "") -> None:
        """Start a chat that is not kept."""
        self.driver.new_chat(is_temporary=True)
        self.composer.focus()

    def action_chat_list(self, words: str = "") -> None:
        """Show and search the chats."""
        from rvllm_local.tui.screens.chats import ChatsScreen

        driver = self.driver
        if driver.history is None:
            tell(self, "there is no history in this session", "warning")
            return
        screen = ChatsScreen(driver, words)

        async def opened(answer: str | None) -> None:
            if answer is None:
                if driver.session.chat.id in screen.deleted:
                    driver.new_chat()
                return
            chat_id, _, message_id = answer.partition(" ")
            await attempt(self, driver.open_chat(chat_id))
            if message_id and driver.session.chat.id == chat_id:
                await attempt(self, self._show_hit(message_id))
            else:
                self.transcript.follow()
            self.composer.focus()

        self.push_screen(screen, opened)

    async def _show_hit(self, message_id: str) -> None:
        """Go to a message that a search found, whatever branch it is on."""
        messages = self.driver.session.messages
        if all(message.id != message_id for message in messages):
            await self.driver.switch_sibling(message_id, 0)
        self.transcript.select(message_id)

    def action_chat_rename(self, title: str = "") -> None:
        """Give this chat another title."""

        def rename(title: str | None) -> None:
            if title:
                self.driver.dispatch(ChatChanged({"title": title}))

        if title:
            rename(title)
        else:
            present = self.driver.session.chat.title
            self.push_screen(Ask("Title of this chat", present), rename)

    def action_chat_delete(self, _argument: str = "") -> None:
        """Forget this chat, once confirmed; it can be undone."""
        session = self.driver.session
        if not session.is_kept or session.live is not None:
            reason = "there is nothing to delete, or a reply is being written"
            tell(self, reason, "warning")
            return

        async def delete(is_sure: bool | None) -> None:
            if is_sure:
                await attempt(self, self.driver.delete_chat(session.chat.id))
                tell(self, "deleted this chat; Alt+Z or /undo brings it back")

        self.push_screen(Confirm("Delete this chat and all its messages?"), delete)

    async def action_chat_undo(self, _argument: str = "") -> None:
        """Bring back what was deleted last."""
        if await attempt(self, self.driver.undo()):
            tell(self, "what was deleted is back")
        else:
            tell(self, "there is no deletion to undo", "warning")

    def action_chat_compact(self, _argument: str = "") -> None:
        """Go on from a summary; nothing is deleted."""
        self.driver.compact()
        self.transcript.follow()

    async def action_chat_export(self, name: str = "") -> None:
        """Write this chat to a file; its ending chooses Markdown or JSON."""
        if not self.driver.session.is_kept:
            tell(self, "there is nothing to export yet", "warning")
            return

        async def export(name: str | None) -> None:
            if name:
                await attempt(self, self._export(Path(name).expanduser()))

        if name:
            await export(name)
        else:
            note = "the ending .md or .json chooses the form"
            self.push_screen(Ask("Export to", "chat.md", note), export)

    async def _export(self, path: Path) -> None:
        await export_chat(self.driver, path)
        tell(self, f"exported to {path}")

    async def action_chat_import(self, name: str = "") -> None:
        """Add the chats of a JSON file."""

        async def bring(name: str | None) -> None:
            if name:
                await attempt(self, self._import(Path(name).expanduser()))

        if name:
            await bring(name)
        else:
            note = "a JSON file with messages, or ChatGPT's or Open WebUI's export"
            self.push_screen(Ask("Import from", "", note), bring)

    async def _import(self, path: Path) -> None:
        count = await import_chats(self.driver, path)
        tell(self, f"imported {count} chat{'s' if count > 1 else ''}")

    # How the model answers

    def action_chat_system(self, text: str = "") -> None:
        """Set this chat's system prompt."""
        if text:
            self.driver.dispatch(ChatChanged({"system": text}))
            tell(self, "the system prompt is set for this chat")
        else:
            self.action_chat_parameters()

    def action_chat_parameters(self, argument: str = "") -> None:
        """Set this chat's parameters: in a dialog, or one with "name value"."""
        if argument:
            self._set_parameter(argument)
            return
        from rvllm_local.tui.screens.parameters import ParametersScreen

        async def use(values: dict[str, Any] | None) -> None:
            if values is None:
                return
            name = values.pop("preset", None)
            self.driver.dispatch(ChatChanged(values))
            if name:
                preset = {**values["params"], "system": values["system"]}
                await self._keep_preset(name, preset)

        self.push_screen(ParametersScreen(self.driver.session.chat, self.presets), use)

    def _set_parameter(self, argument: str) -> None:
        name, _, value = argument.partition(" ")
        try:
            parsed = parse_parameter(name, value)
        except ParameterError as error:
            tell(self, str(error), "warning")
            return
        params = dict(self.driver.session.chat.params)
        params.pop(name, None)
        if parsed is not None:
            params[name] = parsed
        self.driver.dispatch(ChatChanged({"params": params}))
        shown = "the default" if parsed is None else parsed
        tell(self, f"{name} is {shown} in this chat")

    async def _keep_preset(self, name: str, values: dict[str, Any]) -> None:
        self.presets[name] = values
        history = self.driver.history
        if history is not None:
            presets = {key: dict(preset) for key, preset in self.presets.items()}
            writing = self.driver.in_thread(history.set_setting, "presets", presets)
            await attempt(self, writing)
        tell(self, f"kept the preset {name}")

    def action_chat_preset(self, name: str = "") -> None:
        """Use a preset in this chat."""

        def use(name: str | None) -> None:
            if name is None:
                return
            if name not in self.presets:
                tell(self, f"there is no preset {name}", "warning")
                return
            values = dict(self.presets[name])
            system = values.pop("system", self.driver.session.chat.system)
            self.driver.dispatch(ChatChanged({"params": values, "system": system}))
            tell(self, f"using the preset {name}")

        if name:
            use(name)
        else:
            choices = [Choice(preset, preset) for preset in self.presets]
            self.push_screen(Pick("Presets", choices, "Ctrl+T makes presets"), use)

    # Models and the server

    @work(group="command", exclusive=False)
    async def action_model_pick(self, name: str = "") -> None:
        """Choose the model that answers."""
        from rvllm_local.tui.screens.models import ModelsScreen

        driver = self.driver
        models = driver.session.models
        if driver.endpoint is not None:
            models = await attempt(self, driver.endpoint.models()) or models
        models = (*models, *await driver.in_thread(self.server.offers, models))
        if not name:
            screen = ModelsScreen(models, driver.session.model)
            name = await self.push_screen_wait(screen) or ""
        if name:
            self._choose_model(name, models)

    def _choose_model(self, name: str, models: tuple[ModelInfo, ...]) -> None:
        info = next((info for info in models if info.id == name), None)
        if info is None:
            reason = f"this server has no model {name}; Ctrl+L lists what there is"
            tell(self, reason, "warning")
        elif info.fits is False:
            reason = f"{name} does not fit this machine's memory; take a smaller one"
            tell(self, reason, "warning")
        elif info.served:
            self.driver.dispatch(ChatChanged({"model": name}))
        else:
            self._switch_model(info)

    @work(group="switch", exclusive=True)
    async def _switch_model(self, info: ModelInfo) -> None:
        problem = await self.connection.switch_model(info)
        if problem:
            tell(self, problem, "error")
        else:
            tell(self, f"{info.id} answers from now on")

    def action_server_retry(self, _argument: str = "") -> None:
        """Look for the server again, now."""
        self.keep_connection()

    @work(exclusive=True, group="connect")
    async def keep_connection(self) -> None:
        """Find or start the server, and again whenever it is lost."""
        await self.connection.keep()

    # The reply and the app

    def action_reply_stop(self, _argument: str = "") -> None:
        """Stop the reply and keep what came; else leave what was begun."""
        if self.popup.marked is not None:
            self.popup.offer([])
        elif self.find_bar.close():
            self.composer.focus()
        elif self.composer.editing is not None:
            self.composer.leave_editing()
        elif self.transcript.selected is not None:
            self.transcript.select(None)
            self.composer.focus()
        elif self.driver.session.live is not None:
            self.driver.stop()
        elif self.connection.download:
            self.workers.cancel_group(self, "switch")
            tell(self, "the download rests; choosing the model again goes on")
        else:
            self.composer.focus()

    def action_find_open(self, words: str = "") -> None:
        """Find words in this chat."""
        self.find_bar.open(words)

    def action_engine_toggle(self, _argument: str = "") -> None:
        """Show the engine at work, or hide it."""
        self.panel.display = not self.panel.display
        self.screen_stack[0].set_class(self.panel.display, "engine-shown")
        view = self.driver.session.engine
        self.panel.show(view if view is not None and view.block_map else None)

    async def action_theme_pick(self, name: str = "") -> None:
        """Choose the colours."""

        async def choose(name: str | None) -> None:
            if name is None:
                return
            if name not in CHOICES:
                known = ", ".join(CHOICES)
                tell(self, f"there is no theme {name}; known are {known}", "warning")
                return
            self.theme = CHOICES[name]
            history = self.driver.history
            if history is not None and not history.read_only:
                writing = self.driver.in_thread(history.set_setting, "theme", name)
                await attempt(self, writing)

        if name:
            await choose(name)
        else:
            choices = [Choice(theme, theme) for theme in CHOICES]
            self.push_screen(Pick("Theme", choices), choose)

    def action_palette_open(self, _argument: str = "") -> None:
        """All commands."""
        self.action_command_palette()

    def action_help_open(self, _argument: str = "") -> None:
        """Keys and commands."""
        from rvllm_local.tui.screens.help import HelpScreen

        self.push_screen(HelpScreen(self.options.settings.keys))
