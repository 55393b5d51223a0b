"""Which of the other ranks answer when they are called, and which have said why they end."""

from __future__ import annotations

import itertools
import threading


class Attendance:
    """The answers to roll calls. For any thread."""

    def __init__(self, ranks: range) -> None:
        self._ranks = ranks
        self._numbers = itertools.count(1)
        self._answered: dict[int, int] = {}  # the last call that a rank has answered
        self._failed: set[int] = set()
        self._is_over = False
        self._changed = threading.Condition()

    def next_number(self) -> int:
        """The number of a new call."""
        return next(self._numbers)

    def note_present(self, rank: int, number: int) -> None:
        """A rank has answered the call of this number."""
        with self._changed:
            self._answered[rank] = number
            self._changed.notify_all()

    def note_failed(self, rank: int) -> None:
        """A rank has said why it ends: it answers no more."""
        with self._changed:
            self._failed.add(rank)
            self._changed.notify_all()

    def has_failed(self, rank: int) -> bool:
        """True if a rank has said why it ends."""
        return rank in self._failed

    def end(self) -> None:
        """Nobody has to answer any more."""
        with self._changed:
            self._is_over = True
            self._changed.notify_all()

    def wait(self, number: int) -> None:
        """Return when each rank has answered the call, or has said why it ends."""
        with self._changed:
            self._changed.wait_for(lambda: self._is_complete(number))

    def _is_complete(self, number: int) -> bool:
        if self._is_over:
            return True
        for rank in self._ranks:
            is_present = self._answered.get(rank, 0) >= number
            if not is_present and rank not in self._failed:
                return False
        return True
