"""What can be done, and by which keys: made from the registry."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from textual.containers import Vertical, VerticalScroll
from textual.content import Content
from textual.widgets import Static

from rvllm_local.tui.columns import column_widths, padded
from rvllm_local.tui.commands import COMMANDS
from rvllm_local.tui.keymap import shown_keys
from rvllm_local.tui.screens.dialogs import Dialog

_SCOPES = {
    "composer": "While writing",
    "transcript": "On a message (Alt+Up and Alt+Down choose one)",
    "app": "Anywhere",
}


class HelpScreen(Dialog):
    """Every command with its keys and its slash command."""

    def __init__(self, keymap: Mapping[str, str]) -> None:
        super().__init__()
        self._keymap = keymap

    def compose(self) -> Any:
        with Vertical(classes="dialog help"):
            yield Static("Help", classes="title")
            with VerticalScroll():
                yield Static(help_content(self._keymap))
            yield Static(
                "Keys can be remapped in chat.toml.   Esc closes", classes="note"
            )

    def on_mount(self) -> None:
        self.query_one(VerticalScroll).focus()


_IN_A_PROMPT = (
    ("@path", "attaches a text file, or the text of a PDF"),
    ("@folder/", "attaches the text files below a folder"),
    ("@https://...", "attaches the text of a page"),
    ("//", "begins a prompt that begins with a slash"),
    ("\\ and Enter", "begins a new line, in every terminal"),
)


def _prompt_lines() -> list[Content]:
    """What a prompt can name."""
    lines = []
    for sign, meaning in _IN_A_PROMPT:
        lines.append(Content.assemble((f"{sign:<16} ", "bold"), meaning))
    return lines


def _command_lines(scope: str, keymap: Mapping[str, str]) -> list[Content]:
    """The commands of a scope in columns: keys, slash command, what it does."""
    commands = [command for command in COMMANDS if command.scope == scope]
    rows = []
    for command in commands:
        slash = f"{command.slash} {command.argument}".strip()
        rows.append([shown_keys(command.id, keymap), slash])
    widths = column_widths(rows)
    lines = []
    for command, (keys, slash) in zip(commands, rows, strict=True):
        line = Content.styled(padded(keys, widths[0]), "bold")
        if widths[1]:
            line = Content.assemble(line, "  ", (padded(slash, widths[1]), "$muted"))
        lines.append(Content.assemble(line, "  ", command.title))
    return lines


def help_content(keymap: Mapping[str, str]) -> Content:
    """The table of commands."""
    lines = [
        Content.styled("In a prompt", "bold $primary"),
        *_prompt_lines(),
    ]
    for scope, title in _SCOPES.items():
        lines += [Content(""), Content.styled(title, "bold $primary")]
        lines += _command_lines(scope, keymap)
    return Content("\n").join(lines)
