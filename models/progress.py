"""How a download says how far it is: one line of text at a time."""

from __future__ import annotations

import re
from collections.abc import Callable

Progress = Callable[[str], None]

# "fetched 45 MB" of a wheel, "owner/name: 45 of 300 MB (15 %)" of a repository.
_AMOUNT = re.compile(r"(?:fetched|:) ([\d.]+)(?: of ([\d.]+))? (kB|MB|GB)\b")
_UNITS = {"kB": 1e3, "MB": 1e6, "GB": 1e9}


def amounts_in(text: str) -> tuple[float, float | None] | None:
    """The bytes that have come by a line of progress, and of how many, if it says so."""
    amount = _AMOUNT.search(text)
    if amount is None:
        return None
    unit = _UNITS[amount[3]]
    whole = None
    if amount[2] is not None:
        whole = float(amount[2]) * unit
    return float(amount[1]) * unit, whole


def silent(_message: str) -> None:
    """Progress that nobody watches."""
