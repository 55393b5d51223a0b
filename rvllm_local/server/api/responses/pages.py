"""Pages of a kept response's items, as clients ask for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rvllm_local.server.http.problems import bad_request

Item = Mapping[str, Any]
_MOST_ITEMS = 100  # of one page


def item_page(items: Sequence[Item], query: Mapping[str, str]) -> dict[str, Any]:
    """A page of the items as the query asks for it. Raises `Problem`.

    Without a word it is the last twenty, the last one first.
    """
    limit = _limit(query.get("limit", "20"))
    order = query.get("order", "desc")
    rows = _after(_ordered(items, order), query.get("after"))
    page = rows[:limit]
    return {
        "object": "list",
        "data": page,
        "first_id": page[0]["id"] if page else None,
        "last_id": page[-1]["id"] if page else None,
        "has_more": len(rows) > len(page),
    }


def _ordered(items: Sequence[Item], order: str) -> list[Item]:
    if order not in ("asc", "desc"):
        raise bad_request("order must be asc or desc", "order")
    if order == "asc":
        return list(items)
    return list(reversed(items))


def _limit(text: str) -> int:
    is_number = text.isascii() and text.isdecimal() and len(text) < 4
    if not is_number or not 1 <= int(text) <= _MOST_ITEMS:
        raise bad_request(f"limit must be from 1 to {_MOST_ITEMS}", "limit")
    return int(text)


def _after(rows: list[Item], item_id: str | None) -> list[Item]:
    """The rows behind the item with this id; all of them for None."""
    if item_id is None:
        return rows
    for index, row in enumerate(rows):
        if row["id"] == item_id:
            return rows[index + 1 :]
    raise bad_request("after must be the id of an item of this response", "after")
