"""How far a download is, from the lines that the fetching process prints."""

from __future__ import annotations

from collections.abc import Callable

from rvllm_local.models.progress import amounts_in
from rvllm_local.tui.status import bar

_BAR_WIDTH = 12
PART_GAP = " · "
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
        """The line to show once the process has printed `text`.

        Its parts are joined by " · ", the most important first.
        """
        if text != self._last_text:
            self._last_text, self._last_at = text, self._clock()
        amounts = amounts_in(text)
        if amounts is None:
            parts = [_beginning(self._name, text), self._silence()]
        else:
            came, size = amounts
            parts = self._parts(came, size or self._size)
        return PART_GAP.join(part for part in parts if part)

    def _parts(
        self,
        came: float,
        size: float | None,
    ) -> list[str]:
        """What is known of a download of which some bytes have come."""
        speed = self._speed(came)
        silence = self._silence()
        left = pace = amount = share = ""
        if size:
            part = min(came / size, 1.0)
            share = f"{bar(part, _BAR_WIDTH)} {part:.0%}"
            amount = _share(came, size)
        else:
            amount = f"{came / 1e6:.0f} MB"
        if speed and not silence:
            pace = f"{speed / 1e6:.1f} MB/s"
            if size and size > came:
                left = f"{_duration((size - came) / speed)} left"
        return [f"fetching {self._name}", share, silence, left, amount, pace]

    def _silence(self) -> str:
        """For how long nothing has come, where that is long."""
        silence = self._clock() - self._last_at
        if silence < STALLED_S:
            return ""
        return f"nothing came for {_duration(silence)}"

    def _speed(self, came: float) -> float:
        """Bytes a second so far; 0 where that cannot be told yet."""
        if self._first is None:
            self._first = (self._last_at, came)
        began, before = self._first
        if self._last_at - began < 1.0:
            return 0.0
        return max(came - before, 0.0) / (self._last_at - began)


def _beginning(name: str, text: str) -> str:
    """The line while nothing has come yet; the process may say "fetching" itself."""
    if text.startswith("fetching"):
        return f"fetching {name}"
    return f"fetching {name}: {text}"


def forget_download(name: str) -> int:
    """Delete what has come of a model that is not whole; returns the bytes.

    Reads the catalogue; may take a moment.
    """
    from rvllm_local.models.store import forget_download as forget

    return forget(name)


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
