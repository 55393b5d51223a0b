"""How far a download is, from the lines that the fetching process prints."""

from __future__ import annotations

from collections.abc import Callable

from rvllm_local.models.progress import amounts_in
from rvllm_local.tui.status import bar

_BAR_WIDTH = 12
STALLED_S = 15.0  # without a word from the fetching process


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
        self._last_text, self._last_at = "", clock()

    def told(self, text: str) -> str:
        """The line to show once the process has printed `text`."""
        if text != self._last_text:
            self._last_text, self._last_at = text, self._clock()
        amounts = amounts_in(text)
        if amounts is None:
            return self._with_silence(f"fetching {self._name}: {text}")
        came, size = amounts
        if size is None:
            size = self._size
        parts = [f"fetching {self._name}"]
        if size:
            share = min(came / size, 1.0)
            parts.append(f"{bar(share, _BAR_WIDTH)} {share:.0%}")
            parts.append(_share(came, size))
        else:
            parts.append(f"{came / 1e6:.0f} MB")
        parts += self._speed(came, size)
        return self._with_silence("  ".join(parts))

    def _with_silence(self, line: str) -> str:
        """The line, and for how long nothing has come, where that is long."""
        silence = self._clock() - self._last_at
        if silence < STALLED_S:
            return line
        return f"{line}  nothing came for {_duration(silence)}"

    def _speed(
        self,
        came: float,
        size: float | None,
    ) -> list[str]:
        if self._first is None:
            self._first = (self._last_at, came)
        began, before = self._first
        if self._last_at - began < 1.0 or came <= before:
            return []
        speed = (came - before) / (self._last_at - began)
        parts = [f"{speed / 1e6:.1f} MB/s"]
        if size and size > came:
            parts.append(f"{_duration((size - came) / speed)} left")
        return parts


def _share(came: float, size: float) -> str:
    if size < 1e9:
        return f"{came / 1e6:.0f} of {size / 1e6:.0f} MB"
    return f"{came / 1e9:.2f} of {size / 1e9:.2f} GB"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
