"""The app's parts, and the way from a command's id to what does it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from textual.app import App
from textual.widget import Widget

from rvllm_local.tui.announcer import Announcer
from rvllm_local.tui.commands import BY_ID
from rvllm_local.tui.connection import ServerConnection
from rvllm_local.tui.drafts import Drafts
from rvllm_local.tui.driver import Driver
from rvllm_local.tui.first_start import BestModel
from rvllm_local.tui.launcher import ServerLauncher
from rvllm_local.tui.notices import attempt
from rvllm_local.tui.options import ChatOptions
from rvllm_local.tui.shelf import SETTING, Shelf
from rvllm_local.tui.widgets.composer import Composer
from rvllm_local.tui.widgets.engine_panel import EnginePanel
from rvllm_local.tui.widgets.find_bar import FindBar
from rvllm_local.tui.widgets.popup import CompletionPopup
from rvllm_local.tui.widgets.sidebar import Sidebar
from rvllm_local.tui.widgets.transcript import Transcript
from rvllm_local.tui.widgets.welcome import welcome_content


class PartsApp(App[int]):
    """What the chat is made of."""

    def __init__(
        self,
        options: ChatOptions,
        launcher: ServerLauncher,
        driver: Driver,
    ):
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
        self.sidebar = Sidebar()
        self.best: BestModel | None = None  # what this machine could run
        self.is_start_paused = False  # whether the server's own download was paused
        self.shelf = Shelf()
        self.announcer = Announcer(options.settings.notify, self.write_terminal)

    def show_welcome(self) -> None:
        """Show what an empty chat shows."""
        paused = self.connection.paused
        content = welcome_content(
            self.driver.session,
            self.best,
            self.connection.download,
            "" if paused is None else paused.id,
        )
        self.transcript.welcome(content)

    def write_terminal(self, text: str) -> None:
        """Send an escape sequence; without a terminal nothing is sent."""
        if self._driver is not None and not self.is_headless:
            self._driver.write(text)

    async def keep_setting(
        self,
        name: str,
        value: Any,
    ) -> None:
        """Write a setting into the history, where there is one that may be written."""
        await self.change_setting(name, lambda _: value)

    async def change_setting(
        self,
        name: str,
        change: Callable[[Any], Any],
    ) -> None:
        """Change a setting of the history, which another chat may have changed, too."""
        history = self.driver.history
        if history is not None and not history.read_only:
            writing = self.driver.in_thread(history.change_setting, name, change)
            await attempt(self, writing)

    async def keep_shelf(self) -> None:
        """Write which chats are pinned and in which folder they are."""
        await self.change_setting(SETTING, self.shelf.merge)

    # Any command

    async def action_do(self, command_id: str) -> None:
        """Do the command of a key."""
        await self.do(command_id)

    async def do(
        self,
        command_id: str,
        argument: str = "",
    ) -> None:
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
