"""The models that are in memory, and the room that is left for others."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import logging
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass

from rvllm_local.errors import MemoryBudgetError
from rvllm_local.server.http.problems import Problem
from rvllm_local.server.models.inspection_frames import Planned
from rvllm_local.server.models.keep_alive import KeepAlive
from rvllm_local.server.models.served_model import Served

logger = logging.getLogger(__name__)

_PATIENCE_S = 30.0  # with models that are being loaded, and may be idle then


@dataclass(slots=True)
class Slot:
    """A model that is ready, and when somebody used it last."""

    served: Served
    last_used: float


class LoadedModels:
    """Used on the event loop only. `pinned` names are never unloaded.

    What is kept for models that come, with what those take that are here, never exceeds
    the machine's budget. Nothing here waits for a model to load but `reserve`, and only
    where that model has the memory.
    """

    def __init__(
        self,
        pinned: Collection[str],
        keep_alive: KeepAlive,
        clock: Callable[[], float],
    ) -> None:
        self._pinned, self._clock = frozenset(pinned), clock
        self._keep_alive = keep_alive
        self.slots: dict[str, Slot] = {}
        # Requests by model, those included that wait until it is loaded.
        self.open_requests = collections.Counter[str]()
        self._reserved: dict[str, int] = {}  # bytes of models that are being loaded
        self._leaving: dict[str, int] = {}  # bytes of models that are being unloaded
        self._tasks: set[asyncio.Task[None]] = set()
        self._changed = asyncio.Event()

    def add(self, name: str, served: Served) -> None:
        """A model is ready; its reservation is over."""
        self._reserved.pop(name, None)
        self.slots[name] = Slot(served, self._clock())
        self._note_change()

    def give_up(self, name: str) -> None:
        """A model was not loaded; nothing is kept for it any more."""
        if self._reserved.pop(name, None) is not None:
            self._note_change()

    @contextlib.contextmanager
    def used(self, name: str) -> Iterator[None]:
        """A request for a model, which is not unloaded meanwhile."""
        self.open_requests[name] += 1
        try:
            yield
        finally:
            self.open_requests[name] -= 1
            slot = self.slots.get(name)
            if slot is not None:
                slot.last_used = self._clock()
                self._note_change()

    async def reserve(self, name: str, planned: Planned) -> None:
        """Keep memory for a model. Unloads idle ones, the longest unused first.

        Waits a little for models that are being loaded, and may be idle then. Raises
        `MemoryBudgetError` for what cannot fit beside those that are pinned, `Problem`
        503 for what may fit later.
        """
        until = asyncio.get_running_loop().time() + _PATIENCE_S
        has_waited = False
        while (missing := self._missing(planned)) > 0:
            idle = sorted(self._idle(), key=lambda slot: slot.last_used)
            if sum(slot.served.memory for slot in idle) >= missing:
                self._unload_bytes(idle, missing)
                continue
            may_wait = has_waited or self._reserved
            has_waited = True
            if not may_wait or not await self._change_until(until):
                raise self._no_room(name, planned)
        lacks_memory_yet = missing + sum(self._leaving.values()) > 0
        self._reserved[name] = planned.memory
        if lacks_memory_yet:
            for other in list(self._leaving):
                await self.left(other)

    def _missing(self, planned: Planned) -> int:
        """Bytes that a plan lacks beside all that is here or comes."""
        held = sum(slot.served.memory for slot in self.slots.values())
        return held + sum(self._reserved.values()) + planned.memory - planned.budget

    def _unload_bytes(self, idle: list[Slot], missing: int) -> None:
        for slot in idle:
            if missing <= 0:
                return
            missing -= slot.served.memory
            self._unload(slot)

    def _no_room(self, name: str, planned: Planned) -> Exception:
        """Why there is no room: what is in use, and whether that will change."""
        idle = self._idle()
        busy = [other for other, slot in self.slots.items() if slot not in idle]
        busy += self._reserved
        words = (
            f"{name} needs {planned.memory} bytes, which {', '.join(busy)} (in use, being "
            "loaded or pinned) leave no room for"
        )
        if self._pinned.issuperset(busy):
            return MemoryBudgetError(
                f"{words}; unpin a model or give {name} less kv_memory"
            )
        return Problem(
            503, f"{words}; try again later", "memory_busy", retry_after_s=10.0
        )

    def _idle(self) -> list[Slot]:
        return [
            slot
            for name, slot in self.slots.items()
            if not self.open_requests[name] and name not in self._pinned
        ]

    def unloaded_in_s(self, name: str) -> float | None:
        """Seconds until a loaded model is unloaded; None if it never is."""
        slot, keep_s = self.slots.get(name), self._keep_alive.of(name)
        if slot is None or keep_s is None or name in self._pinned:
            return None
        if self.open_requests[name]:
            return keep_s
        return max(0.0, slot.last_used + keep_s - self._clock())

    def unload_unused(self) -> None:
        """Begin to unload what nobody has used for the time that it is kept."""
        for slot in self._idle():
            if self.unloaded_in_s(slot.served.name) == 0:
                self._unload(slot)

    async def unload(self, name: str) -> bool:
        """Unload a model now, or when its last request ends; False if not now."""
        slot = self.slots.get(name)
        if slot is None:
            return False
        if self.open_requests[name]:
            self._keep_alive.set(name, 0.0)
            return False
        self._unload(slot)
        await self.left(name)
        return True

    def _unload(self, slot: Slot) -> None:
        """Begin to unload a model; its memory is free when `_leaving` lets go of it."""
        served = slot.served
        del self.slots[served.name]
        self._keep_alive.forget(served.name)
        self._leaving[served.name] = served.memory
        task = asyncio.create_task(self._end(served))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _end(self, served: Served) -> None:
        try:
            await served.close()
            logger.info("%s is unloaded", served.name)
        finally:
            del self._leaving[served.name]
            self._note_change()

    async def left(self, name: str) -> None:
        """Wait until a model that is being unloaded has gone."""
        while name in self._leaving:
            await self._changed.wait()

    async def unloaded(self) -> None:
        """Wait for all that are being unloaded."""
        while self._tasks:
            await asyncio.wait(self._tasks)

    async def close(self) -> None:
        """End every engine at once."""
        slots, self.slots = list(self.slots.values()), {}
        ends = [slot.served.close() for slot in slots]
        await asyncio.gather(*ends, self.unloaded())

    def _note_change(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def _change_until(self, until: float) -> bool:
        """Wait for the next change; False if there is none in time."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(until):
                await self._changed.wait()
                return True
        return False
