"""The last lines that a child has written to stderr.

A pipe keeps what a process wrote before its end. So who has seen the end reads all of it
at once, without waiting for a thread, or for others that hold the pipe as well.
"""

from __future__ import annotations

import collections
import logging
import os
import selectors
import threading
from typing import IO

logger = logging.getLogger(__name__)

_LINES, _CHARS = 50, 500
_PIECE = 4096  # bytes; a longer line is cut
_MOST_PIECES = 1024  # at once: more than a pipe holds


class ErrorLines:
    """Takes a pipe over, and closes it at its end. For any thread."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self._lock = threading.Lock()
        self._is_over = False
        self._unfinished = b""
        self._lines: collections.deque[str] = collections.deque(maxlen=_LINES)
        os.set_blocking(stream.fileno(), False)

    def keep(self) -> None:
        """Read whatever is written, until nobody can write any more."""
        with selectors.DefaultSelector() as selector, self._stream:
            selector.register(self._stream, selectors.EVENT_READ)
            while not self._is_over:
                selector.select()
                self.read()

    def read(self) -> None:
        """Read what was written before this call; does not wait."""
        with self._lock:
            for _ in range(_MOST_PIECES):
                if self._is_over or not self._read_piece():
                    return

    def clear(self) -> None:
        """Forget what was written so far."""
        self.read()
        self._lines.clear()

    def last(self, count: int) -> list[str]:
        """So many lines at most, the latest ones."""
        return list(self._lines)[-count:]

    def _read_piece(self) -> bool:
        """False if there is nothing more now."""
        try:
            piece = os.read(self._stream.fileno(), _PIECE)
        except BlockingIOError:
            return False
        self._is_over = not piece
        lines = (self._unfinished + piece).split(b"\n")
        self._unfinished = b""
        if piece and len(lines[-1]) < _PIECE:
            self._unfinished = lines.pop()
        for line in lines:
            self._note(line)
        return True

    def _note(self, line: bytes) -> None:
        letters = line.decode(errors="replace")
        text = "".join([letter for letter in letters if letter.isprintable()])
        text = text.strip()[:_CHARS]
        if text.startswith("[ring]"):  # MLX, of each byte that a lost peer owes
            logger.debug("engine: %s", text)
        elif text:
            self._lines.append(text)
            logger.warning("engine: %s", text)
