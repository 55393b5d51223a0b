"""The small dialogs: pick one of a list, answer a question, confirm."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from rich.cells import cell_len
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.content import Content
from textual.screen import ModalScreen
from textual.widgets import Input, OptionList, Static
from textual.widgets.option_list import Option

from rvllm_local.tui.ordered_keys import OrderedInput
from rvllm_local.tui.sanitise import clean, clean_line

LEAST_NAME_WIDTH = 16
FRAME = 6  # cells at the sides of a list, its scrollbar among them
MOST_ROWS = 18  # of a list
HEIGHT = 0.9  # of the terminal, as in the style sheet
AROUND_ROWS = 6  # rows of a dialog beside its list and its note
NOTE_LENGTH = 160  # characters
_ONE_LINE = {ord("\n"): " ", ord("\t"): " "}


@dataclass(frozen=True, slots=True)
class Choice:
    """A row of a list: its value, its name, and what else is to be known."""

    value: str
    name: str
    note: str = ""


class Dialog(ModalScreen[Any]):
    """A box in the middle; Esc closes it without an answer."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding(
            "escape",
            "close",
            "Close",
            id="dialog.close",
            priority=True,
        )
    ]
    TITLE_TEXT = ""

    def action_close(self) -> None:
        """Close without an answer."""
        self.dismiss(None)


class Pick(Dialog):
    """A list that narrows as one types; the answer is the chosen row's value."""

    WIDTH = 84  # cells at most, as in the style sheet

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding(
            "down",
            "move(1)",
            "Down",
            id="dialog.down",
            priority=True,
            show=False,
        ),
        Binding(
            "up",
            "move(-1)",
            "Up",
            id="dialog.up",
            priority=True,
            show=False,
        ),
    ]

    def __init__(
        self,
        title: str,
        choices: Sequence[Choice],
        note: str = "",
        words: str = "",
    ) -> None:
        super().__init__()
        self._title, self._note, self._words = title, note, words
        self._choices = list(choices)

    def compose(self) -> Any:
        with Vertical(classes="dialog"):
            yield Static(self._title, classes="title", markup=False)
            yield OrderedInput(self._words, placeholder="type to narrow", id="filter")
            yield OptionList(markup=False)
            yield Static(self._note, classes="note", markup=False)

    def on_mount(self) -> None:
        self.query_one(OptionList).can_focus = False
        self.query_one(Input).focus()
        self.refill()

    def on_resize(self) -> None:
        """Leave room for the note, which tells the keys."""
        note_rows = 0
        for line in self._note.split("\n"):
            note_rows += max(1, math.ceil(cell_len(line) / self._width))
        room = int(self.app.size.height * HEIGHT) - AROUND_ROWS - note_rows
        rows = self.query_one(OptionList)
        rows.styles.max_height = max(1, min(room, MOST_ROWS))

    @property
    def _width(self) -> int:
        """Cells of a row."""
        return max(1, min(self.app.size.width, self.WIDTH) - FRAME)

    def on_input_changed(self, _event: Input.Changed) -> None:
        self.refill()

    def matching(self, words: str) -> Sequence[Choice]:
        """The rows for what was typed."""
        parts = words.lower().split()
        matching = []
        for choice in self._choices:
            text = f"{choice.name} {choice.note}".lower()
            if all(part in text for part in parts):
                matching.append(choice)
        return matching

    def refill(self) -> None:
        """Show the rows that match."""
        rows = self.query_one(OptionList)
        words = self.query_one(Input).value
        choices = self.matching(words)
        width = _name_width(choices, self._width)
        options = []
        for index, choice in enumerate(choices):
            options.append(Option(row(choice, width), id=f"{index}:{choice.value}"))
        if not options:
            options = [Option(Content.styled("nothing found", "$muted"), disabled=True)]
        rows.clear_options()
        rows.add_options(options)
        if choices:
            rows.highlighted = 0

    @property
    def highlighted(self) -> str | None:
        """The value of the row that the cursor is on."""
        rows = self.query_one(OptionList)
        if rows.highlighted is None or not rows.option_count:
            return None
        return str(rows.get_option_at_index(rows.highlighted).id).split(":", 1)[1]

    def action_move(self, step: int) -> None:
        """Move the cursor."""
        rows = self.query_one(OptionList)
        if step > 0:
            rows.action_cursor_down()
        else:
            rows.action_cursor_up()

    def on_input_submitted(self, _event: Input.Submitted) -> None:
        self.dismiss(self.highlighted)

    def on_option_list_option_selected(self, event: OptionList.OptionSelected) -> None:
        self.dismiss(str(event.option.id).split(":", 1)[1])


def row(choice: Choice, width: int) -> Content:
    """A row of a list, its name in `width` cells if a note follows."""
    name = Content(_shown_name(choice))
    if not choice.note:
        return name
    if name.cell_length > width:
        name = name.truncate(width, ellipsis=True)
    note = clean(choice.note).translate(_ONE_LINE)[:NOTE_LENGTH]
    space = width - name.cell_length
    return Content.assemble(name.pad_right(space), "  ", (note, "$muted"))


def _shown_name(choice: Choice) -> str:
    """The name in one line; blanks before it are kept."""
    name = clean_line(choice.name, 70)
    blanks = len(choice.name) - len(choice.name.lstrip(" "))
    return " " * blanks + name


def _name_width(choices: Sequence[Choice], room: int) -> int:
    """The cells of the column of names; longer ones are cut.

    They have half of the room, and what the notes beside them leave.
    """
    widest = widest_note = 0
    for choice in choices:
        if choice.note:
            widest = max(widest, cell_len(_shown_name(choice)))
            widest_note = max(widest_note, cell_len(choice.note))
    left = room - 2 - widest_note
    return min(widest, max(left, room // 2, LEAST_NAME_WIDTH))


class Ask(Dialog):
    """A question with one line for an answer."""

    def __init__(
        self,
        question: str,
        answer: str = "",
        note: str = "",
    ) -> None:
        super().__init__()
        self._question, self._answer, self._note = question, answer, note

    def compose(self) -> Any:
        with Vertical(classes="dialog"):
            yield Static(self._question, classes="title", markup=False)
            yield OrderedInput(clean_line(self._answer, 1000))
            yield Static(self._note, classes="note", markup=False)

    def on_input_submitted(self, event: Input.Submitted) -> None:
        self.dismiss(event.value.strip() or None)


class Confirm(Dialog):
    """A question to be answered with y or n."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding(
            "y,enter",
            "answer(True)",
            "Yes",
            id="dialog.yes",
            priority=True,
        ),
        Binding(
            "n",
            "answer(False)",
            "No",
            id="dialog.no",
            priority=True,
        ),
    ]

    def __init__(self, question: str) -> None:
        super().__init__()
        self._question = question

    def compose(self) -> Any:
        with Vertical(classes="dialog"):
            yield Static(self._question, classes="title", markup=False)
            yield Static("y  yes     n  no", classes="note", markup=False)

    def action_answer(self, answer: bool) -> None:
        """Answer and close."""
        self.dismiss(answer)
