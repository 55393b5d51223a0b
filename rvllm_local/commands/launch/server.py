"""The server under an agent: found or started, with the model that was asked for."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass

from rvllm_local.commands.default_model import WORD
from rvllm_local.config import show_progress
from rvllm_local.errors import EndpointError, ModelNotFoundError
from rvllm_local.server.models.names import LATEST
from rvllm_local.tui.launcher import ServerLauncher
from rvllm_local.tui.state import ModelInfo

_GRACE_S = 2.0  # a server that was started here ends with the agent
_RETRY_S = 2.0


@dataclass(frozen=True, slots=True)
class ServedModel:
    """The server's address, and a model that it can be asked for."""

    address: str
    model: str
    context: int | None


class Progress:
    """Says what a server is at, once for each thing: how long it takes is no news."""

    def __init__(self) -> None:
        self._said = ""

    def __call__(self, text: str) -> None:
        what = text.partition(" · for ")[0]
        if what != self._said:
            self._said = what
            show_progress(what)


class AgentServer:
    """Holds the server for as long as an agent runs; one that ends is started again."""

    def __init__(
        self,
        url: str | None,
        model: str | None,
        default: str | None,
        *,
        may_start: bool = True,
    ) -> None:
        """`default` is the model of a server that is started, where none is named.

        None leaves the choice to the server.
        """
        self._model = model
        starts = model or default
        self._default = starts or WORD
        self._launcher = ServerLauncher(
            url, starts, may_start=may_start, grace_s=_GRACE_S
        )

    async def look(self) -> ServedModel:
        """The server and the model; where none answers, what would be asked for."""
        try:
            return await self.find()
        except EndpointError as error:
            show_progress(f"{error}; start a server with: rvllm serve {self._default}")
            return ServedModel(self._launcher.url, self._default, None)

    async def find(self) -> ServedModel:
        """The server and the model. Raises `EndpointError`, `ModelNotFoundError`."""
        endpoint = await self._launcher.connect(Progress())
        try:
            models = await endpoint.models()
        finally:
            await endpoint.close()
        info = _named(models, self._model)
        return ServedModel(self._launcher.url, info.id, info.context_length)

    async def keep(self) -> None:
        """Start the server again whenever it ends. Runs until it is cancelled."""
        lease = self._launcher.lease
        while lease is not None:
            await lease.ended()
            with contextlib.suppress(EndpointError, OSError):
                endpoint = await self._launcher.connect(lambda text: None)
                await endpoint.close()
            lease = self._launcher.lease or lease
            if lease.is_over:
                await asyncio.sleep(_RETRY_S)

    async def release(self) -> None:
        """Let go of the server; one that was started here ends soon."""
        await self._launcher.stop()


def _named(models: tuple[ModelInfo, ...], name: str | None) -> ModelInfo:
    """The model of a name, or of a path to it; the first for none."""
    if not models:
        raise ModelNotFoundError("the server has no model")
    if name is None:
        return models[0]
    last = name.rstrip("/").rpartition("/")[2].removesuffix(".gguf")
    names_of_it = (name, name.removesuffix(LATEST), last.removesuffix(".rvllm"))
    for info in models:
        if info.id in names_of_it:
            return info
    names = ", ".join(info.id for info in models)
    raise ModelNotFoundError(
        f"the server that runs has no model called {name[:80]!r}; it has {names}. Fetch "
        f"it with: rvllm pull {name[:80]}"
    )
