"""What the terminal itself is told: its title, and that a long reply has ended.

Knows escape sequences and no widget. Text from outside is cleaned before it is sent.
"""

from __future__ import annotations

from collections.abc import Callable

from rvllm_local.tui.sanitise import clean_line

LONG_S = 10.0  # a reply that took less is not announced
_PUSH_TITLE, _POP_TITLE = "\x1b[22;2t", "\x1b[23;2t"
_NAME = "rvllm"
_WRITING = "✳"


class Announcer:
    """`kind` is how the end of a reply is told: bell, osc9, osc777, or None for not."""

    def __init__(
        self,
        kind: str | None,
        write: Callable[[str], None],
    ) -> None:
        self.kind = kind
        self.write = write
        self._title: str | None = None
        self._began: dict[str, float] = {}

    def set_title(
        self,
        title: str,
        is_writing: bool,
    ) -> None:
        """Name the chat in the terminal's title, with a sign while a reply is written."""
        text = clean_line(title, 60) or _NAME
        if is_writing:
            text = f"{_WRITING} {text}"
        if text == self._title:
            return
        if self._title is None:
            self.write(_PUSH_TITLE)
        self._title = text
        self.write(f"\x1b]2;{text}\x07")

    def restore_title(self) -> None:
        """Give the terminal the title back that it had before."""
        if self._title is not None:
            self._title = None
            self.write(_POP_TITLE)

    def note_start(
        self,
        reply_id: str,
        began: float,
    ) -> None:
        """A reply is being written since then, in seconds."""
        self._began[reply_id] = min(began, self._began.get(reply_id, began))

    def reply_ended(
        self,
        reply_id: str,
        at: float,
        title: str,
        is_looked_at: bool,
    ) -> None:
        """Tell that a reply has ended, if it was long and nobody looks at it."""
        began = self._began.pop(reply_id, at)
        if self.kind is None or is_looked_at or at - began < LONG_S:
            return
        name = clean_line(title, 60).replace(";", ",") or _NAME
        words = f"{name}: the answer is there"
        if self.kind == "osc9":
            self.write(f"\x1b]9;{words}\x07")
        elif self.kind == "osc777":
            self.write(f"\x1b]777;notify;{_NAME};{words}\x07")
        else:
            self.write("\x07")
