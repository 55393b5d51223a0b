"""Reads bodies: bounded in size and time, and in how many bytes all of them hold."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Mapping

from rvllm_local import host
from rvllm_local.server.http.byte_budget import PASSING, ByteBudget, Hold
from rvllm_local.server.http.guarded_answer import Message, Receive
from rvllm_local.server.http.problems import Problem
from rvllm_local.server.http.settings import ServerSettings

# Bytes of bodies that are being read or made into prompts, by the size of a body.
_CLASSES = ((2**20, 32 * 2**20), (2**24, 32 * 2**20))
_LARGE = 2**20  # bytes of a body after which the heap is trimmed
_TRIM_AFTER_S = 2.0
_YOUNG = 1  # a generation of the collector, which looks at little


class GoneError(Exception):
    """The client went away before its request was whole."""


class BodyReader:
    """Reads the bodies of one server. Used on the event loop only.

    Small bodies pass. Large ones wait for each other, in order of size, until those
    before them are prompts. Their memory goes back to the system some time after.
    """

    def __init__(self, settings: ServerSettings) -> None:
        self._settings = settings
        self._budget = ByteBudget(_CLASSES)
        self._trimming: asyncio.TimerHandle | None = None

    def hold(self) -> Hold:
        """What the body of one request will hold."""
        return self._budget.hold()

    async def read(
        self, headers: Mapping[bytes, bytes], receive: Receive, hold: Hold
    ) -> Receive:
        """What replays the whole body; then only the disconnection is left to receive.

        Raises `Problem` for a body that is too large or too slow, or finds no room.
        """
        announced = headers.get(b"content-length", b"0")
        await self._take(hold, int(announced))
        try:
            async with asyncio.timeout(self._settings.body_timeout_s):
                body = await self._read(receive, hold)
        except TimeoutError:
            raise Problem(
                408,
                "the body took too long to come",
                "slow_body",
            ) from None
        message: Message = {
            "type": "http.request",
            "body": body,
            "more_body": False,
        }
        first = [message]

        async def replay() -> Message:
            return first.pop() if first else await receive()

        return replay

    def check_size(self, num_bytes: int) -> None:
        """Raise `Problem` 413 for a body that is too large."""
        most = self._settings.max_body
        if num_bytes > most:
            raise Problem(
                413,
                f"the body is larger than {most} bytes",
                "body_too_large",
            )

    def trim_after(self, hold: Hold) -> None:
        """Give memory back some time after a large body has gone."""
        if hold.num_bytes > _LARGE and self._trimming is None:
            loop = asyncio.get_running_loop()
            self._trimming = loop.call_later(_TRIM_AFTER_S, self._trim)

    def _trim(self) -> None:
        self._trimming = None
        gc.collect(_YOUNG)  # a body may hang on an error that leads to itself
        loop = asyncio.get_running_loop()
        loop.run_in_executor(None, host.trim_heap)

    async def _read(self, receive: Receive, hold: Hold) -> bytes:
        parts: list[bytes] = []
        size = 0
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise GoneError
            part = message.get("body", b"")
            parts.append(part)
            size += len(part)
            self.check_size(size)
            was_announced = hold.num_bytes > 0
            if size > PASSING and not was_announced:
                await self._take(hold, self._settings.max_body)
            if not message.get("more_body", False):
                return b"".join(parts)

    async def _take(self, hold: Hold, num_bytes: int) -> None:
        try:
            async with asyncio.timeout(self._settings.body_timeout_s):
                await hold.take(num_bytes)
        except TimeoutError:
            raise Problem(
                503,
                "too many large requests are being read; try again later",
                "busy",
                retry_after_s=2.0,
            ) from None
