"""Responses that were asked to be kept, in memory. They end with the server.

The oldest are forgotten first.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from rvllm_local.server.http.problems import Problem

MAX_KEPT = 1000
MAX_BYTES = 64 * 2**20
Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Kept:
    """A response, the items that it answered, and the whole conversation to its end.

    The conversation is without instructions. `size` is that of the whole: though turns
    share their texts, the last one holds them all.
    """

    response: Row
    input_items: tuple[Row, ...]
    messages: tuple[Row, ...]
    size: int

    def items(self) -> Iterator[Row]:
        """Every item that a client was given an id of."""
        yield from self.input_items
        yield from self.response.get("output", ())


class ResponseStore:
    """Bounded in number and in bytes. Used on the event loop only."""

    def __init__(self, max_kept: int = MAX_KEPT, max_bytes: int = MAX_BYTES) -> None:
        self._kept: OrderedDict[str, Kept] = OrderedDict()
        self._items: dict[str, Row] = {}
        self._max_kept, self._max_bytes = max_kept, max_bytes
        self._bytes = 0

    def keep(
        self,
        response: Row,
        input_items: tuple[Row, ...],
        messages: tuple[Row, ...],
        size: int,
    ) -> None:
        """Keep a response of `size` bytes under its id; others go if there are too many."""
        kept = Kept(response, input_items, messages, size)
        self._kept[response["id"]] = kept
        self._items.update((item["id"], item) for item in kept.items())
        self._bytes += size
        while len(self._kept) > self._max_kept or self._bytes > self._max_bytes:
            self.forget(next(iter(self._kept)))

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

    def find_item(self, item_id: str, where: str) -> Row:
        """The item of a kept response. Raises `Problem` 400 for one that is not kept."""
        item = self._items.get(item_id)
        if item is None:
            raise Problem(
                400,
                f"{where}: no item with this id is kept; send the item itself instead",
                "not_found",
                where,
            )
        return item

    def forget(self, response_id: str) -> None:
        """Raises `Problem` 404 for one that is unknown."""
        kept = self.find(response_id)
        self._bytes -= kept.size
        for item in kept.items():
            self._items.pop(item["id"], None)
        del self._kept[response_id]
