"""Responses that were asked to be kept, in memory, the oldest forgotten first. They end with the server."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rvllm_local.server.http.problems import Problem

MAX_KEPT = 1000
MAX_BYTES = 64 * 2**20


@dataclass(frozen=True, slots=True)
class Kept:
    """A response, the items that it answered, and the whole conversation up to its end, without instructions.

    `size` is that of the whole: though turns share their texts, the last one holds them all.
    """

    response: Mapping[str, Any]
    input_items: tuple[Mapping[str, Any], ...]
    messages: tuple[Mapping[str, Any], ...]
    size: int


class ResponseStore:
    """Bounded in number and in bytes. Used on the event loop only."""

    def __init__(self, max_kept: int = MAX_KEPT, max_bytes: int = MAX_BYTES) -> None:
        self._kept: OrderedDict[str, Kept] = OrderedDict()
        self._max_kept, self._max_bytes = max_kept, max_bytes
        self._bytes = 0

    def keep(
        self,
        response: Mapping[str, Any],
        input_items: tuple[Mapping[str, Any], ...],
        messages: tuple[Mapping[str, Any], ...],
        size: int,
    ) -> None:
        """Keep a response of `size` bytes under its id; the oldest go when there are too many."""
        self._kept[response["id"]] = Kept(response, input_items, messages, size)
        self._bytes += size
        while len(self._kept) > self._max_kept or self._bytes > self._max_bytes:
            _, oldest = self._kept.popitem(last=False)
            self._bytes -= oldest.size

    def find(self, response_id: str, parameter: str | None = None) -> Kept:
        """Raises `Problem` 404 for one that is unknown or forgotten."""
        kept = self._kept.get(response_id)
        if kept is None:
            raise Problem(
                404,
                "no response with this id is kept; send the whole input instead",
                "not_found",
                parameter,
            )
        return kept

    def forget(self, response_id: str) -> None:
        """Raises `Problem` 404 for one that is unknown."""
        self._bytes -= self.find(response_id).size
        del self._kept[response_id]
