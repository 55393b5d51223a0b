"""Standard streams that the caller closed are opened on nothing."""

from __future__ import annotations

import os
import sys


def open_closed_streams() -> None:
    """Give the process its three streams.

    Python has None for a closed one, which nothing expects. Its number would go to the
    next file that is opened, too, and take what is printed.
    """
    if sys.stdin is None:
        sys.stdin = os.fdopen(_nothing(os.O_RDONLY), encoding="utf-8")
    if sys.stdout is None:
        sys.stdout = os.fdopen(_nothing(os.O_WRONLY), "w", encoding="utf-8")
    if sys.stderr is None:
        sys.stderr = os.fdopen(_nothing(os.O_WRONLY), "w", encoding="utf-8")


def _nothing(mode: int) -> int:
    """The lowest free descriptor, which is the closed stream's."""
    return os.open(os.devnull, mode)


def drop_output() -> None:
    """Send what is still buffered nowhere: whoever read our output has gone."""
    os.dup2(_nothing(os.O_WRONLY), sys.stdout.fileno())
