"""How far a download is, from the lines that the fetching process prints."""

from __future__ import annotations

import re
from collections.abc import Callable

from rvllm_local.tui.status import bar

_AMOUNT = re.compile(r"([\d.]+) ?(kB|MB|GB)\b")
_UNITS = {"kB": 1e3, "MB": 1e6, "GB": 1e9}
_BAR_WIDTH = 12


class DownloadProgress:
    """Makes one line of what is known: share, speed and the time that is left.

    `size` is the whole in bytes, or None; `clock` gives seconds.
    """

    def __init__(
        self,
        name: str,
        size: int | None,
        clock: Callable[[], float],
    ) -> None:
        self._name, self._size, self._clock = name, size, clock
        self._first: tuple[float, float] | None = None  # time and bytes

    def told(self, text: str) -> str:
        """The line to show once the process has printed `text`."""
        amounts = [
            float(number) * _UNITS[unit] for number, unit in _AMOUNT.findall(text)
        ]
        if not amounts:
            return f"fetching {self._name}: {text}"
        came = amounts[0]
        size = amounts[1] if len(amounts) > 1 and amounts[1] > came else self._size
        parts = [f"fetching {self._name}"]
        if size:
            share = min(came / size, 1.0)
            parts.append(f"{bar(share, _BAR_WIDTH)} {share:.0%}")
            parts.append(f"{came / 1e9:.2f} of {size / 1e9:.2f} GB")
        else:
            parts.append(f"{came / 1e6:.0f} MB")
        parts += self._speed(came, size)
        return "  ".join(parts)

    def _speed(
        self,
        came: float,
        size: float | None,
    ) -> list[str]:
        now = self._clock()
        if self._first is None:
            self._first = (now, came)
        began, before = self._first
        if now - began < 1.0 or came <= before:
            return []
        speed = (came - before) / (now - began)
        parts = [f"{speed / 1e6:.1f} MB/s"]
        if size and size > came:
            parts.append(f"{_duration((size - came) / speed)} left")
        return parts


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
