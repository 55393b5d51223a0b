"""A response that was asked to be kept."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

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

    @property
    def response_id(self) -> str:
        """The id that the client was given."""
        return str(self.response["id"])

    def items(self) -> Iterator[Row]:
        """Every item that a client was given an id of."""
        yield from self.input_items
        yield from self.response.get("output", ())
