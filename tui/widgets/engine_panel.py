"""The engine at work, beside the chat: block map, queue, counters and memory."""

from __future__ import annotations

from textual.containers import VerticalScroll
from textual.content import Content
from textual.widgets import Static

from rvllm_local.tui.state import EngineView
from rvllm_local.tui.status import engine_lines

_CELLS = {
    "f": ("·", "$muted"),
    "u": ("█", "$primary"),
    "s": ("█", "$accent"),
    "c": ("▒", "$secondary"),
}
_STYLES = {"title": "bold", "muted": "$muted", "": ""}


class EnginePanel(VerticalScroll, can_focus=False):
    """Shows an `EngineView`; hidden until asked for."""

    def __init__(self) -> None:
        super().__init__(id="engine")
        self._body = Static("", markup=False)
        self.display = False

    def compose(self):  # type: ignore[no-untyped-def]
        yield self._body

    def show(self, view: EngineView | None) -> None:
        """Show a look at the engine."""
        width = max(16, (self.size.width or 38) - 3)
        parts: list[Content] = []
        for text, style in engine_lines(view, width):
            if style == "map":
                parts.append(Content.assemble(*(_CELLS[letter] for letter in text)))
            else:
                parts.append(Content.styled(text, _STYLES[style]))
        if view is not None:
            legend = [
                (_CELLS[letter], f" {name}  ")
                for letter, name in zip(
                    "fusc", ("free", "used", "shared", "cached"), strict=True
                )
            ]
            parts.append(Content(""))
            parts.append(
                Content.assemble(*(piece for pair in legend for piece in pair))
            )
        self._body.update(Content("\n").join(parts))
