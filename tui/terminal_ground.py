"""The terminal's ground, light or dark, found by asking it, and how many colours it has.

Most terminals answer OSC 11 with their colour. A question that all of them answer comes
after it, so that nobody waits for one that does not know OSC 11.
"""

from __future__ import annotations

import contextlib
import os
import re
import select
import time
from typing import IO

from rich.console import Console

ANSWER_S = 0.3  # a terminal far away, over SSH, may take so long
_QUESTION = b"\x1b]11;?\x1b\\\x1b[c"
_END = re.compile(rb"\x1b\[\?[\d;]*c")
_COLOUR = re.compile(rb"\x1b\]11;rgba?:([0-9a-fA-F/]+)")
_LIGHT = 0.5  # of the brightest


def ask_ground(source: IO[str], out: IO[str]) -> str | None:
    """ "light" or "dark"; None where the terminal does not say."""
    if not (source.isatty() and out.isatty()):
        return None
    import termios
    import tty

    try:
        before = termios.tcgetattr(source)
    except termios.error:
        return None
    try:
        tty.setcbreak(source)
        os.write(out.fileno(), _QUESTION)
        answer = _read_answer(source.fileno())
    except OSError:
        return None
    finally:
        with contextlib.suppress(termios.error):
            termios.tcsetattr(source, termios.TCSADRAIN, before)
    return ground_of(answer)


def ground_of(answer: bytes) -> str | None:
    """What a terminal's answer means."""
    match = _COLOUR.search(answer)
    if match is None:
        return None
    parts = match[1].split(b"/")[:3]
    if len(parts) < 3 or not all(parts):
        return None
    shares = []
    for part in parts:
        shares.append(int(part, 16) / (16 ** len(part) - 1))
    red, green, blue = shares
    brightness = 0.2126 * red + 0.7152 * green + 0.0722 * blue
    return "light" if brightness > _LIGHT else "dark"


def has_sixteen_colours(out: IO[str]) -> bool:
    """Whether the terminal says that it has no more colours."""
    return Console(file=out).color_system == "standard"


def _read_answer(descriptor: int) -> bytes:
    """What comes until the last answer, or until it is too late."""
    answer = b""
    ends_at = time.monotonic() + ANSWER_S
    while not _END.search(answer):
        left = ends_at - time.monotonic()
        if left <= 0:
            break
        ready, _, _ = select.select([descriptor], [], [], left)
        if not ready:
            break
        part = os.read(descriptor, 1024)
        if not part:
            break
        answer += part
    return answer
