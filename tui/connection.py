"""The chat's connection to its server: made, watched, made again, and moved to another
model. Tells the session what happens; shows nothing itself.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from dataclasses import replace

from rvllm_local.errors import EndpointError
from rvllm_local.tui.beside import refuse_beside
from rvllm_local.tui.driver import Driver
from rvllm_local.tui.endpoint import ChatEndpoint
from rvllm_local.tui.events import ChatChanged, ConnectionChanged, ModelsListed
from rvllm_local.tui.launcher import ServerLauncher
from rvllm_local.tui.sanitise import clean_line
from rvllm_local.tui.state import ConnectionState, ModelInfo

FIRST_RETRY_S, LAST_RETRY_S = 1.0, 15.0
LOOK_S = 60.0  # a server that takes in a new model reads its files first
WATCH_S = 5.0  # between looks at a server that is not held by a lease


class ServerConnection:
    """Keeps `driver.endpoint` pointing at a server that answers."""

    def __init__(
        self,
        driver: Driver,
        launcher: ServerLauncher,
        model: str | None,
    ) -> None:
        self.launcher = launcher
        self.download = ""  # what is to be shown of a download, or nothing
        self.fetching: ModelInfo | None = None
        self.paused: ModelInfo | None = None  # whose download goes on when asked
        self._driver, self._model = driver, model

    async def connect(self) -> str:
        """Find or start the server; returns what went wrong, or nothing."""
        return await self._attach(self.launcher.connect(self._loading))

    async def keep(self) -> None:
        """Connect, watch, and connect again for as long as the chat runs."""
        retry_s = FIRST_RETRY_S
        while True:
            if self._driver.session.connection is not ConnectionState.READY:
                problem = await self.connect()
                if problem:
                    await asyncio.sleep(retry_s)
                    retry_s = min(retry_s * 2, LAST_RETRY_S)
                    continue
            retry_s = FIRST_RETRY_S
            await self._lost()

    async def _lost(self) -> None:
        """Wait until the server is gone, and say so."""
        driver = self._driver
        while driver.session.connection is ConnectionState.READY:
            lease = self.launcher.lease
            if lease is not None and lease.is_over:
                self._tell(ConnectionState.LOST, "the server has ended")
                return
            try:
                if lease is not None:
                    async with asyncio.timeout(WATCH_S):
                        await lease.ended()
                else:
                    await asyncio.sleep(WATCH_S)
            except TimeoutError:
                pass
            if lease is None and driver.session.live is None:
                await self._look()

    async def _look(self) -> None:
        """Whether a server that nobody holds still answers."""
        endpoint = self._driver.endpoint
        try:
            if endpoint is not None:
                await endpoint.health()
        except EndpointError as error:
            self._tell(ConnectionState.LOST, str(error))

    async def _attach(self, connecting: Awaitable[ChatEndpoint]) -> str:
        driver = self._driver
        if driver.session.connection is not ConnectionState.LOST:
            self._tell(ConnectionState.CONNECTING, "looking for a server")
        try:
            old, driver.endpoint = driver.endpoint, None
            if old is not None:
                await old.close()
            endpoint, models = await _connected(connecting)
        except (EndpointError, OSError) as error:
            self._tell(ConnectionState.LOST, str(error))
            return str(error)
        driver.endpoint = endpoint
        driver.dispatch(ModelsListed(models))
        if self._model and any(info.id == self._model for info in models):
            driver.dispatch(ChatChanged({"model": self._model}))
            self._model = None
        self._tell(ConnectionState.READY, "")
        return ""

    async def switch_model(self, info: ModelInfo) -> str:
        """Serve another model: fetch and load it while the present one answers.

        Where both have no room the server begins anew with the other one. Returns what
        went wrong, or nothing; then the model from before goes on.
        """
        lease = self.launcher.lease
        if lease is not None and lease.count > 1:
            return await self._switch_beside(info)
        if problem := await self._fetch(info):
            return problem
        here = replace(info, installed=True)
        if self._has_room(here) and not await self._switch_beside(here):
            return ""
        return await self._switch_alone(here)

    def _has_room(self, info: ModelInfo) -> bool:
        """Whether a model is known to fit beside what the server has loaded."""
        session = self._driver.session
        memory = {} if session.engine is None else session.engine.memory
        is_known = bool(info.needed and memory.get("total") and memory.get("budget"))
        return is_known and not refuse_beside(info, session)

    async def _switch_alone(self, info: ModelInfo) -> str:
        """End the server and start one with the other model."""
        launcher = self.launcher
        await self._until_quiet()
        before = self._driver.session.model
        self._driver.dispatch(ChatChanged({"model": info.id}))
        problem = await self._attach(launcher.restart(info.id, self._loading))
        if problem:
            self._driver.dispatch(ChatChanged({"model": before}))
            await self.connect()  # with the model that was there before
        else:
            model = self._driver.session.model
            self._driver.dispatch(ChatChanged({"model": model}))
        return problem

    async def _switch_beside(self, info: ModelInfo) -> str:
        """Load a model into the server that runs, and choose it once it is ready."""
        problem = await self.add_model(info) or await self._load(info)
        if not problem:
            self.launcher.model = info.id  # a server that is started anew has it
            self._driver.dispatch(ChatChanged({"model": info.id}))
        return problem

    async def _load(self, info: ModelInfo) -> str:
        """Have the server load a model; returns what went wrong, or nothing."""
        endpoint = self._driver.endpoint
        if endpoint is None:
            return "there is no server"
        self.download = f"loading {info.id}"
        try:
            await endpoint.load(info.id)
        except EndpointError as error:
            return str(error)
        finally:
            self.download = ""
        return ""

    async def add_model(self, info: ModelInfo) -> str:
        """Let the server serve one more model, fetched first if it is not here.

        Returns what went wrong, or nothing. The server loads it once it is asked for.
        """
        if problem := await self._fetch(info):
            return problem
        endpoint = self._driver.endpoint
        if endpoint is None:
            return "there is no server"
        try:
            models = await endpoint.models(LOOK_S)
        except EndpointError as error:
            return str(error)
        self._driver.dispatch(ModelsListed(models))
        if all(model.id != info.id for model in models):
            return f"{info.id} is here, but the server does not serve it"
        return ""

    async def _fetch(self, info: ModelInfo) -> str:
        """Fetch a model that is not here, while the present one answers."""
        launcher = self.launcher
        if launcher.lease is None:
            return (
                f"this server was started by somebody else and does not serve {info.id}"
            )
        if info.installed:
            return ""
        self.fetching, self.paused = info, None
        self.download = f"fetching {info.id}"
        try:
            await launcher.fetch(info, self._show_download)
        except (EndpointError, OSError) as error:
            return str(error)
        except asyncio.CancelledError:
            self.paused = info
            raise
        finally:
            self.download, self.fetching = "", None
        return ""

    async def _until_quiet(self) -> None:
        """A reply that is being written is not cut off by another model."""
        while self._driver.session.live is not None:
            await asyncio.sleep(0.1)

    def _show_download(self, text: str) -> None:
        self.download = clean_line(text, 120)

    def _loading(self, text: str) -> None:
        self._tell(ConnectionState.LOADING, text)

    def _tell(
        self,
        state: ConnectionState,
        text: str,
    ) -> None:
        driver = self._driver
        event = ConnectionChanged(state, clean_line(text), driver.clock())
        driver.dispatch(event)


async def _connected(
    connecting: Awaitable[ChatEndpoint],
) -> tuple[ChatEndpoint, tuple[ModelInfo, ...]]:
    """The endpoint and its models; it is closed again if it cannot name them."""
    endpoint = await connecting
    try:
        return endpoint, await endpoint.models()
    except BaseException:
        await endpoint.close()
        raise
