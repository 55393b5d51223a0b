"""Keys: the bindings of the registry, and what a person remapped in chat.toml.

Knows the registry and Textual's `Binding`; a remapping that cannot work is refused with its reason.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping

from textual.binding import Binding, BindingType

from rvllm_local.errors import ConfigError
from rvllm_local.tui.commands import BY_ID, COMMANDS

# On plain terminals these are other keys: tab, enter, backspace and escape.
_SAME_AS = {
    "ctrl+i": "tab",
    "ctrl+m": "enter",
    "ctrl+h": "backspace",
    "ctrl+left_square_bracket": "escape",
}
_NAMES = {
    "left_square_bracket": "[",
    "right_square_bracket": "]",
    "escape": "Esc",
    "enter": "Enter",
}
_IN_FOOTER = {
    "help.open": "Help",
    "palette.open": "Commands",
    "chat.new": "New",
    "chat.list": "Chats",
    "model.pick": "Models",
    "chat.parameters": "Parameters",
    "engine.toggle": "Engine",
}


def bindings(scope: str) -> list[BindingType]:
    """The bindings of one scope, each with its id."""
    rows: list[BindingType] = []
    for command in COMMANDS:
        if command.scope != scope or not command.keys:
            continue
        is_own = command.home == scope
        rows.append(
            Binding(
                command.keys,
                command.action if is_own else f"do('{command.id}')",
                _IN_FOOTER.get(command.id, command.title),
                id=command.id,
                show=command.id in _IN_FOOTER,
                priority=scope != "transcript",
            )
        )
    return rows


def check_keymap(keys: Mapping[str, str]) -> dict[str, str]:
    """A remapping from command ids to keys, checked. Raises `ConfigError`."""
    taken = {
        key: command.id
        for command in COMMANDS
        for key in command.keys.split(",")
        if key and command.id not in keys
    }
    for name, value in keys.items():
        if name not in BY_ID or (not BY_ID[name].keys and BY_ID[name].scope != "app"):
            near = difflib.get_close_matches(name, BY_ID, 1)
            raise ConfigError(
                f"[keys] names {name!r}, which is no command{f'; did you mean {near[0]}?' if near else ''}"
            )
        for key in [one.strip() for one in str(value).split(",")]:
            if not key:
                raise ConfigError(
                    f'[keys] {name} has an empty key; write it like "ctrl+y"'
                )
            if key in _SAME_AS:
                raise ConfigError(
                    f"[keys] {name}: {key} is the same as {_SAME_AS[key]} on many terminals; take another"
                )
            if (other := taken.get(key)) and BY_ID[other].scope in (
                BY_ID[name].scope,
                "app",
            ):
                raise ConfigError(
                    f"[keys] {name}: {key} already belongs to {other}; remap that too"
                )
            taken[key] = name
    return {
        name: ",".join(key.strip() for key in str(value).split(","))
        for name, value in keys.items()
    }


def shown_keys(command_id: str, keymap: Mapping[str, str]) -> str:
    """A command's keys as people write them."""
    keys = keymap.get(command_id, BY_ID[command_id].keys)
    return ", ".join(_shown_key(key) for key in keys.split(",") if key)


def _shown_key(key: str) -> str:
    *modifiers, last = key.split("+")
    name = _NAMES.get(
        last,
        last.upper()
        if (modifiers and len(last) == 1) or re.fullmatch(r"f\d+", last)
        else last,
    )
    name = name.capitalize() if len(name) > 1 else name
    return "+".join([*(one.capitalize() for one in modifiers), name])
