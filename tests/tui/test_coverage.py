"""Nothing that a person can press, type or open is without a test: the registry and the dialogs against the tests."""

from __future__ import annotations

import ast
import inspect
import pkgutil
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest
from textual.binding import Binding
from textual.screen import Screen

from rvllm_local.tui import screens
from rvllm_local.tui.commands import COMMANDS

SOURCES = [
    Path(__file__).with_name(f"{name}.py")
    for name in (
        "test_app",
        "test_download_actions",
        "test_several",
        "test_shelf",
        "test_writing",
    )
]
TREES = [ast.parse(path.read_text()) for path in SOURCES if path.exists()]


def words() -> set[str]:
    """Every piece of text in the tests of the app: keys are pressed and commands typed by such."""
    nodes = (node for tree in TREES for node in ast.walk(tree))
    return {
        node.value
        for node in nodes
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }


def dialogs() -> Iterator[type[Screen[object]]]:
    for module in pkgutil.iter_modules(screens.__path__, f"{screens.__name__}."):
        for _, found in inspect.getmembers(import_module(module.name), inspect.isclass):
            if (
                issubclass(found, Screen)
                and found.__module__ == module.name
                and found.__name__ != "Dialog"
            ):
                yield found


KEYS = [
    (command.id, key) for command in COMMANDS for key in command.keys.split(",") if key
]
KEYS += [
    (binding.id, key)
    for screen in dialogs()
    for binding in vars(screen).get("BINDINGS", ())
    if isinstance(binding, Binding)
    for key in binding.key.split(",")
]


@pytest.mark.parametrize(("id", "key"), KEYS)
def test_every_key_is_pressed_somewhere(id: str, key: str) -> None:
    assert key in words(), f"no test presses {key}, which does {id}"


@pytest.mark.parametrize(
    "command", [one for one in COMMANDS if one.slash], ids=lambda one: one.slash
)
def test_every_slash_command_is_typed_somewhere(command) -> None:
    typed = {text.split()[0] for text in words() if text.startswith("/")}
    assert command.slash in typed, f"no test types {command.slash}"


@pytest.mark.parametrize("screen", list(dialogs()), ids=lambda one: one.__name__)
def test_every_dialog_is_opened_somewhere(screen) -> None:
    names = {
        node.id
        for tree in TREES
        for node in ast.walk(tree)
        if isinstance(node, ast.Name)
    }
    assert screen.__name__ in names, f"no test waits for {screen.__name__}"
