"""Ctrl-C ends a command, whatever a library does with the exception."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Iterator
from types import FrameType
from typing import NoReturn

_INTERRUPTED = 130
# An interrupt that has not ended the process by then was caught by somebody else.
_SWALLOWED_S = 3.0


@contextlib.contextmanager
def insisting_interrupts() -> Iterator[None]:
    """End the process at Ctrl-C even where a library catches every exception.

    Some do while they are imported. An interrupt that is ignored stays ignored.
    """

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        signal.setitimer(signal.ITIMER_REAL, _SWALLOWED_S)
        raise KeyboardInterrupt

    def report(unraisable: sys.UnraisableHookArgs) -> None:
        """A callback of the interpreter cannot hand an interrupt on."""
        if issubclass(unraisable.exc_type, KeyboardInterrupt):
            end_interrupted()
        reported(unraisable)

    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    reported, sys.unraisablehook = sys.unraisablehook, report
    before = signal.signal(signal.SIGALRM, lambda *_: end_interrupted())
    signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGALRM, before)
        sys.unraisablehook = reported


def end_interrupted() -> NoReturn:
    """Leave at once.

    A model that is still loading on the engine's thread would abort an orderly end.
    """
    print(file=sys.stderr, flush=True)
    os._exit(_INTERRUPTED)
