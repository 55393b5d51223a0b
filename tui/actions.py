"""What a person can do with the model, its parameters and the app as a whole.

What is done while writing is in the composer, what is done with a message in the
transcript. An action takes its command's argument, empty when it came from a key.
"""

from __future__ import annotations

import asyncio
from typing import Any

from textual import work

from rvllm_local.errors import ParameterError
from rvllm_local.tui.beside import refuse_alone
from rvllm_local.tui.chat_actions import ChatActions
from rvllm_local.tui.events import ChatChanged, ModelsListed
from rvllm_local.tui.first_start import best_model, measure_bandwidth
from rvllm_local.tui.notices import attempt, tell
from rvllm_local.tui.personas import chat_values, preset_note
from rvllm_local.tui.screens.dialogs import Choice, Pick
from rvllm_local.tui.settings import parse_parameter
from rvllm_local.tui.state import ModelInfo
from rvllm_local.tui.themes import CHOICES, textual_theme


class ActionsApp(ChatActions):
    """All actions; how the chat is shown is `ChatApp`'s."""

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
                preset["model"] = self.driver.session.model
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

    async def _keep_preset(
        self,
        name: str,
        values: dict[str, Any],
    ) -> None:
        self.presets[name] = values

        def add(kept: Any) -> dict[str, Any]:
            presets = dict(kept) if isinstance(kept, dict) else {}
            return {**presets, name: values}

        await self.change_setting("presets", add)
        tell(self, f"kept the preset {name}")

    def action_chat_preset(self, name: str = "") -> None:
        """Use a preset in this chat: its system prompt, parameters and model."""
        if name:
            self._use_preset(name)
            return
        choices = []
        for preset, values in self.presets.items():
            choices.append(Choice(preset, preset, preset_note(values)))

        def use(name: str | None) -> None:
            if name is not None:
                self._use_preset(name)

        self.push_screen(Pick("Presets", choices, "Ctrl+T makes presets"), use)

    def _use_preset(self, name: str) -> None:
        preset = self.presets.get(name)
        if preset is None:
            tell(self, f"there is no preset {name}", "warning")
            return
        session = self.driver.session
        values = chat_values(preset, session.chat)
        self.driver.dispatch(ChatChanged(values))
        tell(self, f"using the preset {name}")
        model = preset.get("model")
        if model and model != session.model:
            self.action_model_pick(str(model))

    # Models and the server

    @work(group="command", exclusive=False)
    async def action_model_pick(self, name: str = "") -> None:
        """Choose the model that answers."""
        from rvllm_local.tui.screens.models import ModelsScreen

        driver = self.driver
        models = driver.session.models
        if driver.endpoint is not None:
            models = await attempt(self, driver.endpoint.models()) or models
            driver.dispatch(ModelsListed(models))
        models = (*models, *await driver.in_thread(self.server.offers, models))
        if not name:
            screen = ModelsScreen(models, driver.session.model)
            name = await self.push_screen_wait(screen) or ""
        if name:
            self._choose_model(name, models)

    @work(exclusive=True, group="best")
    async def look_for_best(self) -> None:
        """Find the model to offer on an empty screen."""
        await self._find_best()
        self.show_welcome()

    async def _find_best(self) -> None:
        models = self.driver.session.models
        sizes = [info.size or 0 for info in models]
        offers = await asyncio.to_thread(self.server.offers, models)
        bandwidth = await measure_bandwidth() if offers else None
        if bandwidth is not None:
            self.best = best_model(offers, max(sizes, default=0), bandwidth)

    @work(group="command", exclusive=False)
    async def action_model_best(self, _argument: str = "") -> None:
        """Fetch and start the best model that fits this machine."""
        if self.best is None:
            await self._find_best()
        if self.best is None:
            tell(self, "no better model is known; Ctrl+L lists what there is")
        else:
            self.switch_model(self.best.info)

    def _choose_model(
        self,
        name: str,
        models: tuple[ModelInfo, ...],
    ) -> None:
        info = next((info for info in models if info.id == name), None)
        if info is None:
            reason = f"this server has no model {name}; Ctrl+L lists what there is"
            tell(self, reason, "warning")
        elif problem := refuse_alone(info):
            tell(self, problem, "warning")
        elif info.served:
            self.driver.dispatch(ChatChanged({"model": name}))
        else:
            self.switch_model(info)

    def action_server_retry(self, _argument: str = "") -> None:
        """Look for the server again, now."""
        self.is_start_paused = False
        self.keep_connection()

    @work(exclusive=True, group="connect")
    async def keep_connection(self) -> None:
        """Find or start the server, and again whenever it is lost."""
        await self.connection.keep()

    # The reply and the app

    async def action_reply_stop(self, _argument: str = "") -> None:
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
        elif self.is_fetching:
            await self.pause_download()
        else:
            self.composer.focus()

    def action_find_open(self, words: str = "") -> None:
        """Find words in this chat."""
        self.find_bar.open(words)

    def action_engine_toggle(self, _argument: str = "") -> None:
        """Show the engine at work, or hide it."""
        self.panel.display = not self.panel.display
        self.screen_stack[0].set_class(self.panel.display, "engine-shown")
        self.show_engine()

    def action_engine_more(self, _argument: str = "") -> None:
        """Show the engine's counters, too, or hide them."""
        if not self.panel.display:
            self.action_engine_toggle()
        self.panel.toggle_more()

    def show_engine(self) -> None:
        """Show the engine as it was seen last, with the titles of the chats."""
        view = self.driver.session.engine
        names = {}
        for session in self.driver.sessions.all():
            if session.live is not None and session.live.request_id:
                names[session.live.request_id] = session.chat.title
        is_known = view is not None and view.block_map
        self.panel.show(view if is_known else None, names)

    def action_sidebar_toggle(self, _argument: str = "") -> None:
        """Show the chats at the side, or hide them."""
        self.sidebar.set_class(not self.sidebar.has_class("hidden"), "hidden")

    async def action_theme_pick(self, name: str = "") -> None:
        """Choose the colours."""

        async def choose(name: str | None) -> None:
            if name is None:
                return
            if name not in CHOICES:
                names = ", ".join(CHOICES)
                tell(self, f"there is no theme {name}; known are {names}", "warning")
                return
            self.theme = textual_theme(name, self.no_color)
            await self.keep_setting("theme", name)

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
