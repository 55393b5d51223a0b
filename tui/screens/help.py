"""What can be done, and by which keys: made from the registry."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from textual.containers import Vertical, VerticalScroll
from textual.content import Content
from textual.widgets import Static

from rvllm_local.tui.commands import COMMANDS
from rvllm_local.tui.keymap import shown_keys
from rvllm_local.tui.screens.dialogs import Dialog

_SCOPES = {
    "app": "Anywhere",
    "composer": "While writing",
    "transcript": "On a message (Alt+Up and Alt+Down choose one)",
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


def help_content(keymap: Mapping[str, str]) -> Content:
    """The table of commands."""
    lines: list[Content] = []
    for scope, title in _SCOPES.items():
        lines += [Content(""), Content.styled(title, "bold $primary")]
        for command in COMMANDS:
            if command.scope == scope:
                slash = f"{command.slash} {command.argument}".strip()
                keys = shown_keys(command.id, keymap)
                lines.append(
                    Content.assemble(
                        (f"{keys:<16} ", "bold"),
                        (f"{slash:<20} ", "$muted"),
                        command.title,
                    )
                )
    lines += [
        Content(""),
        Content(
            "@path in a prompt attaches a text file. // begins a prompt with a slash."
        ),
    ]
    return Content("\n").join(lines[1:])
