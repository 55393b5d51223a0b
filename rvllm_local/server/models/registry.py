"""The models that can be asked for by name: loads them on request, unloads them when idle, and keeps to the memory.

A model whose plan does not fit is refused before another one is unloaded for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from msgspec import structs

from rvllm_local.engine.startup.planning import plan_model
from rvllm_local.errors import MemoryBudgetError, ModelNotFoundError
from rvllm_local.memory.plan import MemoryPlan
from rvllm_local.models.describe import describe
from rvllm_local.models.locate import ModelFiles
from rvllm_local.options import EngineOptions
from rvllm_local.server.http.byte_budget import ByteBudget
from rvllm_local.server.http.problems import Problem, problem_of
from rvllm_local.server.models.context import context_of
from rvllm_local.server.models.keep_alive import KeepAlive
from rvllm_local.server.models.names import ModelNames
from rvllm_local.server.models.served_model import (
    OWN_PROCESSES,
    Openers,
    Served,
    open_served,
)

logger = logging.getLogger(__name__)

# Bytes that are made into tokens at once, by the size of a request: a text of 16 MB takes
# up to a gigabyte meanwhile.
_TOKENIZED = ((2**20, 8 * 2**20), (2**24, 2**24))
State = Literal["ready", "loading", "idle", "failed"]
Planner = Callable[[ModelFiles, EngineOptions], MemoryPlan]
Finder = Callable[[], Mapping[str, ModelFiles]]


@dataclass(frozen=True, slots=True)
class Listed:
    """A model by name, as `/v1/models` shows it. `failure` says why it could not be loaded the last time."""

    name: str
    state: State
    is_pinned: bool
    open_requests: int
    memory: int | None
    context_length: int | None
    failure: str | None = None
    parent: str | None = None  # the model that an adapter belongs to
    # Seconds until it is unloaded, if nobody asks for it; None is never.
    unloaded_in_s: float | None = None


@dataclass(slots=True)
class _Slot:
    served: Served
    open_requests: int = 0
    last_used: float = 0.0


def plan_files(files: ModelFiles, options: EngineOptions) -> MemoryPlan:
    """The memory plan of a model that is not loaded."""
    return plan_model(describe(files), options, strict=False)


class Registry:
    """Used on the event loop only; loading and unloading run on threads.

    `available` are the models that may be asked for; `default` is one of them, also called "default". `pinned` names
    are never unloaded. `adapters` are LoRA adapters of the default model, a name and a folder each; they are asked for
    as models. `aliases` are other names of models. `finder` finds models that were fetched since.
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
        planner: Planner = plan_files,
        finder: Finder = dict,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._available, self.default, self._options = dict(available), default, options
        self._pinned, self._adapters = frozenset(pinned), dict(adapters)
        self.keep_alive = KeepAlive(keep_alive_s)
        self._load_timeout_s = load_timeout_s
        self._openers, self._planner, self._clock = openers, planner, clock
        self._finder = finder
        self._budget = ByteBudget(_TOKENIZED)
        names = {*self._available, *self._adapters}
        self._names = ModelNames(names, default, aliases or {})
        self._lengths: dict[str, int | None] = {}  # of models, loaded or not
        self._slots: dict[str, _Slot] = {}
        self._loading: dict[str, asyncio.Task[Served]] = {}
        self._failures: dict[
            str, str
        ] = {}  # of models that could not be loaded and were not since
        self._change = asyncio.Lock()  # one model comes or goes at a time
        self._is_closed = False
        wrong = next(
            (name for name in self._pinned if name not in self._available), None
        )
        if wrong is not None:
            raise ModelNotFoundError(
                f"{wrong!r} cannot be pinned: it is not one of {', '.join(self._available)}"
            )

    def resolve(self, name: str) -> str:
        """The own name of a model that may be asked for. Raises `Problem` 404."""
        return self._names.resolve(name)

    async def find_models(self) -> None:
        """Take in models that were fetched since the server began; their names are added."""
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

    def withdraw(self, name: str) -> None:
        """Offer a model no more. It must be unloaded."""
        self._available.pop(name, None)
        self._names.remove(name)
        self._lengths.pop(name, None)

    async def learn_lengths(self) -> None:
        """Learn the contexts of models that are not loaded; their files are read once."""
        for name, files in list(self._available.items()):
            if name not in self._lengths:
                length = await asyncio.to_thread(context_of, files, self._options)
                self._lengths[name] = length

    def listed(self) -> list[Listed]:
        """All that may be asked for, the default first."""
        names = sorted(
            {*self._available, *self._adapters},
            key=lambda name: (name != self.default, name),
        )
        return [self._listed(name) for name in names]

    def loaded(self) -> list[Served]:
        return [slot.served for slot in self._slots.values()]

    def is_loading(self, name: str) -> bool:
        return self._base_of(name) in self._loading

    def _base_of(self, name: str) -> str:
        """The model whose engine answers for a name."""
        return self.default if name in self._adapters else name

    @contextlib.asynccontextmanager
    async def lease(self, name: str) -> AsyncIterator[Served]:
        """A model that stays loaded as long as the block lasts; loads it first if need be."""
        name = self.resolve(name)
        slot = await self._slot(self._base_of(name))
        slot.open_requests += 1
        try:
            yield (
                replace(slot.served, name=name, adapter=name)
                if name in self._adapters
                else slot.served
            )
        finally:
            slot.open_requests -= 1
            slot.last_used = self._clock()

    async def _slot(self, name: str) -> _Slot:
        while name not in self._slots:
            if self._is_closed:
                raise Problem(
                    503,
                    "the server is shutting down",
                    "shutting_down",
                    retry_after_s=5.0,
                )
            if name not in self._loading:
                task = asyncio.create_task(self._load(name))
                task.add_done_callback(
                    lambda task: task.cancelled() or task.exception()
                )
                self._loading[name] = task
            try:
                async with asyncio.timeout(self._load_timeout_s):
                    await asyncio.shield(self._loading[name])
            except TimeoutError:
                raise Problem(
                    503,
                    f"{name} takes long to load; try again later",
                    "loading",
                    retry_after_s=30.0,
                ) from None
        return self._slots[name]

    async def _load(self, name: str) -> Served:
        try:
            async with self._change:
                files, options = self._available[name], self._options
                if name == self.default:
                    options = structs.replace(
                        options, adapters=tuple(self._adapters.items())
                    )
                plan = await asyncio.to_thread(self._planner, files, options)
                await self._make_room(name, plan)
                served = await asyncio.to_thread(
                    open_served,
                    files,
                    name,
                    options,
                    plan.total,
                    self._openers,
                    self._budget,
                )
                if self._is_closed:
                    await served.close()
                    raise Problem(
                        503,
                        "the server is shutting down",
                        "shutting_down",
                        retry_after_s=5.0,
                    )
                self._slots[name] = _Slot(served, last_used=self._clock())
                self._failures.pop(name, None)
                logger.info("%s is ready", name)
                return served
        except Exception as error:
            if not isinstance(
                error, Problem
            ):  # no room at the moment is no fault of the model's
                self._failures[name] = problem_of(error).message
            raise
        finally:
            del self._loading[name]

    async def _make_room(self, name: str, plan: MemoryPlan) -> None:
        """Unload idle models, longest unused first, until the plan fits beside the others; refuse what cannot."""
        plan.check()
        idle = sorted(self._idle(), key=lambda slot: slot.last_used)
        held = sum(slot.served.memory for slot in self._slots.values())
        if held - sum(slot.served.memory for slot in idle) + plan.total > plan.budget:
            busy = ", ".join(
                other for other, slot in self._slots.items() if slot not in idle
            )
            message = f"{name} needs {plan.total} bytes, which {busy} (in use or pinned) leave no room for"
            if all(
                other in self._pinned
                for other, slot in self._slots.items()
                if slot not in idle
            ):
                raise MemoryBudgetError(
                    f"{message}; unpin a model or give {name} less kv_memory"
                )
            raise Problem(
                503, f"{message}; try again later", "memory_busy", retry_after_s=10.0
            )
        for slot in idle:
            if held + plan.total <= plan.budget:
                return
            if (
                slot.open_requests == 0
            ):  # it may have been asked for while another was unloaded
                held -= slot.served.memory
                await self._unload(slot)
        if held + plan.total > plan.budget:
            raise Problem(
                503,
                f"{name} has no room at the moment; try again",
                "memory_busy",
                retry_after_s=2.0,
            )

    def _idle(self) -> list[_Slot]:
        return [
            slot
            for name, slot in self._slots.items()
            if slot.open_requests == 0 and name not in self._pinned
        ]

    async def _unload(self, slot: _Slot) -> None:
        del self._slots[slot.served.name]
        self.keep_alive.forget(slot.served.name)
        await slot.served.close()
        logger.info("%s is unloaded", slot.served.name)

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
        async with self._change:
            slot = self._slots.get(base)
            if slot is None:
                return False
            if slot.open_requests:
                self.keep_alive.set(base, 0.0)
                return False
            await self._unload(slot)
            return True

    async def unload_idle(self) -> None:
        """Unload what nobody has used for the time that it is kept."""
        async with self._change:
            for slot in self._idle():
                keep_s = self.keep_alive.of(slot.served.name)
                if keep_s is None or slot.open_requests:
                    continue
                if slot.last_used + keep_s <= self._clock():
                    await self._unload(slot)

    async def watch(self) -> None:
        """Unload idle models for as long as the task lives."""
        while True:
            await asyncio.sleep(self.keep_alive.look_every_s)
            await self.unload_idle()

    async def close(self) -> None:
        """Close every engine; what still loads is closed when it is ready."""
        self._is_closed = True
        slots, self._slots = list(self._slots.values()), {}
        await asyncio.gather(*(slot.served.close() for slot in slots))

    def _listed(self, name: str) -> Listed:
        base = self._base_of(name)
        slot, is_loading = self._slots.get(base), base in self._loading
        failure = None if slot or is_loading else self._failures.get(base)
        state: State = (
            "ready"
            if slot
            else "loading"
            if is_loading
            else "failed"
            if failure
            else "idle"
        )
        return Listed(
            name,
            state,
            name in self._pinned,
            slot.open_requests if slot else 0,
            slot.served.memory if slot else None,
            slot.served.client.limits.context_length
            if slot
            else self._lengths.get(base),
            failure,
            self.default if name in self._adapters else None,
            self._left(base),
        )

    def _left(self, name: str) -> float | None:
        """Seconds until a loaded model is unloaded; None if it never is."""
        slot, keep_s = self._slots.get(name), self.keep_alive.of(name)
        if slot is None or keep_s is None or name in self._pinned:
            return None
        if slot.open_requests:
            return keep_s
        return max(0.0, slot.last_used + keep_s - self._clock())
