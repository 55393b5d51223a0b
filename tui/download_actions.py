"""What a person can do with a download: pause it, go on with it, or cancel it."""

from __future__ import annotations

import abc
import asyncio
import contextlib
from collections.abc import Callable
from typing import Any

from textual import work
from textual.worker import WorkerError

from rvllm_local.tui.download import forget_download
from rvllm_local.tui.events import ConnectionChanged
from rvllm_local.tui.notices import attempt, tell
from rvllm_local.tui.parts import PartsApp
from rvllm_local.tui.screens.dialogs import Confirm
from rvllm_local.tui.state import ConnectionState, ModelInfo


class DownloadActions(PartsApp):
    """A download goes on in the background; what has come is kept while it is paused."""

    _go_on: Callable[[], Any] | None = None  # what was paused

    # The download of a model that was chosen

    @work(group="switch", exclusive=True)
    async def switch_model(self, info: ModelInfo) -> None:
        """Serve another model, fetched first if it is not here."""
        self._go_on = lambda: self.switch_model(info)
        problem = await self.connection.switch_model(info)
        if problem:
            tell(self, problem, "error")
        else:
            tell(self, f"{info.id} answers from now on")

    async def is_added(self, info: ModelInfo) -> bool:
        """Whether the server serves the model now; says why, if it does not."""
        self._go_on = lambda: self._fetch_again(info)
        try:
            problem = await self._add_model(info).wait()
        except WorkerError:  # the download is paused or cancelled
            return False
        if problem:
            tell(self, problem, "error")
        return not problem

    @work(group="switch", exclusive=True)
    async def _add_model(self, info: ModelInfo) -> str:
        return await self.connection.add_model(info)

    @work(group="command", exclusive=False)
    async def _fetch_again(self, info: ModelInfo) -> None:
        """Go on with the download of a model that was to be compared."""
        if await self.is_added(info):
            tell(self, f"{info.id} is here now; /compare {info.id} asks it")

    # Pausing and cancelling

    async def action_download_toggle(self, _argument: str = "") -> None:
        """Pause the download, or go on with it."""
        if self.is_fetching:
            await self.pause_download()
        elif self.connection.paused is not None and self._go_on is not None:
            self._go_on()
        elif self.is_start_paused:
            self.is_start_paused = False
            self.keep_connection()
        else:
            tell(self, "nothing is being fetched")

    @property
    def is_fetching(self) -> bool:
        """Whether a model comes, chosen or the server's first."""
        if self.connection.download:
            return True
        is_loading = self.driver.session.connection is ConnectionState.LOADING
        return is_loading and self.server.is_fetching

    async def pause_download(self) -> None:
        """Let the download rest."""
        if self.connection.download:
            await self._end_workers("switch")
            text = "the download is paused; F4 goes on, /cancel forgets what came"
            if self.connection.paused is None:  # it was here, and was being loaded
                text = f"{self.driver.session.model} goes on answering"
            tell(self, text)
            self.show_state()
        elif self.server.lease is not None and self.server.lease.count > 1:
            tell(self, "another chat waits for this download, too", "warning")
        else:
            await self._pause_start()

    async def _pause_start(self) -> None:
        """The server itself fetches its first model: it ends, and F4 starts it again."""
        self.is_start_paused = True
        await self._end_workers("connect")
        await self.server.end()
        text = "the download is paused; F4 goes on"
        now = self.driver.clock()
        self.driver.dispatch(ConnectionChanged(ConnectionState.LOST, text, now))

    def action_download_cancel(self, _argument: str = "") -> None:
        """Forget a download and what came of it, once confirmed."""
        info = self.connection.fetching or self.connection.paused
        if info is None and not self.is_fetching:
            tell(self, "nothing is being fetched")
            return
        name = "the first model" if info is None else info.id

        async def cancel(is_sure: bool | None) -> None:
            if is_sure:
                await self._cancel(info)

        question = f"Cancel the download of {name} and forget what came?"
        self.push_screen(Confirm(question), cancel)

    async def _cancel(self, info: ModelInfo | None) -> None:
        if info is None:
            await self.pause_download()  # a wheel keeps nothing of what came
            return
        await self._end_workers("switch")
        self.connection.paused = None
        self._go_on = None
        size = await attempt(self, asyncio.to_thread(forget_download, info.id))
        tell(self, f"cancelled {info.id}; {(size or 0) / 1e6:.0f} MB were removed")
        self.show_state()

    async def _end_workers(self, group: str) -> None:
        for worker in self.workers.cancel_group(self, group):
            with contextlib.suppress(WorkerError):
                await worker.wait()

    # What the app adds

    @abc.abstractmethod
    def keep_connection(self) -> Any:
        """Find or start the server, and again whenever it is lost."""

    @abc.abstractmethod
    def show_state(self) -> None:
        """Show the status line and the welcome anew."""
