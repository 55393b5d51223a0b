"""Reads a stream of a reply in batches, so that the process sleeps between them.

A token that wakes the chat takes a core from the engine, on a machine that runs both.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

REST_S = 0.1


class ReadPace:
    """Rests where all was read that had come.

    The first read after a rest takes what came meanwhile. The next one that must wait
    tells that there was no more: then is the time to rest, and the system's buffer holds
    what comes. The first words of a reply are read at once.
    """

    def __init__(self, rest_s: float = REST_S) -> None:
        self._rest_s = rest_s
        self._is_fresh = True  # no read had to wait since the last rest
        self._is_due = False
        self.num_rests = 0

    async def next(self, chunks: AsyncIterator[bytes]) -> bytes | None:
        """The next chunk, or None at the end."""
        has_waited = asyncio.Event()
        # It runs only if the read gives way to others, as one that waits does.
        mark = asyncio.get_running_loop().call_soon(has_waited.set)
        try:
            return await anext(chunks, None)
        finally:
            mark.cancel()
            if has_waited.is_set():
                self._is_due = not self._is_fresh
                self._is_fresh = False

    async def rest(self) -> None:
        """Rest, if all was read."""
        if not self._is_due:
            return
        self._is_due, self._is_fresh = False, True
        self.num_rests += 1
        await asyncio.sleep(self._rest_s)
