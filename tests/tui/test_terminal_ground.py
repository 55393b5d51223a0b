"""The terminal is asked for its ground, and its answer is read with distrust."""

from __future__ import annotations

import io
import os
import pty
import threading

import pytest

from rvllm_local.tui import terminal_ground
from rvllm_local.tui.terminal_ground import (
    ask_ground,
    ground_of,
    has_sixteen_colours,
)
from rvllm_local.tui.themes import fitting_theme


@pytest.mark.parametrize(
    ("answer", "ground"),
    [
        (b"\x1b]11;rgb:ffff/ffff/ffff\x1b\\\x1b[?62;22c", "light"),
        (b"\x1b]11;rgb:1616/1818/1c1c\x07\x1b[?1;2c", "dark"),
        (b"\x1b]11;rgb:f/f/e\x07", "light"),
        (b"\x1b]11;rgba:00/00/00/ff\x07", "dark"),
        (b"\x1b[?1;2c", None),
        (b"\x1b]11;rgb:ffff\x07", None),
        (b"\x1b]11;rgb://\x07", None),
        (b"", None),
    ],
)
def test_what_an_answer_means(answer: bytes, ground: str | None) -> None:
    assert ground_of(answer) == ground


def test_a_terminal_is_asked_and_left_as_it_was(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import termios

    monkeypatch.setattr(terminal_ground, "ANSWER_S", 60.0)  # this machine may be busy
    controller, terminal = pty.openpty()

    def answer() -> None:
        asked = b""
        while b"\x1b[c" not in asked:
            asked += os.read(controller, 100)
        os.write(controller, b"\x1b]11;rgb:ffff/ffff/f0f0\x1b\\\x1b[?62c")

    before = termios.tcgetattr(terminal)
    answering = threading.Thread(target=answer)
    answering.start()
    with os.fdopen(os.dup(terminal)) as source, os.fdopen(terminal, "w") as out:
        assert ask_ground(source, out) == "light"
        assert termios.tcgetattr(source) == before
    answering.join()
    os.close(controller)


def test_who_is_no_terminal_is_not_asked() -> None:
    out = io.StringIO()
    assert ask_ground(io.StringIO(), out) is None
    assert out.getvalue() == ""


@pytest.mark.parametrize(
    ("variables", "theme"),
    [
        ({"TERM": "xterm"}, "terminal"),
        ({"TERM": "xterm-256color"}, "dark"),
        ({"TERM": "xterm", "COLORTERM": "truecolor"}, "dark"),
    ],
)
def test_sixteen_colours_are_the_terminals_own(
    variables: dict[str, str], theme: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("COLORTERM", raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    controller, terminal = pty.openpty()
    with os.fdopen(terminal, "w") as out:
        assert fitting_theme(None, has_sixteen_colours(out)) == theme
        is_sixteen = has_sixteen_colours(out)
    light = fitting_theme("light", is_sixteen)
    assert light == ("terminal-light" if is_sixteen else "light")
    os.close(controller)
