"""Responses that were asked to be kept: the latest in memory, all of them in a file.

Without a file, or after it failed, they end with the server. The oldest are forgotten
first.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from rvllm_local.server.api.responses.file import OtherVersionError, ResponseFile
from rvllm_local.server.api.responses.kept import Kept, Row
from rvllm_local.server.http.problems import Problem

MAX_KEPT = 1000
MAX_BYTES = 64 * 2**20
T = TypeVar("T")
logger = logging.getLogger(__name__)


class ResponseStore:
    """Bounded in number and in bytes. Used on the event loop only.

    `open_file` is called on a thread of this store's own, when the first is asked for.
    """

    def __init__(
        self,
        max_kept: int = MAX_KEPT,
        max_bytes: int = MAX_BYTES,
        open_file: Callable[[], ResponseFile] | None = None,
    ) -> None:
        self._kept: OrderedDict[str, Kept] = OrderedDict()
        self._items: dict[str, Row] = {}
        self._max_kept, self._max_bytes = max_kept, max_bytes
        self._bytes = 0
        self._open_file = open_file
        self._file: ResponseFile | None = None
        # One thread, so that a response is read after it was written.
        self._thread = ThreadPoolExecutor(1, "rvllm-responses")

    async def keep(self, kept: Kept) -> None:
        """Keep a response under its id; others go if there are too many.

        It is on disk when this returns, if there is a file.
        """
        self._kept[kept.response_id] = kept
        self._items.update((item["id"], item) for item in kept.items())
        self._bytes += kept.size
        while len(self._kept) > self._max_kept or self._bytes > self._max_bytes:
            self._drop(next(iter(self._kept)))
        await self._in_file(lambda file: file.put(kept))

    async def find(self, response_id: str, parameter: str | None = None) -> Kept:
        """Raises `Problem` 404 for one that is unknown or forgotten."""
        kept = self._kept.get(response_id)
        if kept is None:
            kept = await self._in_file(lambda file: file.get(response_id), parameter)
        if kept is None:
            raise Problem(
                404,
                "no response with this id is kept; send the whole input instead",
                "not_found",
                parameter,
            )
        return kept

    async def find_item(self, item_id: str, where: str) -> Row:
        """The item of a kept response. Raises `Problem` 400 for one that is not kept."""
        item = self._items.get(item_id)
        if item is None:
            item = await self._in_file(lambda file: file.get_item(item_id), where)
        if item is None:
            raise Problem(
                400,
                f"{where}: no item with this id is kept; send the item itself instead",
                "not_found",
                where,
            )
        return item

    async def forget(self, response_id: str) -> None:
        """Raises `Problem` 404 for one that is unknown."""
        was_here = response_id in self._kept
        if was_here:
            self._drop(response_id)
        was_there = await self._in_file(lambda file: file.remove(response_id))
        if not was_here and not was_there:
            await self.find(response_id)

    async def close(self) -> None:
        """Close the file, after all that was to be written."""
        await asyncio.to_thread(self._thread.shutdown)
        if self._file is not None:
            self._file.close()

    def _drop(self, response_id: str) -> None:
        """Forget a response that is in memory."""
        kept = self._kept.pop(response_id)
        self._bytes -= kept.size
        for item in kept.items():
            self._items.pop(item["id"], None)

    async def _in_file(
        self, work: Callable[[ResponseFile], T], parameter: str | None = None
    ) -> T | None:
        """What `work` gives of the file; None without one.

        Raises `Problem` for a response of another version.
        """
        if self._open_file is None:
            return None
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(self._thread, lambda: self._worked(work))
        except OtherVersionError:
            raise Problem(
                404,
                "this response was kept by another version of the server; send the "
                "whole input instead",
                "not_found",
                parameter,
            ) from None
        except (sqlite3.Error, OSError) as error:
            self._give_up(error)
            return None

    def _worked(self, work: Callable[[ResponseFile], T]) -> T | None:
        """Runs on the store's thread."""
        if self._file is None:
            if self._open_file is None:  # given up by what ran before
                return None
            self._file = self._open_file()
        return work(self._file)

    def _give_up(self, error: Exception) -> None:
        """Go on in memory alone. Said once."""
        if self._open_file is None:
            return
        self._open_file = None
        # A library's text could quote what was to be written.
        reason = str(error) if isinstance(error, OSError) else _reason(error)
        logger.warning(
            "responses are kept in memory alone from here on: %s", reason or "no reason"
        )


def _reason(error: Exception) -> str:
    name = getattr(error, "sqlite_errorname", type(error).__name__)
    return f"the file of responses cannot be used ({name})"
