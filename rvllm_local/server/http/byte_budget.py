"""How many bytes of requests may be held at once: small ones pass, large ones queue."""

from __future__ import annotations

import asyncio
import contextlib
import heapq
from collections.abc import AsyncIterator, Sequence

PASSING = 64 * 2**10  # bytes that never wait
_Waiter = tuple[int, int, asyncio.Future[None]]


class ByteBudget:
    """Classes of sizes, each with bytes of its own: no large request holds up a smaller.

    `classes` are pairs of the largest size of a class and the bytes that it may hold.
    Those that wait get their turn in order of size. Used on the event loop only.
    """

    def __init__(self, classes: Sequence[tuple[int, int]]) -> None:
        self._classes = []
        for largest, limit in classes:
            self._classes.append(SizeClass(largest, limit))

    @contextlib.asynccontextmanager
    async def held(self, num_bytes: int) -> AsyncIterator[None]:
        """Hold bytes for the length of the block; waits until there is room."""
        hold = self.hold()
        await hold.take(num_bytes)
        try:
            yield
        finally:
            hold.release()

    def hold(self) -> Hold:
        """What one request will hold; nothing yet."""
        return Hold(self)

    def class_of(self, num_bytes: int) -> SizeClass | None:
        """The class of a size, None for one that passes; the last takes all larger."""
        if num_bytes <= PASSING:
            return None
        for size_class in self._classes:
            if num_bytes <= size_class.largest:
                return size_class
        return self._classes[-1]


class Hold:
    """Bytes of one request, held until they are released."""

    def __init__(self, budget: ByteBudget) -> None:
        self._budget = budget
        self._class: SizeClass | None = None
        self.num_bytes = 0

    async def take(self, num_bytes: int) -> None:
        """Hold so many bytes; waits until there is room. Once for each hold."""
        size_class = self._budget.class_of(num_bytes)
        if size_class is not None:
            await size_class.take(num_bytes)
        self._class, self.num_bytes = size_class, num_bytes

    def release(self) -> None:
        """Let others have them. Safe to call again."""
        size_class, self._class = self._class, None
        if size_class is not None:
            size_class.give_back(self.num_bytes)


class SizeClass:
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
        loop = asyncio.get_running_loop()
        turn: asyncio.Future[None] = loop.create_future()
        self._num_asked += 1
        waiter = (num_bytes, self._num_asked, turn)
        heapq.heappush(self._waiting, waiter)
        try:
            await turn
        except asyncio.CancelledError:
            had_its_turn = turn.done() and not turn.cancelled()
            if had_its_turn:
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
        if self._num_held == 0:
            return True
        return self._num_held + num_bytes <= self._limit
