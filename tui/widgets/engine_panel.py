"""The engine at work, beside the chat: memory, block map, requests, speed, counters."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping

from textual.app import ComposeResult
from textual.containers import VerticalScroll
from textual.content import Content
from textual.widgets import Static

from rvllm_local.tui.engine_text import PanelExtras, engine_lines
from rvllm_local.tui.state import EngineView, ReplyStats

REPLIES_KEPT = 60  # whose speed and wait are drawn
_CELLS = {
    "f": ("·", "$muted"),
    "u": ("█", "$primary"),
    "s": ("█", "$accent"),
    "c": ("▒", "$secondary"),
}
_LEGEND = {"f": "free", "u": "used", "s": "shared", "c": "cached"}
_STYLES = {"title": "bold", "muted": "$muted", "memory": "$primary", "": ""}


class EnginePanel(VerticalScroll, can_focus=False):
    """Shows an `EngineView`; hidden until asked for."""

    def __init__(self) -> None:
        super().__init__(id="engine")
        self._body = Static("", markup=False)
        self._view: EngineView | None = None
        self._names: Mapping[str, str] = {}
        self._speeds: deque[float] = deque(maxlen=REPLIES_KEPT)
        self._waits: deque[float] = deque(maxlen=REPLIES_KEPT)
        self.is_more = False
        self.display = False

    def compose(self) -> ComposeResult:
        yield self._body

    def show(
        self,
        view: EngineView | None,
        names: Mapping[str, str] | None = None,
    ) -> None:
        """Show a look at the engine; `names` are the chats' titles by request."""
        self._view = view
        self._names = names or {}
        self._draw()

    def note(self, stats: ReplyStats) -> None:
        """A reply has ended; its speed and wait are drawn from now on."""
        if stats.tokens_per_second is not None:
            self._speeds.append(stats.tokens_per_second)
        if stats.ttft is not None:
            self._waits.append(stats.ttft)

    def toggle_more(self) -> None:
        """Show the counters, or hide them."""
        self.is_more = not self.is_more
        self._draw()

    def _draw(self) -> None:
        view = self._view
        width = max(16, (self.size.width or 38) - 3)
        extras = PanelExtras(
            self._names, list(self._speeds), list(self._waits), self.is_more
        )
        parts: list[Content] = []
        for text, style in engine_lines(view, width, extras):
            if style == "map":
                cells = [_CELLS[letter] for letter in text]
                parts.append(Content.assemble(*cells))
            else:
                parts.append(Content.styled(text, _STYLES[style]))
        if view is not None:
            parts.append(_legend())
        self._body.update(Content("\n").join(parts))


def _legend() -> Content:
    pieces: list[str | tuple[str, str]] = []
    for letter, name in _LEGEND.items():
        pieces.append(_CELLS[letter])
        pieces.append(f" {name}  ")
    return Content.assemble(*pieces)
