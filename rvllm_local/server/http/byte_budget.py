"""How many bytes of requests may be held at once: small ones pass, large ones queue."""

from __future__ import annotations

import asyncio
import contextlib
import heapq
from collections.abc import AsyncIterator, Sequence

_PASSING = 64 * 2**10  # bytes that never wait
_Waiter = tuple[int, int, asyncio.Future[None]]


class ByteBudget:
    """Classes of sizes, each with bytes of its own: no large request holds up a smaller.

    `classes` are pairs of the largest size of a class and the bytes that it may hold.
    Those that wait get their turn in order of size. Used on the event loop only.
    """

    def __init__(self, classes: Sequence[tuple[int, int]]) -> None:
        self._classes = [_Class(largest, limit) for largest, limit in classes]

    @contextlib.asynccontextmanager
    async def held(self, num_bytes: int) -> AsyncIterator[None]:
        """Hold bytes for the length of the block; waits until there is room."""
        size_class = self._class_of(num_bytes)
        if size_class is None:
            yield
            return
        await size_class.take(num_bytes)
        try:
            yield
        finally:
            size_class.give_back(num_bytes)

    def _class_of(self, num_bytes: int) -> _Class | None:
        """The class of a size; the last one takes all that is larger."""
        if num_bytes <= _PASSING:
            return None
        for size_class in self._classes:
            if num_bytes <= size_class.largest:
                return size_class
        return self._classes[-1]


class _Class:
    """The bytes of one class, and who waits for them, the smallest first."""

    def __init__(self, largest: int, limit: int) -> None:
        self.largest, self._limit = largest, limit
        self._num_held = 0
        self._waiting: list[_Waiter] = []
        self._num_asked = 0

    async def take(self, num_bytes: int) -> None:
        if not self._waiting and self._has_room(num_bytes):
            self._num_held += num_bytes
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._num_asked += 1
        heapq.heappush(self._waiting, (num_bytes, self._num_asked, turn))
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.give_back(num_bytes)
            raise

    def give_back(self, num_bytes: int) -> None:
        self._num_held -= num_bytes
        while self._waiting:
            size, _, turn = self._waiting[0]
            if not turn.done() and not self._has_room(size):
                return
            heapq.heappop(self._waiting)
            if not turn.done():
                self._num_held += size
                turn.set_result(None)

    def _has_room(self, num_bytes: int) -> bool:
        """Whether so many more fit; what exceeds the limit alone is taken by itself."""
        return self._num_held == 0 or self._num_held + num_bytes <= self._limit
