"""The dialog that compares two answers and asks which one the chat goes on from."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.widget import Widget
from textual.widgets import Static

from rvllm_local.tui.screens.dialogs import Dialog

REFRESH_S = 1 / 8
NARROW = 70  # columns; below, the answers stand one over the other


class CompareScreen(Dialog):
    """Answers with 1 or 2, the answer that the chat goes on from; None is 1.

    `answers` shows the two, and `refresh` brings it up to date.
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("1", "choose(1)", "Left", id="compare.left", priority=True),
        Binding("2", "choose(2)", "Right", id="compare.right", priority=True),
    ]

    def __init__(self, answers: Widget, refresh: Callable[[], None]) -> None:
        super().__init__()
        self._answers, self._bring_up_to_date = answers, refresh

    def compose(self) -> ComposeResult:
        with Vertical(classes="compare"):
            yield self._answers
            note = "1 or 2 goes on with that answer; both are kept   Esc keeps 1"
            yield Static(note, classes="note", markup=False)

    def on_mount(self) -> None:
        self.set_class(self.app.size.width < NARROW, "stacked")
        self.set_interval(REFRESH_S, self._bring_up_to_date)
        self._bring_up_to_date()

    def action_choose(self, number: int) -> None:
        """Go on with one of the answers."""
        self.dismiss(number)
