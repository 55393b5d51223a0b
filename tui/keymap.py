"""Keys: the bindings of the registry, and what a person remapped in chat.toml.

Knows the registry and Textual's `Binding`. A remapping that cannot work is refused with
its reason.
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
    "pageup": "PgUp",
    "pagedown": "PgDn",
    "delete": "Del",
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
    owners = {}
    for command in COMMANDS:
        if command.id not in keys:
            for key in _split(command.keys):
                owners[key] = command.id
    checked = {}
    for name, value in keys.items():
        _check_name(name)
        new_keys = _split(str(value))
        if not all(new_keys) or not new_keys:
            raise ConfigError(f'[keys] {name} has an empty key; write it like "ctrl+y"')
        for key in new_keys:
            _check_key(name, key, owners.get(key))
            owners[key] = name
        checked[name] = ",".join(new_keys)
    return checked


def _split(keys: str) -> list[str]:
    """The keys of a list that is joined by commas."""
    return [key.strip() for key in keys.split(",")]


def _check_name(name: str) -> None:
    command = BY_ID.get(name)
    if command is not None and (command.keys or command.scope == "app"):
        return
    near = difflib.get_close_matches(name, BY_ID, 1)
    hint = f"; did you mean {near[0]}?" if near else ""
    raise ConfigError(f"[keys] names {name!r}, which is no command{hint}")


def _check_key(
    name: str,
    key: str,
    owner: str | None,
) -> None:
    """Refuse a key that terminals confuse, or that another command has."""
    if key in _SAME_AS:
        same = _SAME_AS[key]
        raise ConfigError(
            f"[keys] {name}: {key} is the same as {same} on many terminals;"
            " take another"
        )
    if owner is not None and BY_ID[owner].scope in (BY_ID[name].scope, "app"):
        raise ConfigError(
            f"[keys] {name}: {key} already belongs to {owner}; remap that too"
        )


def shown_keys(command_id: str, keymap: Mapping[str, str]) -> str:
    """A command's keys as people write them."""
    keys = keymap.get(command_id, BY_ID[command_id].keys)
    return ", ".join(_shown_key(key) for key in keys.split(",") if key)


def _shown_key(key: str) -> str:
    *modifiers, last = key.split("+")
    name = _NAMES.get(last, last)
    is_letter = bool(modifiers) and len(last) == 1
    if is_letter or re.fullmatch(r"f\d+", last):
        name = last.upper()
    elif last not in _NAMES and len(name) > 1:
        name = name.capitalize()
    words = [modifier.capitalize() for modifier in modifiers]
    return "+".join([*words, name])
