"""The models that can be asked for by name: loaded on request, unloaded when idle.

A model whose plan does not fit is refused before another one is unloaded for it. One
that takes long to read or to load holds up nobody but those who ask for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Literal, TypeVar

from msgspec import structs

from rvllm_local.errors import ModelNotFoundError
from rvllm_local.models.locate import ModelFiles
from rvllm_local.options import EngineOptions
from rvllm_local.server.http.byte_budget import ByteBudget
from rvllm_local.server.http.problems import Problem, problem_of, shutting_down
from rvllm_local.server.models.inspection import Inspection, InspectionProcesses
from rvllm_local.server.models.inspection_frames import ModelFacts
from rvllm_local.server.models.keep_alive import KeepAlive
from rvllm_local.server.models.loaded_models import LoadedModels
from rvllm_local.server.models.names import ModelNames
from rvllm_local.server.models.served_model import (
    OWN_PROCESSES,
    Openers,
    Served,
    open_served,
)

logger = logging.getLogger(__name__)

# Bytes that are made into tokens at once, by the size of a request: a text of 16 MB
# takes up to a gigabyte meanwhile.
_TOKENIZED = ((2**20, 8 * 2**20), (2**24, 2**24))
_AT_ONCE = 4  # models that are loaded, and were never loaded before
_THREADS = 32
_LEAST_S = 0.5  # that engines have to end, however late it is
_LENGTHS_S = 5.0  # how long a list of models waits for their contexts
State = Literal["ready", "loading", "idle", "failed"]
Finder = Callable[[], Mapping[str, ModelFiles]]
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Listed:
    """A model by name, as `/v1/models` shows it.

    `failure` says why it could not be loaded the last time, `parent` names the model
    that an adapter belongs to.
    """

    name: str
    state: State
    is_pinned: bool
    open_requests: int
    memory: int | None
    context_length: int | None
    failure: str | None = None
    parent: str | None = None
    # Seconds until it is unloaded, if nobody asks for it; None is never.
    unloaded_in_s: float | None = None


class Registry:
    """Used on the event loop only; reading, loading and unloading run on threads.

    `available` are the models that may be asked for. `default` is one of them, also
    called "default". `pinned` names are never unloaded. `adapters` are LoRA adapters of
    the default model, a name and a folder each; they are asked for as models. `aliases`
    are other names of models. `finder` finds models that were fetched since.
    """

    def __init__(
        self,
        available: Mapping[str, ModelFiles],
        default: str,
        options: EngineOptions,
        *,
        pinned: Iterable[str] = (),
        adapters: Sequence[tuple[str, str]] = (),
        aliases: Mapping[str, str] | None = None,
        keep_alive_s: float | None = None,
        load_timeout_s: float = 900.0,
        openers: Openers = OWN_PROCESSES,
        inspection: Inspection | None = None,
        finder: Finder = dict,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._available = dict(available)
        self.default = default
        self._options = options
        self._pinned, self._adapters = frozenset(pinned), dict(adapters)
        self.keep_alive = KeepAlive(keep_alive_s)
        self._load_timeout_s = load_timeout_s
        self._finder = finder
        self._openers, self._clock = openers, clock
        self._inspection = inspection or InspectionProcesses()
        self._budget = ByteBudget(_TOKENIZED)
        names = {*self._available, *self._adapters}
        self._names = ModelNames(names, default, aliases or {})
        self._lengths: dict[str, int | None] = {}  # of models, loaded or not
        self._learning: asyncio.Task[None] | None = None
        self._loaded = LoadedModels(self._pinned, self.keep_alive, clock)
        self._loading: dict[str, asyncio.Task[None]] = {}
        # Of models that could not be loaded, and were not since.
        self._failures: dict[str, str] = {}
        # Models that may be trusted to load: they wait for no turn.
        self._proven = {default, *self._pinned}
        self._turns = asyncio.Semaphore(_AT_ONCE)
        # The processes of a model end with the thread that started them.
        self._threads = ThreadPoolExecutor(_THREADS, "rvllm-models")
        self._is_closed = False
        for name in self._pinned:
            if name not in self._available:
                names_text = ", ".join(self._available)
                raise ModelNotFoundError(
                    f"{name!r} cannot be pinned: it is not one of {names_text}"
                )

    def resolve(self, name: str) -> str:
        """The own name of a model that may be asked for. Raises `Problem` 404."""
        return self._names.resolve(name)

    async def find_models(self) -> None:
        """Take in models that were fetched since the server began, by their names."""
        present = await asyncio.to_thread(self._finder)
        added = {}
        for name, files in present.items():
            if name not in self._available and name not in self._adapters:
                added[name] = files
        self._available |= added
        self._names.add(added)

    def files(self, name: str) -> ModelFiles:
        """The files of a model by its own name; of an adapter, its model's."""
        return self._available[self._base_of(name)]

    async def facts(self, name: str) -> ModelFacts | None:
        """What is told of a model by its own name; None if its files do not tell."""
        return await self._on_thread(self._inspection.facts, self.files(name))

    def withdraw(self, name: str) -> None:
        """Offer a model no more. It must be unloaded."""
        self._available.pop(name, None)
        self._names.remove(name)
        self._lengths.pop(name, None)

    async def learn_lengths(self) -> None:
        """Learn the contexts of models that are not loaded; their files are read once.

        Waits a little. What takes longer is known later.
        """
        if self._learning is None or self._learning.done():
            self._learning = asyncio.create_task(self._learn_lengths())
        await asyncio.wait([self._learning], timeout=_LENGTHS_S)

    async def _learn_lengths(self) -> None:
        read = self._inspection.context_length
        for name, files in list(self._available.items()):
            if name not in self._lengths and not self._is_closed:
                self._lengths[name] = await self._on_thread(read, files, self._options)

    def listed(self) -> list[Listed]:
        """All that may be asked for, the default first."""
        names = sorted({*self._available, *self._adapters} - {self.default})
        return [self._listed(name) for name in (self.default, *names)]

    def loaded(self) -> list[Served]:
        """The models that are ready."""
        return [slot.served for slot in self._loaded.slots.values()]

    def is_loading(self, name: str) -> bool:
        """Whether the engine that answers for a name is on its way."""
        return self._base_of(name) in self._loading

    def _base_of(self, name: str) -> str:
        """The model whose engine answers for a name."""
        return self.default if name in self._adapters else name

    @contextlib.asynccontextmanager
    async def lease(self, name: str) -> AsyncIterator[Served]:
        """A model that stays loaded for the length of the block; loads it if need be."""
        name = self.resolve(name)
        base = self._base_of(name)
        with self._loaded.used(base):
            served = await self._served(base)
            if name in self._adapters:
                served = replace(served, name=name, adapter=name)
            yield served

    async def _served(self, name: str) -> Served:
        slots = self._loaded.slots
        while name not in slots:
            if self._is_closed:
                raise shutting_down()
            self._begin_loading(name)
            try:
                async with asyncio.timeout(self._load_timeout_s):
                    await asyncio.shield(self._loading[name])
            except TimeoutError:
                words = f"{name} takes long to load; try again later"
                raise Problem(503, words, "loading", retry_after_s=30.0) from None
        return slots[name].served

    def _begin_loading(self, name: str) -> None:
        """Load a model, unless that has begun."""
        if name not in self._loading:
            task = asyncio.create_task(self._load(name))
            task.add_done_callback(_retrieve)
            self._loading[name] = task

    async def _load(self, name: str) -> None:
        """Load a model, once for all who ask for it."""
        try:
            if name in self._proven:
                await self._open(name)
            else:
                async with self._turns:
                    await self._open(name)
        except Problem:  # no room at the moment is no fault of the model's
            raise
        except Exception as error:
            self._failures[name] = problem_of(error).message
            raise
        finally:
            self._loaded.give_up(name)
            del self._loading[name]
        self._failures.pop(name, None)
        self._proven.add(name)
        logger.info("%s is ready", name)

    async def _open(self, name: str) -> None:
        await self._loaded.left(name)
        files, options = self._available[name], self._options
        if name == self.default:
            adapters = tuple(self._adapters.items())
            options = structs.replace(options, adapters=adapters)
        planned = await self._on_thread(self._inspection.plan, files, options)
        await self._loaded.reserve(name, planned)
        served = await self._on_thread(
            open_served, files, name, planned, options, self._openers, self._budget
        )
        if self._is_closed:
            await served.close()
            raise shutting_down()
        self._loaded.add(name, served)

    async def _on_thread(self, work: Callable[..., T], *arguments: object) -> T:
        if self._is_closed:
            raise shutting_down()
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, work, *arguments)

    def keep(self, name: str, seconds: float) -> None:
        """Set how long a model stays loaded that nobody asks for.

        Infinity keeps it. Raises `Problem` 404.
        """
        self.keep_alive.set(self._base_of(self.resolve(name)), seconds)

    async def unload(self, name: str) -> bool:
        """Unload a model now, or when its last request ends.

        False if it is not loaded, or still in use. Raises `Problem` for a pinned one.
        """
        base = self._base_of(self.resolve(name))
        if base in self._pinned:
            raise Problem(409, f"{base} is pinned; it is never unloaded", "pinned")
        return await self._loaded.unload(base)

    async def unload_idle(self) -> None:
        """Unload what nobody has used for the time that it is kept."""
        self._loaded.unload_unused()
        await self._loaded.unloaded()

    async def watch(self) -> None:
        """Unload idle models for as long as the task lives."""
        while True:
            await asyncio.sleep(self.keep_alive.look_every_s)
            self._loaded.unload_unused()

    async def close(self, end_by: float | None = None) -> None:
        """Close every engine; what still loads is closed when it is ready.

        What has not ended by the loop's time `end_by` is not waited for: it ends with
        this process.
        """
        self._is_closed = True
        if end_by is not None:
            least = asyncio.get_running_loop().time() + _LEAST_S
            end_by = max(end_by, least)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(end_by):
                await self._loaded.close()
        await asyncio.to_thread(self._inspection.close)
        self._threads.shutdown(wait=False)

    def _listed(self, name: str) -> Listed:
        base = self._base_of(name)
        parent = self.default if name in self._adapters else None
        is_pinned = name in self._pinned
        slot = self._loaded.slots.get(base)
        if slot is not None:
            served = slot.served
            context = served.client.limits.context_length
            return Listed(
                name,
                "ready",
                is_pinned,
                self._loaded.open_requests[base],
                served.memory,
                context,
                parent=parent,
                unloaded_in_s=self._loaded.unloaded_in_s(base),
            )
        failure = None
        state: State = "idle"
        if base in self._loading:
            state = "loading"
        elif base in self._failures:
            state, failure = "failed", self._failures[base]
        context_length = self._lengths.get(base)
        return Listed(name, state, is_pinned, 0, None, context_length, failure, parent)


def _retrieve(task: asyncio.Task[None]) -> None:
    """Look at how a load ended: nobody may be left to do so."""
    if not task.cancelled():
        task.exception()
