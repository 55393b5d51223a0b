"""What was left out of the latest requests, for those who ask why a prompt is as it is."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

_MOST_REQUESTS = 1000


class LeftOut:
    """Bounded in number. Used on the event loop only."""

    def __init__(self) -> None:
        self._parts: OrderedDict[str, Sequence[str]] = OrderedDict()

    def keep(self, request_id: str, parts: Sequence[str]) -> None:
        """Remember `parts`, which may still grow; the oldest request is forgotten."""
        self._parts[request_id] = parts
        if len(self._parts) > _MOST_REQUESTS:
            self._parts.popitem(last=False)

    def of(self, request_id: str) -> list[str]:
        """The parts of a request; none for one that is not known."""
        return list(self._parts.get(request_id, ()))
