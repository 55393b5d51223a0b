"""Reads server-sent events: bytes in, the data of each event out. Knows no HTTP.

It serves all who read a stream: the benchmark, the HTTP client and the chat.
"""

from __future__ import annotations

DONE = b"[DONE]"  # the data that ends an OpenAI-style stream
EVENT_LIMIT = 16 * 2**20  # bytes
_LINE_LIMIT = 1000  # data lines of one event
_FIELDS = (b"data", b"event", b"id", b"retry")


class EventSizeError(ValueError):
    """An event is larger than the reader takes."""


class SseReader:
    """Takes a stream in pieces of any size. An event ends at an empty line.

    Data over several lines is joined by newlines. Whitespace around a line of data
    is dropped. Other fields and comments are skipped.

    `stray_line` is the first line that the protocol does not know, or None.
    """

    def __init__(self, limit: int = EVENT_LIMIT) -> None:
        self._limit = limit
        self._rest = bytearray()  # a line whose end has not come
        self._data: list[bytes] = []
        self._size = 0  # bytes in `_data`
        self._ended_in_return = False  # a newline may follow; it ends no other line
        self.stray_line: bytes | None = None

    @property
    def unfinished_line(self) -> bytes:
        """What has come of the current line."""
        return bytes(self._rest)

    def feed(self, piece: bytes) -> list[bytes]:
        """Return the data of the events that `piece` completes.

        Raises `EventSizeError` for an event above the limit.
        """
        if not piece:
            return []
        is_between_events = not (self._rest or self._data or self._ended_in_return)
        if is_between_events and _is_single_event(piece):
            self._check_size(len(piece))
            return [piece[5:].strip()]
        if self._ended_in_return and piece.startswith(b"\n"):
            piece = piece[1:]
        self._ended_in_return = piece.endswith(b"\r")
        self._rest += piece
        if b"\n" not in piece and b"\r" not in piece:
            self._check_size(len(self._rest))
            return []
        lines = bytes(self._rest).splitlines()
        self._rest.clear()
        if not piece.endswith((b"\n", b"\r")):
            self._rest += lines.pop()
        return self._take_lines(lines)

    def close(self) -> list[bytes]:
        """Return the data of an event whose empty line never came, if there is one."""
        lines = [bytes(self._rest), b""]
        self._rest.clear()
        return self._take_lines(lines)

    def _take_lines(self, lines: list[bytes]) -> list[bytes]:
        events = []
        for line in lines:
            if line:
                self._take_field(line)
            elif self._data:
                events.append(b"\n".join(self._data))
                self._data.clear()
                self._size = 0
        return events

    def _take_field(self, line: bytes) -> None:
        name, _, value = line.partition(b":")
        if name == b"data":
            self._check_size(len(value))
            self._size += len(value)
            self._data.append(value.strip())
        elif name and name not in _FIELDS and self.stray_line is None:
            self.stray_line = line

    def _check_size(self, added: int) -> None:
        if self._size + added > self._limit or len(self._data) >= _LINE_LIMIT:
            raise EventSizeError(
                f"an event of more than {self._limit} bytes or {_LINE_LIMIT} lines"
            )


def _is_single_event(piece: bytes) -> bool:
    """Whether `piece` is one event of one line of data: what most servers send."""
    if not piece.startswith(b"data:") or not piece.endswith(b"\n\n"):
        return False
    return piece.count(b"\n") == 2 and b"\r" not in piece
