"""What a person can do with chats, models and the app as a whole: the second half of the actions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from textual import work
from textual.widgets import Input

from rvllm_local.errors import HistoryError, ParameterError
from rvllm_local.history.export_chat import to_json, to_markdown
from rvllm_local.history.import_chats import MAX_IMPORT_BYTES, import_json
from rvllm_local.tui.actions import Actions
from rvllm_local.tui.events import ChatChanged
from rvllm_local.tui.screens.dialogs import Ask, Choice, Confirm, Pick
from rvllm_local.tui.settings import parse_parameter
from rvllm_local.tui.state import ConnectionState, ModelInfo
from rvllm_local.tui.themes_names import CHOICES


class ChatActions(Actions):
    """Mixed into the app. Each action takes its command's argument, empty when it came from a key."""

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

        if self.driver.history is None:
            self.tell("there is no history in this session", "warning")
            return
        screen = ChatsScreen(self.driver.history, words)

        async def opened(chosen: str | None) -> None:
            if chosen is None:
                if (
                    self.driver.session.chat.id in screen.deleted
                    and self.driver.session.live is None
                ):
                    self.driver.new_chat()
                return
            chat_id, _, message_id = chosen.partition(" ")
            await self.attempt(self.driver.open_chat(chat_id))
            if message_id:
                await self.attempt(self._show_found(message_id))
            self.transcript.follow() if not message_id else None

        self.push_screen(screen, opened)

    async def _show_found(self, message_id: str) -> None:
        """Go to a message that a search found, whatever branch it is on."""
        if all(one.id != message_id for one in self.driver.session.messages):
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
            self.push_screen(
                Ask("Title of this chat", self.driver.session.chat.title), rename
            )

    def action_chat_delete(self, _argument: str = "") -> None:
        """Forget this chat, once confirmed."""
        if not self.driver.session.is_kept or self.driver.session.live is not None:
            self.tell(
                "there is nothing to delete, or a reply is being written", "warning"
            )
            return

        async def delete(is_sure: bool | None) -> None:
            if is_sure:
                await self.attempt(self.driver.delete_chat(self.driver.session.chat.id))

        self.push_screen(Confirm("Delete this chat and all its messages?"), delete)

    async def action_chat_export(self, name: str = "") -> None:
        """Write this chat to a file; its ending chooses Markdown or JSON."""
        if not self.driver.session.is_kept:
            self.tell("there is nothing to export yet", "warning")
            return

        async def export(name: str | None) -> None:
            if name:
                await self.attempt(self._export(Path(name).expanduser()))

        if name:
            await export(name)
        else:
            self.push_screen(
                Ask("Export to", "chat.md", "the ending .md or .json chooses the form"),
                export,
            )

    async def _export(self, path: Path) -> None:
        if path.suffix not in (".md", ".json"):
            raise ParameterError("path", f"{path} must end in .md or .json")
        if path.exists():
            raise ParameterError("path", f"{path} exists; name another file")
        await self.driver.drain()
        write = to_json if path.suffix == ".json" else to_markdown
        text = await self.driver.in_thread(
            write, self.driver.store, self.driver.session.chat.id
        )
        path.write_text(text, encoding="utf-8", errors="replace")
        self.tell(f"exported to {path}")

    async def action_chat_import(self, name: str = "") -> None:
        """Add the chats of an OpenAI-style JSON file."""

        async def bring(name: str | None) -> None:
            if name:
                await self.attempt(self._import(Path(name).expanduser()))

        if name:
            await bring(name)
        else:
            self.push_screen(
                Ask("Import from", "", "a JSON file with messages, or a list of chats"),
                bring,
            )

    async def _import(self, path: Path) -> None:
        if self.driver.history is None:
            raise HistoryError("there is no history in this session to import into")
        if path.stat().st_size > MAX_IMPORT_BYTES:
            raise ParameterError(
                "path", f"{path} is larger than {MAX_IMPORT_BYTES >> 20} MiB"
            )
        text = path.read_text(encoding="utf-8", errors="replace")
        chats = await self.driver.in_thread(import_json, self.driver.history, text)
        self.tell(f"imported {len(chats)} chat{'s' if len(chats) > 1 else ''}")
        await self.driver.open_chat(chats[-1])

    def action_chat_system(self, text: str = "") -> None:
        """Set this chat's system prompt."""
        if text:
            self.driver.dispatch(ChatChanged({"system": text}))
            self.tell("the system prompt is set for this chat")
        else:
            self.action_chat_parameters()

    def action_chat_parameters(self, argument: str = "") -> None:
        """Set this chat's parameters: in a dialog, or one with "name value"."""
        if argument:
            name, _, value = argument.partition(" ")
            try:
                parsed = parse_parameter(name, value)
            except ParameterError as error:
                self.tell(str(error), "warning")
                return
            params = {**self.driver.session.chat.params, name: parsed}
            kept = {key: one for key, one in params.items() if one is not None}
            self.driver.dispatch(ChatChanged({"params": kept}))
            self.tell(
                f"{name} is {'the default' if parsed is None else parsed} in this chat"
            )
            return
        from rvllm_local.tui.screens.parameters import ParametersScreen

        async def chosen(values: dict[str, Any] | None) -> None:
            if values is None:
                return
            name = values.pop("preset", None)
            self.driver.dispatch(ChatChanged(values))
            if name:
                await self._keep_preset(
                    name, {**values["params"], "system": values["system"]}
                )

        self.push_screen(
            ParametersScreen(self.driver.session.chat, self.presets), chosen
        )

    async def _keep_preset(self, name: str, values: dict[str, Any]) -> None:
        self.presets[name] = values
        if self.driver.history is not None:
            presets = {key: dict(one) for key, one in self.presets.items()}
            await self.attempt(
                self.driver.in_thread(
                    self.driver.history.set_setting, "presets", presets
                )
            )
        self.tell(f"kept the preset {name}")

    def action_chat_preset(self, name: str = "") -> None:
        """Use a preset in this chat."""

        def use(name: str | None) -> None:
            if name is None:
                return
            if name not in self.presets:
                self.tell(f"there is no preset {name}", "warning")
                return
            values = dict(self.presets[name])
            system = values.pop("system", self.driver.session.chat.system)
            self.driver.dispatch(ChatChanged({"params": values, "system": system}))
            self.tell(f"using the preset {name}")

        if name:
            use(name)
        else:
            choices = [Choice(one, one) for one in self.presets]
            self.push_screen(Pick("Presets", choices, "Ctrl+T makes presets"), use)

    # Models

    @work(group="command", exclusive=False)
    async def action_model_pick(self, name: str = "") -> None:
        """Choose the model that answers."""
        from rvllm_local.tui.screens.models import ModelsScreen

        models = self.driver.session.models
        if self.driver.endpoint is not None:
            models = await self.attempt(self.driver.endpoint.models()) or models
        models = (*models, *await self.driver.in_thread(self.server.offers, models))
        if name:
            await self._choose_model(name, models)
            return
        chosen = await self.push_screen_wait(
            ModelsScreen(models, self.driver.session.model)
        )
        if chosen is not None:
            await self._choose_model(chosen, models)

    async def _choose_model(self, name: str, models: tuple[ModelInfo, ...]) -> None:
        info = next((one for one in models if one.id == name), None)
        if self.driver.session.live is not None:
            self.tell("a reply is being written; Esc stops it", "warning")
        elif info is None:
            self.tell(
                f"this server has no model {name}; Ctrl+L lists what there is",
                "warning",
            )
        elif info.fits is False:
            self.tell(
                f"{name} does not fit this machine's memory; take a smaller one",
                "warning",
            )
        elif info.served:
            self.driver.dispatch(ChatChanged({"model": name}))
        elif self.server.is_child:
            await self._attach_server(self.server.restart(name, self._loading))
            if self.driver.session.connection is ConnectionState.LOST:
                self.connect()  # type: ignore[attr-defined]  # with the model that was there before
            else:
                self.driver.dispatch(ChatChanged({"model": self.driver.session.model}))
        else:
            self.tell(
                f"this server was started by somebody else and does not serve {name}",
                "warning",
            )

    def action_server_retry(self, _argument: str = "") -> None:
        """Look for the server again."""
        self.connect()  # type: ignore[attr-defined]

    # The app

    def action_find_open(self, words: str = "") -> None:
        """Find words in this chat."""
        field = self.query_one("#find", Input)
        field.display = True
        field.value = words or field.value
        field.focus()
        if words:
            self._find(words)

    def on_input_submitted(self, event: Input.Submitted) -> None:
        """Enter in the find field goes to the next message that holds the words."""
        if event.input.id == "find":
            self._find(event.value)

    def _find(self, words: str) -> None:
        messages = self.driver.session.messages
        found = [
            one.id
            for one in messages
            if words.strip() and words.strip().lower() in one.text.lower()
        ]
        if not found:
            self.tell("not found in this chat; Ctrl+S searches all", "warning")
            return
        selected = self.transcript.selected
        at = found.index(selected) if selected in found else len(found)
        self.transcript.select(
            found[at - 1]
        )  # from the newest to the oldest, and round

    def action_engine_toggle(self, _argument: str = "") -> None:
        """Show the engine at work, or hide it."""
        self.panel.display = not self.panel.display
        self.screen_stack[0].set_class(self.panel.display, "engine-shown")
        view = self.driver.session.engine
        self.panel.show(view if view is not None and view.block_map else None)
        self.call_after_refresh(self._show_status)

    async def action_theme_pick(self, name: str = "") -> None:
        """Choose the colours."""

        async def choose(name: str | None) -> None:
            if name is None:
                return
            if name not in CHOICES:
                self.tell(
                    f"there is no theme {name}; known are {', '.join(CHOICES)}",
                    "warning",
                )
                return
            self.theme = CHOICES[name]
            if self.driver.history is not None and not self.driver.history.read_only:
                await self.attempt(
                    self.driver.in_thread(
                        self.driver.history.set_setting, "theme", name
                    )
                )

        if name:
            await choose(name)
        else:
            self.push_screen(
                Pick("Theme", [Choice(one, one) for one in CHOICES]), choose
            )

    def action_palette_open(self) -> None:
        """All commands."""
        self.action_command_palette()

    def action_help_open(self, _argument: str = "") -> None:
        """Keys and commands."""
        from rvllm_local.tui.screens.help import HelpScreen

        self.push_screen(HelpScreen(self.keymap))
