"""The keys that work now, in one row. A click presses one.

Textual's own footer makes a widget of each key anew whenever the focus moves, which
styles and lays out the whole screen. This row is drawn again only if its keys differ.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from rich.text import Text
from textual import events
from textual.app import App
from textual.screen import Screen
from textual.widget import Widget

_KEY = "key-line--key"
_WORDS = "key-line--words"
_UNDER = "key-line--under"


@dataclass(frozen=True, slots=True)
class ShownKey:
    """A key, how it is written, and what it does."""

    key: str
    display: str
    words: str
    is_enabled: bool

    @property
    def width(self) -> int:
        """Cells of the row: a blank at each side of the key, one after the words."""
        return len(self.display) + 2 + len(self.words) + 1


class KeyLine(Widget, can_focus=False):
    """One row with the bindings of the screen that are to be shown."""

    ALLOW_SELECT = False
    COMPONENT_CLASSES: ClassVar[set[str]] = {_KEY, _WORDS, _UNDER}
    DEFAULT_CSS = """
    KeyLine {
        dock: bottom;
        height: 1;
        text-wrap: nowrap;
        color: $footer-foreground;
        background: $footer-background;
    }
    KeyLine .key-line--key {
        color: $footer-key-foreground;
        background: $footer-key-background;
        text-style: bold;
    }
    KeyLine .key-line--words {
        color: $footer-description-foreground;
        background: $footer-description-background;
    }
    KeyLine .key-line--under {
        color: $footer-key-foreground;
        background: $block-hover-background;
    }
    """

    def __init__(self) -> None:
        super().__init__()
        self._keys: tuple[ShownKey, ...] = ()
        self._under: ShownKey | None = None  # the pointer

    def on_mount(self) -> None:
        """Hear of the keys of this screen."""
        self.screen.bindings_updated_signal.subscribe(self, self._show_keys)

    def on_unmount(self) -> None:
        """Hear no more."""
        self.screen.bindings_updated_signal.unsubscribe(self)

    def render(self) -> Text:
        """The row, with the keys that it has room for."""
        row = Text(no_wrap=True, overflow="crop")
        for shown in fitting(self._keys, self.size.width):
            key_style = self.get_component_rich_style(_KEY)
            words_style = self.get_component_rich_style(_WORDS)
            if shown == self._under:
                words_style = self.get_component_rich_style(_UNDER)
                key_style += words_style
            piece = Text.assemble(
                (f" {shown.display} ", key_style), (f"{shown.words} ", words_style)
            )
            if not shown.is_enabled:
                piece.stylize("dim")
            row.append_text(piece)
        return row

    def on_mouse_down(self, event: events.MouseDown) -> None:
        """Press the key that was clicked."""
        shown = self._at(event.x)
        if shown is None:
            return
        if shown.is_enabled:
            self.app.simulate_key(shown.key)
        else:
            self.app.bell()

    def on_mouse_move(self, event: events.MouseMove) -> None:
        """Mark the key under the pointer."""
        self._mark(self._at(event.x))

    def on_leave(self) -> None:
        """Mark none."""
        self._mark(None)

    def _mark(self, shown: ShownKey | None) -> None:
        if shown != self._under:
            self._under = shown
            self.refresh()

    def _at(self, x: int) -> ShownKey | None:
        """The key in this column of the row."""
        for shown in fitting(self._keys, self.size.width):
            if x < shown.width:
                return shown
            x -= shown.width
        return None

    def _show_keys(self, screen: Screen[object]) -> None:
        if screen is not self.screen or not self.app.app_focus:
            return
        keys = shown_keys(self.app, screen)
        if keys != self._keys:
            self._keys = keys
            self.refresh()


def fitting(keys: Sequence[ShownKey], width: int) -> list[ShownKey]:
    """The keys that fit into a row, whole: the last one, and the first of the others.

    The last is the help, which tells the ones left out.
    """
    if not keys:
        return []
    *others, last = keys
    room = width - last.width
    kept = []
    for shown in others:
        room -= shown.width
        if room < 0:
            break
        kept.append(shown)
    return [*kept, last]


def shown_keys(app: App[object], screen: Screen[object]) -> tuple[ShownKey, ...]:
    """The bindings to be shown, the first one of each action."""
    by_action: dict[str, ShownKey] = {}
    for _, binding, is_enabled, _ in screen.active_bindings.values():
        if binding.show and binding.action not in by_action:
            display = app.get_key_display(binding)
            by_action[binding.action] = ShownKey(
                binding.key, display, binding.description, is_enabled
            )
    return tuple(by_action.values())
