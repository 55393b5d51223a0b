"""Carries events from an engine's threads to the event loop, many for one wake-up, and bounds what waits there."""

from __future__ import annotations

import asyncio
import collections
from collections.abc import Callable

from rvllm_local.types import EventSink, StreamEvent

MAX_WAITING = 8192  # events of one request that nobody has taken


class Mailbox:
    """What came for one request and was not taken. Used on the event loop only.

    When too much waits, because the client reads too slowly, `on_overflow` is called once and the rest is dropped but
    for the last event of each choice.
    """

    def __init__(self, on_overflow: Callable[[], None]) -> None:
        self._events: list[tuple[int, StreamEvent]] = []
        self._on_overflow = on_overflow
        self._arrived: asyncio.Future[None] | None = None
        self._failure: Exception | None = None
        self.has_overflown = False

    def put(self, offset: int, event: StreamEvent) -> None:
        if len(self._events) >= MAX_WAITING and event.finish_reason is None:
            if not self.has_overflown:
                self.has_overflown = True
                self._on_overflow()
            return
        self._events.append((offset, event))
        self._wake()

    def fail(self, error: Exception) -> None:
        """Let `take` raise this from now on."""
        self._failure = error
        self._wake()

    def _wake(self) -> None:
        if self._arrived is not None and not self._arrived.done():
            self._arrived.set_result(None)

    async def take(self, timeout_s: float) -> list[tuple[int, StreamEvent]]:
        """All that waits, at least one event, with the number of its first choice.

        Raises `TimeoutError`, and what `fail` was given.
        """
        if not self._events and self._failure is None:
            loop = asyncio.get_running_loop()
            arrived = self._arrived = loop.create_future()
            alarm = loop.call_later(timeout_s, _expire, arrived)
            try:
                await arrived
            finally:
                alarm.cancel()
                self._arrived = None
        if self._failure is not None:
            raise self._failure
        events, self._events = self._events, []
        return events


def _expire(arrived: asyncio.Future[None]) -> None:
    if not arrived.done():
        arrived.set_exception(TimeoutError())


class Switchboard:
    """Hands events over to the loop's thread."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._waiting: collections.deque[tuple[Mailbox, int, StreamEvent]] = (
            collections.deque()
        )
        self._is_called = False

    def sink(self, mailbox: Mailbox, offset: int = 0) -> EventSink:
        """A sink for any thread; events reach `mailbox` on the loop, with `offset`."""

        def put(event: StreamEvent) -> None:
            self._waiting.append((mailbox, offset, event))
            if not self._is_called:
                self._is_called = True
                self._loop.call_soon_threadsafe(self._deliver)

        return put

    def _deliver(self) -> None:
        self._is_called = (
            False  # before the queue is read, so that nothing can be left in it
        )
        while self._waiting:
            mailbox, offset, event = self._waiting.popleft()
            mailbox.put(offset, event)
